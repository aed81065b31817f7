"""An echo of the end of the prompt, however long the chat before it: for streaming into a page with much history."""

import dataclasses

from engines.engine import LoadReport
from tests.helpers.echo_engine import SPEC as ECHO_SPEC
from tests.helpers.echo_engine import EchoEngine

SPEC = dataclasses.replace(
    ECHO_SPEC, name="steady", title="Steady echo", module="tests.benchmarks.steady_engine"
)


class SteadyEngine(EchoEngine):
    spec = SPEC

    def load(self, target, model, cache_dir, on_progress):
        super().load(target, model, cache_dir, on_progress)
        return LoadReport(device=target.device)

    def generate(self, prompt_ids, request, stop_ids, on_token):
        return super().generate(prompt_ids[-request.max_new_tokens - 4 :], request, stop_ids, on_token)


ENGINE = SteadyEngine
