"""The public link: Gradio's tunnel, told apart from Gradio's launch so that it can be opened and closed any time.

Gradio's own `share=True` fixes that for the whole start, writes a certificate into the working directory, and says
what went wrong in three lines and a traceback. Here it is one sentence, and the page stays up.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

API_TIMEOUT_S = 15.0


class TunnelError(Exception):
    """There is no link; the message says why and what to do."""


class Tunnel(Protocol):
    """An open tunnel."""

    @property
    def link(self) -> str: ...

    @property
    def alive(self) -> bool: ...

    def close(self) -> None: ...


OpenTunnel = Callable[[int], Tunnel]
"""Opens a tunnel to a local port; raises TunnelError."""


class GradioTunnel:
    """A tunnel through Gradio's share server, or one of the owner's (GRADIO_SHARE_SERVER_ADDRESS)."""

    def __init__(self, port: int, data_dir: Path):
        from gradio import tunneling

        server = os.environ.get("GRADIO_SHARE_SERVER_ADDRESS")
        host, remote_port, certificate = _own_server(server) if server else _share_server(data_dir)
        self._tunnel = tunneling.Tunnel(
            host, remote_port, "127.0.0.1", port, secrets.token_urlsafe(32), certificate
        )
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                address = self._tunnel.start_tunnel()
        except Exception as error:
            self.close()
            raise TunnelError(_why(error, tunneling.BINARY_PATH)) from error
        self.link = f"{'http' if server else 'https'}://{urlsplit(address).netloc}"

    @property
    def alive(self) -> bool:
        process = self._tunnel.proc
        return process is not None and process.poll() is None

    def close(self) -> None:
        process, self._tunnel.proc = self._tunnel.proc, None
        if process is not None:
            process.terminate()
            with contextlib.suppress(Exception):
                process.wait(5)


def _own_server(address: str) -> tuple[str, int, None]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise TunnelError(
            f"GRADIO_SHARE_SERVER_ADDRESS is “{address}”, which is no HOST:PORT; mend it or remove it."
        )
    return host, int(port), None


def _share_server(data_dir: Path) -> tuple[str, int, str]:
    """(host, port, certificate file) of the share server that Gradio names."""
    import httpx
    from gradio import networking

    try:
        answer = httpx.get(networking.GRADIO_API_SERVER, timeout=API_TIMEOUT_S)
        first = answer.raise_for_status().json()[0]
        certificate = data_dir / "cache" / "share-server.pem"
        certificate.parent.mkdir(parents=True, exist_ok=True)
        certificate.write_text(first["root_ca"], encoding="ascii")
        return first["host"], int(first["port"]), str(certificate)
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise TunnelError(
            "No share link could be made: Gradio's share server cannot be reached "
            f"({type(error).__name__}). Check the internet connection and try again, or share in your own network "
            "with --host 0.0.0.0."
        ) from error
    except OSError as error:
        raise TunnelError(f"No share link could be made: {error}.") from error


def _why(error: Exception, binary: str) -> str:
    if not Path(binary).exists():
        return (
            "No share link could be made: Gradio's tunnel program could not be downloaded "
            f"({type(error).__name__}). Check the internet connection, or share in your own network with "
            "--host 0.0.0.0."
        )
    first_line = str(error).strip().partition("\n")[0]
    return (
        f"No share link could be made: the tunnel did not open ({first_line[:200]}). Try again in a moment, or "
        "share in your own network with --host 0.0.0.0."
    )


class Watch:
    """Calls back once when a tunnel has closed by itself."""

    def __init__(self, tunnel: Tunnel, closed: Callable[[], None], every_s: float = 2.0):
        self._tunnel, self._closed, self._every_s = tunnel, closed, every_s
        self._stop = threading.Event()
        threading.Thread(target=self._look, name="tunnel", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()

    def _look(self) -> None:
        while not self._stop.wait(self._every_s):
            if not self._tunnel.alive:
                self._closed()
                return
