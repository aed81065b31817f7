"""Does Measure measure? On a random model of real shape: twice the same, and the same as the bare library.

    python tests/benchmarks/measure_rehearsal.py                      # ~120 M, two quick measurements, bare script
    python tests/benchmarks/measure_rehearsal.py --size 1b --suite standard
    python tests/benchmarks/measure_rehearsal.py --size 3.8b --tune   # 8 GB of disk twice, 12 GB of memory, an hour

1. Two consecutive measurements: every lane's intervals of TTFT, decode rate and whole answer overlap.
2. A lane measured alone against a script that drives OpenVINO GenAI with the same token ids and nothing of ours
   between: the medians of the decode rate within 3 %.
3. With --load: a busy program started on purpose; its repeats must be marked as disturbed.

Exit status 1 when one of them fails. Prints what it found as a table and, with --json, as a document.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from engines.environments.environments import Environments  # noqa: E402
from engines.measure import lanes, prompts, suites, tables, tuner  # noqa: E402
from engines.measure.plan import plan  # noqa: E402
from engines.measure.records import Case, Measurement  # noqa: E402
from engines.measure.session import Session  # noqa: E402
from engines.measure.spread import case_figures  # noqa: E402
from engines.models.library import ModelLibrary  # noqa: E402
from engines.models.model_names import DEMO_FOLDER  # noqa: E402
from engines.protocol import Target  # noqa: E402
from engines.runtime.manager import EngineManager  # noqa: E402
from engines.worker.prompt import PromptEncoder  # noqa: E402
from tests.engines.models.shapes import phi3_shapes, write_random  # noqa: E402

SIZES = {
    "120m": {"hidden": 768, "layers": 10, "intermediate": 2048, "heads": 12},
    "1b": {"hidden": 2048, "layers": 18, "intermediate": 5632, "heads": 16},
    "3.8b": {"hidden": 3072, "layers": 32, "intermediate": 8192, "heads": 32},
}
VOCABULARY = 32064
LANES = ("openvino-genai/CPU/int4", "onnxruntime-genai/CPU/int4")
AGREEMENT = 0.03
BARE = Case("bare", "Against the bare library", "chat", 128, 64)
PAIRS, BLOCK = 10, 4
"""Blocks of Measure and of the bare script, and the repeats in each."""
_METRICS = ("ttft_s", "decode_tok_s", "answer_s")


def make_model(folder: Path, size: str) -> None:
    """Phi-3's architecture with random weights and the bundled tokenizer."""
    shape = SIZES[size]
    folder.mkdir(parents=True)
    for path in DEMO_FOLDER.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["heads"],
        "intermediate_size": shape["intermediate"],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 8192,
        "original_max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_random(
        folder / "model.safetensors",
        phi3_shapes(
            hidden=shape["hidden"],
            layers=shape["layers"],
            vocab=VOCABULARY,
            intermediate=shape["intermediate"],
        ),
    )


def measure(manager: EngineManager, model: str, spellings: list[str], suite: str) -> Measurement:
    chosen = [lanes.lane_of(manager, Target.parse(spelling, model)) for spelling in spellings]
    wanted = replace(suites.named(suite), passes=("speed",))
    return Session(plan(model, chosen, wanted), manager).run()


def twice(first: Measurement, second: Measurement) -> bool:
    """Whether all intervals of one overlap those of the other."""
    good = True
    for result in first.measured:
        again = second.lane(result.lane.key)
        for case in first.suite.cases:
            before, now = case_figures(result.repeats, case.name), case_figures(again.repeats, case.name)
            for metric in _METRICS:
                if metric not in before or metric not in now:
                    continue
                a, b = before[metric], now[metric]
                overlap = a.low <= b.high and b.low <= a.high
                good &= overlap
                print(
                    f"{result.lane.key:30} {case.name:20} {metric:14} {tables.spelled(a):34} "
                    f"{tables.spelled(b):34} {b.median / a.median - 1:+6.1%} {'' if overlap else 'APART'}",
                    flush=True,
                )
    return good


_SCRIPT = """
import json, sys, time
import numpy as np, openvino, openvino_genai
folder, prompts, new_tokens = json.load(sys.stdin)
scheduler = openvino_genai.SchedulerConfig()
scheduler.enable_prefix_caching = True
scheduler.max_num_batched_tokens = 1 << 30
scheduler.dynamic_split_fuse = False
pipeline = openvino_genai.LLMPipeline(
    folder, "CPU", scheduler_config=scheduler, ATTENTION_BACKEND="PA", PERFORMANCE_HINT="LATENCY")
config = openvino_genai.GenerationConfig()
config.max_new_tokens, config.ignore_eos, config.apply_chat_template = new_tokens, True, False
rates = []
for at, ids in enumerate(prompts):
    stamps = []
    def on_token(_token):
        stamps.append(time.perf_counter())
        return openvino_genai.StreamingStatus.RUNNING
    class Streamer(openvino_genai.StreamerBase):
        def write(self, token): return on_token(token)
        def end(self): pass
    pipeline.generate(openvino.Tensor(np.array([ids], dtype=np.int64)), config, Streamer())
    if at:
        rates.append((len(stamps) - 1) / (stamps[-1] - stamps[0]))
print(json.dumps(rates))
"""


