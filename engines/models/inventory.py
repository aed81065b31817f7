"""What is on this computer: converted, ready-made, downloaded and imported models; taking in and throwing away.

Nothing here is remembered beside the folders themselves, except which of the person's own folders were imported:
what the disk says is true.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models import catalogue
from engines.models.conversion.recipes import library_versions
from engines.models.download import hub_cache
from engines.models.folders import (
    MANIFEST,
    SAFETENSORS,
    damage,
    read_facts,
    read_manifest,
    recognise,
    remove_folder,
    write_json,
)
from engines.models.judgement import judge_folder
from engines.models.model_names import DEMO_FOLDER, resolve
from engines.models.plan import size
from engines.models.ready_made import CONVERTER
from engines.models.source_hashes import SourceHashes
from engines.models.statements import Statement, read_statement
from engines.protocol import DEMO_MODEL


@dataclass(frozen=True)
class Choice:
    """A model that a panel can be set to."""

    name: str
    """As in a target: `demo`, a Hugging Face id, or a path."""
    title: str
    note: str = ""
    is_here: bool = True


@dataclass(frozen=True)
class Installed:
    """One model folder on this computer."""

    id: str
    model: str
    kind: str
    """`bundled`, `downloaded`, `converted`, `ready-made` or `imported`."""
    format: str
    precision: str | None
    device: str | None
    """Only for this device family; None: for all that its engine has."""
    path: str
    bytes: int
    freed_bytes: int
    """Disk space that removing it brings back."""
    problem: str | None = None
    """Damaged, or made with other library versions than those installed now."""
    made_at: str | None = None
    revision: str | None = None
    log_path: str | None = None


class Inventory:
    """Reads and tidies the model folders of one data directory and the Hugging Face cache."""

    def __init__(self, models_dir: Path):
        self._models_dir = models_dir
        self._hashes = SourceHashes(models_dir)

    # --- listing -------------------------------------------------------------------------------------------

    def installed(self) -> tuple[Installed, ...]:
        return (*self._bundled(), *self._imported(), *self._downloaded(), *self._made())

    def choices(self) -> tuple[Choice, ...]:
        here: dict[str, Choice] = {}
        installed = self.installed()
        short = _short_names(entry.model for entry in installed)
        for entry in installed:
            known = catalogue.find(entry.model)
            title = "Demo" if entry.kind == "bundled" else known.title if known else short[entry.model]
            note = "bundled, tiny" if entry.kind == "bundled" else "on this computer"
            here.setdefault(entry.model.lower(), Choice(entry.model, title, note))
        absent = (
            Choice(m.id, m.title, f"to be downloaded; {m.note}", is_here=False)
            for m in catalogue.load()
            if m.id.lower() not in here
        )
        return (*here.values(), *absent)

    def _bundled(self) -> Iterator[Installed]:
        if recognise(DEMO_FOLDER) == SAFETENSORS:
            yield self._entry("bundled", DEMO_MODEL, DEMO_MODEL, DEMO_FOLDER, SAFETENSORS, freed=0)

    def _imported(self) -> Iterator[Installed]:
        for text in self._imports():
            folder, found, problem = Path(text), None, None
            try:
                found = judge_folder(folder).require()
            except ModelError as error:
                problem = str(error)
            stated = read_statement(folder, found) if found else Statement()
            yield self._entry(
                "imported",
                f"folder:{text}",
                text,
                folder,
                found or "?",
                precision=stated.precision,
                device=stated.device,
                freed=0,
                problem=problem,
            )

    def _downloaded(self) -> Iterator[Installed]:
        for root in sorted(hub_cache.cache_dir().glob("models--*--*")):
            repository = root.name.removeprefix("models--").replace("--", "/", 1)
            if any(root.glob("blobs/*.partial")):
                yield self._unfinished(repository, root)
                continue
            folder = hub_cache.snapshot(repository)
            if folder is None or (found := _downloaded_kind(folder, repository)) is None:
                continue
            model_format, problem = found
            precision = None if problem else read_statement(folder, model_format).precision
            yield self._entry(
                "downloaded",
                f"hub:{repository}",
                repository,
                folder,
                model_format,
                precision=precision,
                problem=problem,
                revision=folder.name,
            )

    def _unfinished(self, repository: str, root: Path) -> Installed:
        problem = "the download was interrupted; getting the model again carries on"
        return self._entry("downloaded", f"hub:{repository}", repository, root, "?", problem=problem)

    def _made(self) -> Iterator[Installed]:
        for path in sorted(self._models_dir.glob(f"*/[!.]*/{MANIFEST}")):
            manifest = read_manifest(path.parent)
            if manifest is not None:
                yield self._made_entry(path.parent, manifest)

    def _made_entry(self, folder: Path, manifest: dict[str, Any]) -> Installed:
        recipe = manifest.get("recipe") or {}
        is_prebuilt = recipe.get("converter") == CONVERTER
        options = recipe.get("options", {})
        device = options.get("device") or options.get("execution_provider") or options.get("variant")
        problem = damage(folder, manifest["files"])
        if problem is not None:
            problem = f"damaged: {problem}"
        elif not is_prebuilt:
            problem = self._outdated(manifest)
        log_path = self._models_dir / "logs" / f"{folder.parent.name}-{folder.name}.log"
        freed = None
        if is_prebuilt:  # the weights are shared with the Hugging Face cache and go together with it
            freed = manifest["weight_bytes"]
        return self._entry(
            "ready-made" if is_prebuilt else "converted",
            f"{folder.parent.name}/{folder.name}",
            manifest["model"],
            folder,
            manifest["format"],
            precision=manifest["precision"],
            device=device.upper() if device else None,
            problem=problem,
            made_at=manifest.get("made_at"),
            revision=manifest.get("revision"),
            log_path=str(log_path) if log_path.exists() else None,
            freed=freed,
        )

    def _outdated(self, manifest: dict[str, Any]) -> str | None:
        """Why a sound conversion would not be used any more."""
        if manifest["recipe"].get("versions") != library_versions(manifest["format"]):
            return "made with other library versions than those installed; not used any more"
        source = resolve(manifest["model"])
        if source.folder is None:
            snapshot = hub_cache.snapshot(source.model)
            revision = snapshot.name if snapshot else None
        else:
            revision = self._hashes.of(source.folder, hash_large=False) if source.folder.is_dir() else None
        if revision is not None and revision != manifest["revision"]:
            return "made from other weights than those here now; not used any more"
        return None

    @staticmethod
    def _entry(
        kind: str,
        entry_id: str,
        model: str,
        folder: Path,
        found: str,
        *,
        freed: int | None = None,
        **more: Any,
    ) -> Installed:
        here = os.path.isdir(folder)  # noqa: PTH112 - False, too, where the disk refuses to say
        files = [path for path in folder.rglob("*") if path.is_file()] if here else []
        total = _used_bytes((folder,)) if found == "?" else sum(path.stat().st_size for path in files)
        return Installed(
            id=entry_id,
            model=model,
            kind=kind,
            format=found,
            precision=more.pop("precision", None),
            device=more.pop("device", None),
            path=str(folder),
            bytes=total,
            freed_bytes=hub_cache.bytes_freed_by_removing(files) if freed is None else freed,
            **more,
        )

    def stamp(self) -> int:
        """Another number whenever a model has come, gone or been finished here, by whatever program; a few look-ups.

        Folders change their time when a name in them does, and every download, conversion and removal ends with one.
        """
        made = (self._imports_path, self._models_dir, *self._models_dir.glob("[!.]*"))
        cache = hub_cache.cache_dir()
        kept = (cache, *cache.glob("models--*--*/*"), *cache.glob("models--*--*/snapshots/*"))
        return hash(tuple((str(path), _changed_at(path)) for path in (*made, *kept)))

    # --- taking in -----------------------------------------------------------------------------------------

    def import_folder(self, folder: Path) -> Installed:
        folder = Path(os.path.normpath(Path(folder).expanduser().absolute()))  # links keep their name
        found = judge_folder(folder).require()
        if found == SAFETENSORS:
            read_facts(folder)
        imports = self._imports()
        if str(folder) not in imports:
            self._models_dir.mkdir(parents=True, exist_ok=True)
            write_json(self._imports_path, [*imports, str(folder)])
        return next(entry for entry in self._imported() if entry.path == str(folder))

    @property
    def _imports_path(self) -> Path:
        return self._models_dir / "imported.json"

    def _imports(self) -> list[str]:
        try:
            return list(json.loads(self._imports_path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return []

    # --- throwing away -------------------------------------------------------------------------------------

    def matching(self, what: str) -> tuple[Installed, ...]:
        """Entries with this id, or all of this model that can be removed."""
        entries = self.installed()
        exact = tuple(entry for entry in entries if entry.id == what and entry.kind != "bundled")
        return exact or tuple(e for e in entries if e.model.lower() == what.lower() and e.kind != "bundled")

    def remove(self, what: str) -> int:
        entries = self.matching(what)
        if not entries:
            raise ModelError(f"There is nothing of “{what}” to remove.", "`models list` shows what is here.")
        ours = [entry for entry in entries if entry.kind != "imported"]
        imports = {entry.path for entry in entries if entry.kind == "imported"}
        if imports:
            write_json(self._imports_path, [text for text in self._imports() if text not in imports])
        before = _used_bytes(self._folders())
        for entry in ours:
            self._remove(entry)
        return max(0, before - _used_bytes(self._folders()))

    def _remove(self, entry: Installed) -> None:
        if entry.kind == "downloaded":
            hub_cache.remove_files(entry.model)
            return
        folder = Path(entry.path)
        manifest = read_manifest(folder)
        remove_folder(folder)
        if entry.log_path:
            Path(entry.log_path).unlink(missing_ok=True)
        if entry.kind == "ready-made" and manifest is not None:
            options = manifest["recipe"]["options"]
            hub_cache.remove_files(options["repository"], options["subfolder"])
        try:
            folder.parent.rmdir()
        except OSError:
            pass

    def _folders(self) -> tuple[Path, ...]:
        return (self._models_dir, hub_cache.cache_dir())


def _changed_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _used_bytes(folders: tuple[Path, ...]) -> int:
    """Disk space below the folders, every file counted once however many names it has."""
    seen: dict[tuple[int, int], int] = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                stat = path.stat()
                seen[(stat.st_dev, stat.st_ino)] = stat.st_size
    return sum(seen.values())


def _downloaded_kind(folder: Path, repository: str) -> tuple[str, str | None] | None:
    """(format, what is wrong with it) of a snapshot; None for what other programs keep in the cache."""
    try:
        found = judge_folder(folder, repository)
        if found.usable and found.format == SAFETENSORS:
            read_facts(folder)
    except ModelError as error:
        return (SAFETENSORS, f"damaged: {error}") if _is_text_model(folder) else None
    if found.usable and found.format is not None:
        return found.format, None
    return (SAFETENSORS, found.problem) if _is_text_model(folder) else None


def _is_text_model(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    writes = any("CausalLM" in name or "LMHead" in name for name in config.get("architectures") or [])
    return writes and any(folder.glob("*.safetensors"))


def _short_names(models: Iterable[str]) -> dict[str, str]:
    """A Hugging Face id as it is; a folder by its last name, with as many before it as tell it from the others."""
    names = {model: (model,) if resolve(model).folder is None else Path(model).parts for model in models}
    return {model: "/".join(_telling(parts, names.values())) for model, parts in names.items()}


def _telling(parts: tuple[str, ...], among: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    others = [other for other in among if other != parts]
    endings = (parts[-count:] for count in range(1, len(parts) + 1))
    return next((ending for ending in endings if all(o[-len(ending) :] != ending for o in others)), parts)


def describe(entry: Installed) -> str:
    """One line for a terminal."""
    parts = [entry.format, entry.precision, entry.device]
    line = (
        f"{entry.model}  {' '.join(p for p in parts if p)}  {entry.kind}  {size(entry.bytes)}  {entry.path}"
    )
    return f"{line}  ({entry.problem})" if entry.problem else line
