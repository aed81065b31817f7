"""Browsers that leave without a word are no error of this app's.

On Windows asyncio shuts a connection down once more after the other end has reset it, and then tells of the failure
with a traceback, each time a tab is closed: https://github.com/python/cpython/blob/v3.13.0/Lib/asyncio/proactor_events.py
(`_ProactorBasePipeTransport._call_connection_lost`).
"""

from __future__ import annotations

import logging


def _is_news(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    reset = isinstance(error, (ConnectionResetError, ConnectionAbortedError))
    return not (reset and "_call_connection_lost" in record.getMessage())


def keep_quiet_about_them() -> None:
    """For the whole process, from now on; everything else that asyncio has to say is still said."""
    logging.getLogger("asyncio").addFilter(_is_news)
