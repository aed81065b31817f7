"""The commands of `app.py`."""

from pathlib import Path


def absolute(path: str) -> Path:
    """A path as it was typed, such that it means the same wherever a child process works, `~` included.

    Shells leave a `~` as it is in `--option=~/folder`, and on Windows always.
    """
    return Path(path).expanduser().absolute()