def bare(folder: str, rounds: range) -> list[float]:
    """Decode rates of a script that knows the library and nothing of ours; the first prompt warms up."""
    encoder = PromptEncoder(folder)
    ids = [
        encoder.encode_exactly(prompts.request(BARE, number).messages, BARE.prompt_tokens)
        for number in rounds
    ]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT],
        input=json.dumps([folder, ids, BARE.new_tokens]),
        capture_output=True,
        text=True,
        check=True,
        cwd=tempfile.gettempdir(),
    )
    return json.loads(done.stdout.splitlines()[-1])


def against_bare(manager: EngineManager, model: str) -> bool:
    """Blocks of Measure and of the bare script in turn, first one and then the other first.

    This machine's speed wanders by more from minute to minute than the two may differ: compared is each block with
    its neighbour, and the median of the ratios is judged.
    """
    target = Target.parse(LANES[0], model)
    folder = manager.prepare(target).path
    suite = suites.Suite("own", "Bare", (BARE,), BLOCK, passes=("speed",))

    def ours() -> float:
        done = Session(plan(model, [lanes.lane_of(manager, target)], suite), manager, cooldown_s=0.2).run()
        rates = [r.decode_tok_s for r in done.lanes[0].repeats if r.counts and r.decode_tok_s]
        return statistics.median(rates) if len(rates) >= BLOCK else float("nan")  # disturbed: not compared

    ratios = []
    for number in range(PAIRS):
        prompts_of_block = range(100 * number, 100 * number + BLOCK + 1)
        if number % 2:
            measured, raw = ours(), statistics.median(bare(folder, prompts_of_block))
        else:
            raw, measured = statistics.median(bare(folder, prompts_of_block)), ours()
        ratios.append(measured / raw)
        print(f"measured {measured:.2f} tok/s, bare script {raw:.2f}: {ratios[-1] - 1:+.1%}", flush=True)
    undisturbed = [ratio for ratio in ratios if ratio == ratio]
    if len(undisturbed) < PAIRS // 2:
        print(f"only {len(undisturbed)} of {PAIRS} pairs were undisturbed")
        return False
    ratio = statistics.median(undisturbed)
    print(f"decode rate of {target.spelling}, measured against bare: {ratio - 1:+.1%} (median)", flush=True)
    return abs(ratio - 1) <= AGREEMENT


def under_load(manager: EngineManager, model: str) -> bool:
    """A program that keeps every core busy is noticed, told, and its repeats are not counted."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        suite = suites.Suite("own", "Loaded", (BARE,), 1, passes=("speed",))
        lane = lanes.lane_of(manager, Target.parse(LANES[0], model))
        done = Session(plan(model, [lane], suite), manager, cooldown_s=0).run()
    finally:
        for burner in burners:
            burner.kill()
    repeats = done.lanes[0].repeats
    print(f"under load: {len(repeats)} repeats, {[r.disturbance for r in repeats][:1]}", flush=True)
    return bool(repeats) and all(r.disturbed and r.disturbance for r in repeats)


def tune(manager: EngineManager, model: str, spellings: list[str]) -> None:
    for spelling in spellings:
        found = tuner.tune(manager, Target.parse(spelling, model), 600)
        print(f"{spelling}: {found.why}", flush=True)
        for trial in found.trials:
            took = "failed" if trial.seconds is None else f"{trial.seconds:.3f} s"
            print(f"    round {trial.round}: {tuner.spelled(trial.settings)}: {took}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="120m")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--on", action="append", help="default: " + ", ".join(LANES))
    parser.add_argument("--only", choices=("twice", "bare", "load", "tune"))
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--folder", type=Path, help="keep model and conversions here")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="rehearsal-"))
    source = folder / f"random-{arguments.size}"
    if not source.exists():
        make_model(source, arguments.size)
    manager = EngineManager(folder / "data", ModelLibrary(folder / "data"), Environments(folder / "data"))
    spellings = arguments.on or list(LANES)
    good = True
    try:
        if arguments.only in (None, "bare"):
            good &= against_bare(manager, str(source))
        if arguments.only in (None, "load"):
            good &= under_load(manager, str(source))
        if arguments.only in (None, "twice"):
            made = [measure(manager, str(source), spellings, arguments.suite) for _ in range(2)]
            good &= twice(*made)
        if arguments.tune or arguments.only == "tune":
            tune(manager, str(source), spellings)
    finally:
        manager.shutdown()
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print("good" if good else "NOT GOOD")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
