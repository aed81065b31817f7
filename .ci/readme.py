"""Does what the README says: `readme.py run` starts the app and waits for its page, `readme.py test` runs the tests.

The commands are read from the README, those of this system, so that the two cannot drift apart.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "http://localhost:7860"
PATIENCE_S = 1200.0
"""Installing is part of the command."""
WINDOWS = sys.platform == "win32"


def command(what: str) -> list[str]:
    """The shell command that the README gives for `run` or `test` on this system."""
    system = "Windows" if WINDOWS else "Linux"
    found = re.search(
        rf"<!-- {what} on {system} -->\n```\w+\n(.*?)\n```", (ROOT / "README.md").read_text("utf-8"), re.S
    )
    if not found:
        raise SystemExit(f"The README has no command to {what} it on {system}.")
    shell = ["pwsh", "-NoProfile", "-Command"] if WINDOWS else ["bash", "-euo", "pipefail", "-c"]
    return [*shell, found[1]]


def page_is_served() -> bool:
    """Whether the page answers within the time that installing may take."""
    app = subprocess.Popen(command("run"), cwd=ROOT, start_new_session=not WINDOWS)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and app.poll() is None:
            try:
                with urllib.request.urlopen(ADDRESS, timeout=10) as answer:
                    return answer.status == 200 and b"Backend Arena" in answer.read()
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        return False
    finally:
        end(app)


def end(app: subprocess.Popen[bytes]) -> None:
    """End the shell and everything it started."""
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(app.pid)], check=False)
    else:
        import os
        import signal

        os.killpg(app.pid, signal.SIGTERM)
    app.wait(60)


if __name__ == "__main__":
    if sys.argv[1:] == ["run"]:
        sys.exit(0 if page_is_served() else "The page was not served.")
    if sys.argv[1:] == ["test"]:
        sys.exit(subprocess.run(command("test"), cwd=ROOT, check=False).returncode)
    sys.exit(__doc__)
