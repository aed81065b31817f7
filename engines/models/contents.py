"""A folder or a repository as far as it takes to judge it: names, sizes, small JSON files, tensor names.

The rules in judgement.py read either through the same five questions, so that a repository is judged before a byte of
its weights is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from engines.toolkit.model_config import read_json, read_safetensors_header

_POINTER = b"version https://git-lfs.github.com/spec/"
_NESTED_DEPTH = 4
_MOST_NESTED = 4000


class Contents(Protocol):
    """A folder or a repository, as far as it takes to judge it."""

    @property
    def name(self) -> str:
        """What to call it in a sentence."""
        ...

    @property
    def model(self) -> str | None:
        """The repository, if it is known."""
        ...

    def sizes(self) -> Mapping[str, int]:
        """Files directly in it."""
        ...

    def nested(self) -> Mapping[str, int]:
        """Files in its folders, by relative path with `/`."""
        ...

    def document(self, name: str) -> dict[str, Any]:
        """A JSON object; empty when there is none. Raises ModelError when it cannot be read."""
        ...

    def tensors(self) -> Mapping[str, str]:
        """Tensor name -> type, where that can be seen without a download."""
        ...

    def pointers(self) -> list[str]:
        """Files that are only Git LFS pointers to what they should be, or links to nothing."""
        ...


class FolderContents:
    """A folder on disk."""

    def __init__(self, folder: Path, model: str | None = None):
        self._folder, self.model, self.name = folder, model, model or str(folder)
        self._sizes: dict[str, int] | None = None

    def sizes(self) -> Mapping[str, int]:
        if self._sizes is None:
            self._sizes = {p.name: p.stat().st_size for p in self._folder.iterdir() if p.is_file()}
        return self._sizes

    def nested(self) -> Mapping[str, int]:
        found: dict[str, int] = {}
        for path in _below(self._folder, _NESTED_DEPTH):
            found[path.relative_to(self._folder).as_posix()] = path.stat().st_size
            if len(found) >= _MOST_NESTED:
                break
        return found

    def document(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        return read_json(path) if path.is_file() else {}

    def tensors(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for name in self.sizes():
            if name.endswith(".safetensors"):
                header = read_safetensors_header(self._folder / name)
                found.update({key: t["dtype"] for key, t in header.items() if key != "__metadata__"})
        return found

    def pointers(self) -> list[str]:
        found = [p.name for p in self._folder.iterdir() if p.is_symlink() and not p.exists()]
        for name, size in self.sizes().items():
            if size < 1024:
                with (self._folder / name).open("rb") as stream:
                    if stream.read(len(_POINTER)) == _POINTER:
                        found.append(name)
        return sorted(found)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Files in the folders of a folder, hidden ones left out."""
    try:
        folders = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        for inner in folders:
            yield from (p for p in inner.iterdir() if p.is_file())
            if depth > 1:
                yield from _below(inner, depth - 1)
    except OSError:  # not ours to read: then nothing in there is a model for us
        return


def parse_document(text: str | bytes) -> dict[str, Any]:
    """A JSON object, or an empty one for anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first names of several, for a sentence."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
