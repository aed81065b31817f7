"""The Hugging Face Hub as a download asks it: what a repository holds, bytes from any point on, refusals in words."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engines.models.contents import parse_document

ATTEMPTS = 5
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 60.0
_CONNECT_S = 10.0
_SILENCE_S = 30.0
_CHUNK = 1024 * 1024
_SMALL_BYTES = 20 * 2**20
"""Of the files that are read to judge a repository: configurations, and the index of the weights."""


class DownloadError(Exception):
    """A sentence for the person and what to do about it."""

    def __init__(self, message: str, remedy: str):
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository."""

    path: str
    size: int
    etag: str
    """Name of its blob: SHA-256 for large files, Git's SHA-1 for small ones."""
    is_sha256: bool


class Hub:
    """One repository at one revision, asked with the hub client's session, login and endpoint."""

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
        """A small JSON file at the top of the repository; empty when there is none. Raises DownloadError.

        What a repository is hangs on it, so a refusal is no answer: a passing one is waited out.
        """
        found = next((file for file in files if file.path == name and file.size <= _SMALL_BYTES), None)
        if found is None:
            return {}
        if name not in self._documents:
            content = self._retry(lambda: b"".join(self.stream(found, commit, 0)))
            self._documents[name] = parse_document(content)
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
                raise RefusedError(answer.status_code, answer.headers)
            if start and answer.status_code == 200:
                yield b""
            yield from answer.iter_bytes(_CHUNK)

    def _retry(self, ask: Callable[[], Any]) -> Any:
        for attempt in range(ATTEMPTS):
            answer, problem, headers = self._ask_once(ask)
            if problem is None:
                return answer
            if headers is None or attempt == ATTEMPTS - 1:
                raise problem
            time.sleep(pause(attempt, headers))
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
                explain_status(status, headers, self.repository),
                headers if is_passing(status) else None,
            )
        except RefusedError as error:
            problem = explain_status(error.status, error.headers, self.repository)
            return None, problem, error.headers if is_passing(error.status) else None
        except httpx.ConnectError as error:
            return None, explain_os_error(error, self.repository), None
        except httpx.TransportError as error:
            return None, explain_os_error(error, self.repository), {}


def _remote_file(sibling: Any) -> RemoteFile:
    lfs = getattr(sibling, "lfs", None)
    sha256 = getattr(lfs, "sha256", None)
    size = getattr(lfs, "size", None) or sibling.size or 0
    return RemoteFile(sibling.rfilename, size, sha256 or sibling.blob_id, sha256 is not None)


# --- what went wrong, for people ---------------------------------------------------------------------------


class RefusedError(Exception):
    """The Hub answered with a status that is none of success."""

    def __init__(self, status: int, headers: Mapping[str, str]):
        super().__init__(f"HTTP {status}")
        self.status, self.headers = status, headers


def is_passing(status: int) -> bool:
    """Whether asking again later may help."""
    return status in (408, 425, 429) or status >= 500


def pause(attempt: int, headers: Mapping[str, str]) -> float:
    """Seconds to wait before asking again: what the Hub asks for, else twice as long each time."""
    asked = headers.get("Retry-After", "")
    if asked.replace(".", "", 1).isdigit():
        return min(float(asked), _LONGEST_PAUSE_S)
    return min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)


def explain_status(
    status: int, headers: Mapping[str, str], repository: str, file: str | None = None
) -> DownloadError:
    """What a status of the Hub says to the person who asked."""
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


def explain_os_error(error: Exception, repository: str) -> DownloadError:
    """What failed on this computer or on the way to the Hub, in words."""
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
