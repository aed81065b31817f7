"""Coroutines in a thread of their own: a browser that Playwright drives leaves a loop running in the tests'."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def run_apart(coroutine: Coroutine[object, object, T], timeout_s: float = 60.0) -> T:
    """What the coroutine returns; in place of `asyncio.run`, which no thread with a running loop may call."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result(timeout_s)
