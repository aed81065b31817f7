"""An engine whose tokenizer lives elsewhere: it answers with pieces of text, as its precision says.

Real worker, real pipe; only the server is missing. `counted` tells how many tokens it made, `silent` does not,
`timed` sends its own time of each token, `stuck` says nothing until it is cancelled.
"""

import time

from engines.engine import AnswerReport, LoadReport, ServedEngine
from engines.protocol import Availability, DeviceStatus, EngineSpec

SPEC = EngineSpec(
    name="served",
    title="Served",
    module="tests.helpers.served_engine",
    devices=(),
    precisions=("counted", "silent", "timed", "stuck"),
    model_format=None,
    settings="names",
)
PIECES = ("One ", "two ", "", "three ", "four.")
TOKENS = 9


class TestServedEngine(ServedEngine):
    spec = SPEC

    def take_settings(self, settings):
        self._names = tuple(settings.get("names", ()))

    def probe(self):
        devices = tuple(DeviceStatus(name, True, models=("large", "small")) for name in self._names)
        return Availability(bool(devices), devices, reason=None if devices else "Nobody is named.")

    def load(self, target, model, cache_dir, on_progress):
        self._habit = target.precision
        return LoadReport(device=target.device, details={"folder": model.path, "names": self._names})

    def answer(self, request, cancelled, on_text):
        if self._habit == "stuck":
            cancelled.wait(60)
            return AnswerReport()
        for piece in (request.messages[-1].content + " ", *PIECES):
            time.sleep(0.02)
            if not on_text(piece, ""):
                break
        if self._habit == "silent":
            return AnswerReport()
        offsets = tuple(0.5 + 0.25 * i for i in range(TOKENS)) if self._habit == "timed" else ()
        return AnswerReport("length", 7, 3, TOKENS, offsets, {"decode_s": 1.5})


ENGINE = TestServedEngine
