"""Child process that talks to the Hugging Face Hub: `python -m` this module, one JSON job on stdin.

huggingface_hub 1.x names its partial files at random and deletes them on failure, so an interrupted download starts
from zero, and it does not compare checksums. For gigabytes over a home line that is not good enough: this module
fetches the blobs itself, with the hub client's session, login and endpoint, into the standard cache; a partial file
is carried on by the next attempt, and every file is checked against its published hash.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.engine import ModelError
from engines.models.download.hub_cache import place_blob
from engines.models.judgement import SAFETENSORS, Judgement, judge, parse_document
from engines.processes.jobs import ChildEnd
from engines.processes.locks import wait_for_lock
from engines.toolkit.putting import put_in_place

_ATTEMPTS = 5
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_CONNECT_S = 10.0
_SILENCE_S = 30.0
_CHUNK = 1024 * 1024
_DISK_MARGIN = 512 * 2**20
_REPORT_S = 0.2
_SMALL_BYTES = 20 * 2**20
"""Of the files that are read to judge a repository: configurations, and the index of the weights."""


class DownloadError(Exception):
    """A sentence for the person and what to do about it."""

    def __init__(self, message: str, remedy: str):
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class RemoteFile:
    path: str
    size: int
    etag: str
    """Name of its blob: SHA-256 for large files, Git's SHA-1 for small ones."""
    is_sha256: bool


def main() -> int:
    child = ChildEnd()
    wanted = child.job["wanted"]
    try:
        hub = _Hub(wanted["repository"], wanted["revision"])
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
        problem = _explain_os_error(error, wanted["repository"])
        child.error(str(problem), problem.remedy)
    return 0


class _Repository:
    """A repository on the Hub, as judgement.py wants to see it: names, sizes, and small files when asked for."""

    def __init__(self, hub: _Hub, files: list[RemoteFile], commit: str):
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


def _judged(hub: _Hub, files: list[RemoteFile], commit: str, wanted: Mapping[str, Any]) -> Judgement | None:
    """What the repository is, where that decides; raises ModelError or DownloadError when it is of no use."""
    formats = wanted.get("formats")
    if formats is None:
        return None
    judgement = judge(_Repository(hub, files, commit))
    if judgement.require() not in formats:
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


# --- the hub -----------------------------------------------------------------------------------------------


class _Hub:
    def __init__(self, repository: str, revision: str):
        from huggingface_hub import HfApi

        self.repository, self.revision = repository, revision
        self._api = HfApi()
        self._documents: dict[str, dict[str, Any]] = {}

    def list_files(self) -> tuple[str, list[RemoteFile], int | None]:
        """(commit, all files, parameters if the Hub knows them)."""
        info = self._retry(
            lambda: self._api.model_info(
                self.repository, revision=self.revision, files_metadata=True, timeout=_SILENCE_S
            )
        )
        files = [_remote_file(sibling) for sibling in info.siblings or []]
        return info.sha, files, getattr(getattr(info, "safetensors", None), "total", None)

    def document(self, files: list[RemoteFile], commit: str, name: str) -> dict[str, Any]:
        """A small JSON file at the top of the repository; empty when there is none, or it cannot be had."""
        found = next((file for file in files if file.path == name and file.size <= _SMALL_BYTES), None)
        if found is None:
            return {}
        if name not in self._documents:
            try:
                self._documents[name] = parse_document(b"".join(self.stream(found, commit, 0)))
            except Exception:  # noqa: BLE001 — the download itself will say what is wrong
                return {}
        return self._documents[name]

    def stream(self, file: RemoteFile, commit: str, start: int) -> Iterator[bytes]:
        """The file's bytes from `start` on; yields b"" first if the server begins at zero instead."""
        import httpx
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers

        headers = build_hf_headers()
        headers["Accept-Encoding"] = "identity"
        if start:
            headers["Range"] = f"bytes={start}-"
        timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
        url = hf_hub_url(self.repository, file.path, revision=commit, endpoint=self._api.endpoint)
        with get_session().stream(
            "GET", url, headers=headers, timeout=timeout, follow_redirects=True
        ) as answer:
            if (
                answer.status_code == 416
            ):  # nothing left to send: the partial file is longer than the real one
                yield b""
                return
            if answer.status_code >= 400:
                raise _RefusedError(answer.status_code, answer.headers)
            if start and answer.status_code == 200:
                yield b""
            yield from answer.iter_bytes(_CHUNK)

    def _retry(self, ask: Callable[[], Any]) -> Any:
        for attempt in range(_ATTEMPTS):
            answer, problem, headers = self._ask_once(ask)
            if problem is None:
                return answer
            if headers is None or attempt == _ATTEMPTS - 1:
                raise problem
            time.sleep(_pause(attempt, headers))
        return None

    def _ask_once(self, ask: Callable[[], Any]) -> tuple[Any, DownloadError | None, Mapping[str, str] | None]:
        """(answer, what went wrong, headers if asking again may help)."""
        import httpx
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return ask(), None, None
        except HfHubHTTPError as error:
            status, headers = error.response.status_code, error.response.headers
            return (
                None,
                _explain_status(status, headers, self.repository),
                headers if _is_passing(status) else None,
            )
        except httpx.ConnectError as error:
            return None, _explain_os_error(error, self.repository), None
        except httpx.TransportError as error:
            return None, _explain_os_error(error, self.repository), {}


