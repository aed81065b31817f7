"""A deliberately bad engine: it crashes, hangs, prints noise on stdout and ignores cancel, as its precision says."""

import ctypes
import itertools
import os
import time

from engines.engine import Engine, EngineError, GenerationReport, LoadReport, OutOfMemoryError
from engines.protocol import Availability, DeviceStatus, EngineSpec

SPEC = EngineSpec(
    name="bad",
    title="Bad engine",
    module="tests.helpers.bad_engine",
    devices=("CPU", "GPU"),
    precisions=(
        *("crash-on-load", "crash-in-reply", "abort-in-reply", "noise", "ignore-cancel", "raise"),
        *("no-memory", "hang-on-load", "no-text", "circles", "die-when-told"),
        *("garbage", "early-stop", "too-fast", "falls-back", "hang-in-reply"),
    ),
    model_format="safetensors",
)


class BadEngine(Engine):
    spec = SPEC

    def probe(self):
        return Availability(True, (DeviceStatus("CPU", True),), {"bad": "1.0"})

    def load(self, target, model, cache_dir, on_progress):
        self._habit = target.precision
        if self._habit == "crash-on-load":
            print("about to fall over", flush=True)
            os._exit(7)
        if self._habit == "no-memory":
            raise OutOfMemoryError("The device has 1.0 GB; the model needs 2.0 GB.", "Choose int4.")
        if self._habit == "hang-on-load":
            time.sleep(600)
        return LoadReport(device="CPU", context_tokens=1024)

    def generate(self, prompt_ids, request, stop_ids, on_token):
        if request.max_new_tokens <= 4:  # the warm-up
            return GenerationReport()
        getattr(self, "_" + self._habit.replace("-", "_"))(prompt_ids, on_token)
        return GenerationReport()

    def _crash_in_reply(self, ids, on_token):
        for token_id in ids[:3]:
            on_token(token_id)
        os._exit(3)

    def _abort_in_reply(self, ids, on_token):
        on_token(ids[0])
        os.abort()

    def _garbage(self, ids, on_token):
        """Fast and complete, and always the same."""
        while on_token(ids[4]):
            time.sleep(0.01)

    def _early_stop(self, ids, on_token):
        for token_id in ids[:5]:
            on_token(token_id)

    def _too_fast(self, ids, on_token):
        """Right, and at a rate no memory delivers: everything at once."""
        _echo(ids, on_token)

    def _falls_back(self, ids, on_token):
        _echo(ids, on_token, pause_s=0.01)

    def _hang_in_reply(self, ids, on_token):
        on_token(ids[0])
        time.sleep(600)

    def _die_when_told(self, ids, on_token):
        if len(ids) > 60:
            os._exit(5)
        for token_id in ids[:5]:
            on_token(token_id)

    def _noise(self, ids, on_token):
        libc = ctypes.CDLL(None if os.name != "nt" else "msvcrt")
        for token_id in ids[:5]:
            print('{"type":"Token","not":"ours"}', flush=True)
            libc.printf(b"native noise without a line end")
            libc.fflush(None)
            os.write(1, b"\n\x00\xffraw noise\n")
            on_token(token_id)

    def _ignore_cancel(self, ids, on_token):
        for _ in range(60_000):
            on_token(ids[0])
            time.sleep(0.01)

    def _raise(self, ids, on_token):
        on_token(ids[0])
        raise EngineError("The library said no.", "Try another device.")

    def _no_text(self, ids, on_token):
        pass

    def _circles(self, ids, on_token):
        for _ in range(100):
            on_token(ids[4])


def _echo(ids, on_token, pause_s=0.0):
    for token_id in itertools.cycle(ids):
        if pause_s:
            time.sleep(pause_s)
        if not on_token(token_id):
            return


ENGINE = BadEngine
