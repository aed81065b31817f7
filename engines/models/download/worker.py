"""Child process that talks to the Hugging Face Hub: `python -m` this module, one JSON job on stdin.

huggingface_hub 1.x names its partial files at random and deletes them on failure, so an interrupted download starts
from zero, and it does not compare checksums. For gigabytes over a home line that is not good enough: this module
fetches the blobs itself, with the hub client's session, login and endpoint, into the standard cache; a partial file
is carried on by the next attempt, and every file is checked against its published hash.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.architectures import refuse_own_code
from engines.models.download.hub import (
    ATTEMPTS,
    DownloadError,
    Hub,
    RefusedError,
    RemoteFile,
    explain_os_error,
    explain_status,
    is_passing,
    pause,
)
from engines.models.download.hub_cache import place_blob
from engines.models.judgement import SAFETENSORS, Judgement, judge
from engines.processes.jobs import ChildEnd
from engines.processes.locks import wait_for_lock
from engines.toolkit.putting import put_in_place

_DISK_MARGIN = 512 * 2**20
_REPORT_S = 0.2


def main() -> int:
    child = ChildEnd()
    wanted = child.job["wanted"]
    try:
        hub = Hub(wanted["repository"], wanted["revision"])
        commit, everything, parameters = hub.list_files()
        judgement = _judged(hub, everything, commit, wanted)
        files = _wanted_files(everything, wanted, judgement)
        fetch = _Fetch(hub, Path(child.job["cache_dir"]), commit, files, child)
        if child.job["action"] == "list":
            missing = fetch.missing_files()
            child.result(
                {
                    "commit": commit,
                    "files": {file.path: file.size for file in files},
                    "parameters": parameters,
                    "missing_files": missing,
                    "missing_bytes": sum(missing.values()),
                    "config": hub.document(everything, commit, "config.json"),
                    "format": judgement.format if judgement else None,
                    "reads_images": judgement.reads_images if judgement else False,
                }
            )
        else:
            child.result({"commit": commit, "folder": str(fetch.run())})
    except (DownloadError, ModelError) as error:
        traceback.print_exc()
        child.error(str(error), error.remedy)
    except Exception as error:  # noqa: BLE001 — the hub client and the socket raise anything
        traceback.print_exc()
        problem = explain_os_error(error, wanted["repository"])
        child.error(str(problem), problem.remedy)
    return 0


class _Repository:
    """A repository on the Hub, as judgement.py wants to see it: names, sizes, and small files when asked for."""

    def __init__(self, hub: Hub, files: list[RemoteFile], commit: str):
        self._hub, self._files, self._commit = hub, files, commit
        self.name = self.model = hub.repository

    def sizes(self) -> Mapping[str, int]:
        return {file.path: file.size for file in self._files if "/" not in file.path}

    def nested(self) -> Mapping[str, int]:
        return {file.path: file.size for file in self._files if "/" in file.path}

    def document(self, name: str) -> dict[str, Any]:
        return self._hub.document(self._files, self._commit, name)

    def tensors(self) -> Mapping[str, str]:
        return {}

    def pointers(self) -> list[str]:
        return []


def _judged(hub: Hub, files: list[RemoteFile], commit: str, wanted: Mapping[str, Any]) -> Judgement | None:
    """What the repository is, where that decides; raises ModelError or DownloadError when it is of no use."""
    formats = wanted.get("formats")
    if formats is None:
        return None
    repository = _Repository(hub, files, commit)
    judgement = judge(repository)
    if judgement.require() == SAFETENSORS and not wanted["own_code"]:
        refuse_own_code(repository.document("config.json"), hub.repository)
    if judgement.format not in formats:
        raise DownloadError(
            f"{hub.repository} is {judgement.what}, and this engine loads no such folder; it can only be made from "
            "the original weights.",
            "Choose an engine for this format, or the original model.",
        )
    return judgement


def _wanted_files(
    files: list[RemoteFile], wanted: Mapping[str, Any], judgement: Judgement | None
) -> list[RemoteFile]:
    if judgement is not None and judgement.format != SAFETENSORS:
        return [file for file in files if "/" not in file.path and _is_useful(file.path)]
    found = [file for file in files if _is_wanted(file.path, wanted)]
    if not found:
        where = f"{wanted['repository']}/{wanted['subfolder']}".rstrip("/")
        raise DownloadError(
            f"{where} has none of the files this app can use.",
            "Choose a model with *.safetensors weights, an OpenVINO IR or an ONNX Runtime GenAI folder.",
        )
    return found


def _is_useful(name: str) -> bool:
    return not name.startswith(".") and not name.lower().endswith((".md", ".gguf", ".png", ".jpg"))


def _is_wanted(path: str, wanted: Mapping[str, Any]) -> bool:
    inside = f"{wanted['subfolder']}/".lstrip("/")
    if not path.startswith(inside):
        return False
    if wanted["patterns"] is None:
        return _is_useful(path.rpartition("/")[2])
    name = path.removeprefix(inside)
    if name.startswith("consolidated"):
        return False
    patterns = (p for p in wanted["patterns"] if p.count("/") == name.count("/"))
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


# --- getting the files -------------------------------------------------------------------------------------


class _Fetch:
    def __init__(self, hub: Hub, cache: Path, commit: str, files: list[RemoteFile], child: ChildEnd):
        self._hub, self._commit, self._files, self._child = hub, commit, files, child
        self._root = cache / f"models--{hub.repository.replace('/', '--')}"
        self._blobs = self._root / "blobs"
        self._snapshot = self._root / "snapshots" / commit
        self._total = sum(file.size for file in files)
        self._got = 0
        self._started = time.monotonic()
        self._got_before = 0
        self._reported = 0.0

    def missing_files(self) -> dict[str, int]:
        """What is still to come of each file that is not here."""
        return {f.path: f.size - self._partial_size(f) for f in self._files if not self._is_here(f)}

    def run(self) -> Path:
        self._blobs.mkdir(parents=True, exist_ok=True)

        def waiting() -> None:
            self._child.progress("download", "Another program is downloading this model")

        path = self._root.parent / ".locks" / self._root.name / "backend-arena.lock"
        with wait_for_lock(path, waiting, 0.5):
            return self._run_alone()

    def _run_alone(self) -> Path:
        if not self._child.job["override"]:
            self._check_disk()
        here = [file for file in self._files if self._is_here(file)]
        self._got = self._got_before = sum(file.size for file in here)
        for file in sorted(self._files, key=lambda f: f.size):
            if file not in here:
                self._fetch(file)
        reference = self._root / "refs" / self._hub.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(self._commit, encoding="ascii")
        return self._snapshot

    def _is_here(self, file: RemoteFile) -> bool:
        pointer, blob = self._snapshot / file.path, self._blobs / file.etag
        if blob.is_file() and blob.stat().st_size == file.size and not pointer.exists():
            place_blob(blob, pointer)
        return pointer.is_file() and pointer.stat().st_size == file.size

    def _partial(self, file: RemoteFile) -> Path:
        return self._blobs / f"{file.etag}.partial"

    def _partial_size(self, file: RemoteFile) -> int:
        path = self._partial(file)
        return path.stat().st_size if path.exists() else 0

    def _check_disk(self) -> None:
        needed = sum(self.missing_files().values())
        free = shutil.disk_usage(self._blobs).free
        if needed and free < needed + _DISK_MARGIN:
            raise DownloadError(
                f"There is not enough disk space for {self._hub.repository}: {_size(needed)} to download, "
                f"{_size(free)} free on the disk of {self._blobs}.",
                "Free some space, or point HF_HOME to another disk.",
            )

    def _fetch(self, file: RemoteFile) -> None:
        """Get one file: resume, retry what passes by itself, compare the checksum, put it into the snapshot."""
        for attempt in range(2):
            self._fetch_bytes(file)
            digest = _digest(self._partial(file), file)
            if digest == file.etag:
                blob = self._blobs / file.etag
                put_in_place(self._partial(file), blob)
                place_blob(blob, self._snapshot / file.path)
                return
            self._partial(file).unlink()
            self._got -= file.size
            if attempt:
                raise DownloadError(
                    f"{file.path} of {self._hub.repository} arrived damaged twice: its checksum is {digest[:12]}… "
                    f"instead of {file.etag[:12]}….",
                    "Try again later; if it stays so, the server or a proxy in between delivers a wrong file.",
                )

    def _fetch_bytes(self, file: RemoteFile) -> None:
        import httpx

        partial, attempt = self._partial(file), 0
        if self._partial_size(file) > file.size:
            partial.unlink()
        self._got += (carried := self._partial_size(file))
        self._got_before += carried
        while self._partial_size(file) < file.size or not partial.exists():
            before = self._partial_size(file)
            try:
                self._append(file, partial, before)
                problem: Exception | None = None
            except (httpx.TransportError, RefusedError) as error:
                problem = error
            if self._partial_size(file) > before:
                attempt = 0
            elif self._partial_size(file) < file.size:
                attempt += 1
            if isinstance(problem, RefusedError) and not is_passing(problem.status):
                raise explain_status(problem.status, problem.headers, self._hub.repository, file.path)
            if attempt >= ATTEMPTS:
                raise self._gave_up(problem, file)
            if problem is not None:
                headers = problem.headers if isinstance(problem, RefusedError) else {}
                wait_s = pause(attempt, headers)
                self._report(f"The connection broke ({problem}); carrying on in {wait_s:.0f} s", force=True)
                time.sleep(wait_s)

    def _append(self, file: RemoteFile, partial: Path, start: int) -> None:
        with partial.open("ab") as stream:
            for chunk in self._hub.stream(file, self._commit, start):
                if not chunk:
                    self._got -= stream.tell()
                    stream.truncate(0)
                    continue
                stream.write(chunk)
                self._got += len(chunk)
                self._report()

    def _gave_up(self, problem: Exception | None, file: RemoteFile) -> DownloadError:
        if isinstance(problem, RefusedError):
            return explain_status(problem.status, problem.headers, self._hub.repository, file.path)
        return DownloadError(
            f"The connection kept breaking while getting {file.path} of {self._hub.repository} "
            f"({_size(self._partial_size(file))} of {_size(file.size)} are here).",
            "Try again: it carries on where it stopped.",
        )

    def _report(self, text: str | None = None, *, force: bool = False) -> None:
        now = time.monotonic()
        if now - self._reported < _REPORT_S and not force:
            return
        self._reported = now
        rate = (self._got - self._got_before) / max(now - self._started, 1e-3)
        left = f" · {_time((self._total - self._got) / rate)} left" if rate > 0 else ""
        text = text or f"{_size(self._got)} of {_size(self._total)} · {_size(rate)}/s{left}"
        self._child.progress("download", text, min(1.0, self._got / self._total) if self._total else None)


def _digest(path: Path, file: RemoteFile) -> str:
    digest = hashlib.sha256() if file.is_sha256 else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as stream:
        while chunk := stream.read(4 * 2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    sys.exit(main())