def _remote_file(sibling: Any) -> RemoteFile:
    lfs = getattr(sibling, "lfs", None)
    sha256 = getattr(lfs, "sha256", None)
    size = getattr(lfs, "size", None) or sibling.size or 0
    return RemoteFile(sibling.rfilename, size, sha256 or sibling.blob_id, sha256 is not None)


# --- getting the files -------------------------------------------------------------------------------------


class _Fetch:
    def __init__(self, hub: _Hub, cache: Path, commit: str, files: list[RemoteFile], child: ChildEnd):
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
            except (httpx.TransportError, _RefusedError) as error:
                problem = error
            if self._partial_size(file) > before:
                attempt = 0
            elif self._partial_size(file) < file.size:
                attempt += 1
            if isinstance(problem, _RefusedError) and not _is_passing(problem.status):
                raise _explain_status(problem.status, problem.headers, self._hub.repository, file.path)
            if attempt >= _ATTEMPTS:
                raise self._gave_up(problem, file)
            if problem is not None:
                headers = problem.headers if isinstance(problem, _RefusedError) else {}
                pause = _pause(attempt, headers)
                self._report(f"The connection broke ({problem}); carrying on in {pause:.0f} s", force=True)
                time.sleep(pause)

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
        if isinstance(problem, _RefusedError):
            return _explain_status(problem.status, problem.headers, self._hub.repository, file.path)
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


# --- what went wrong, for people ---------------------------------------------------------------------------


class _RefusedError(Exception):
    def __init__(self, status: int, headers: Mapping[str, str]):
        super().__init__(f"HTTP {status}")
        self.status, self.headers = status, headers


def _is_passing(status: int) -> bool:
    return status in (408, 425, 429) or status >= 500


def _pause(attempt: int, headers: Mapping[str, str]) -> float:
    asked = headers.get("Retry-After", "")
    if asked.replace(".", "", 1).isdigit():
        return min(float(asked), _LONGEST_PAUSE_S)
    return min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)


def _explain_status(
    status: int, headers: Mapping[str, str], repository: str, file: str | None = None
) -> DownloadError:
    what = f"{file} of {repository}" if file else repository
    code = headers.get("X-Error-Code", "")
    page = f"https://huggingface.co/{repository}"
    if status == 403 or code == "GatedRepo":
        return DownloadError(
            f"{repository} is gated: your login has no access to it (HTTP {status}).",
            f"Accept its licence on {page}, then set HF_TOKEN or run `hf auth login`.",
        )
    if status == 401:
        return DownloadError(
            f"The Hub wants a login for {repository}, or there is no such model (HTTP 401).",
            f"Check the name; if it is private or gated, open {page}, then set HF_TOKEN or run `hf auth login`.",
        )
    if status == 404:
        return DownloadError(f"There is no {what} on the Hub (HTTP 404).", "Check the spelling: org/name.")
    if status == 429:
        return DownloadError(
            f"The Hub asks to slow down (HTTP 429) while getting {what}.",
            "Wait some minutes and try again; with a login (HF_TOKEN) the limit is higher.",
        )
    return DownloadError(
        f"The Hub has trouble (HTTP {status}) while getting {what}.",
        "Try again later, or use a mirror by setting HF_ENDPOINT.",
    )


def _explain_os_error(error: Exception, repository: str) -> DownloadError:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return DownloadError(
            f"The disk became full while getting {repository}.",
            "Free some space, or point HF_HOME to another disk; it carries on where it stopped.",
        )
    if isinstance(error, OSError) and _is_too_long(error):
        return DownloadError(
            f"{repository} could not be stored: Windows refused a path longer than 260 characters.",
            "Enable long paths in Windows, or point HF_HOME to a folder with a short name (for example C:\\hf).",
        )
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    if type(error).__module__.startswith(("httpx", "httpcore")) or isinstance(error, ConnectionError):
        return DownloadError(
            f"The Hub cannot be reached for {repository}: {reason}.",
            "Check the network and the proxy settings, or use a mirror by setting HF_ENDPOINT.",
        )
    return DownloadError(
        f"{repository} could not be downloaded: {reason}.", "Try again; the log has the details."
    )


def _is_too_long(error: OSError) -> bool:
    """Windows calls a path too long, or one that does not exist; a folder's may have 247 characters, a file's 259.

    https://learn.microsoft.com/windows/win32/fileio/maximum-file-path-limitation
    """
    refused = getattr(error, "winerror", None) in (3, 206)  # ERROR_PATH_NOT_FOUND, ERROR_FILENAME_EXCED_RANGE
    return refused and any(len(str(name)) > 247 for name in (error.filename, error.filename2))


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
