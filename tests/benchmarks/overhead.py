"""What the worker around an engine costs, against the same library driven by a bare script.

    python tests/benchmarks/overhead.py [--engine NAME …] [--rounds N] [--json]

Makes a Phi-3 model of over 100 million random parameters, converts it, and runs the same prompt on the same target
in two processes, alternating: a bare script that calls the library as its own samples do, and our worker, behind
the manager. Then eight turns of a chat with the worker. Wants:

    decode rate, ours / bare            >= 0.98      (median over the rounds of the ratio)
    TTFT, ours - bare                   <= 15 ms     (median over the rounds of the difference)
    TTFT of turn 8 / TTFT of turn 1     <= 1.5       (prompts grow, the kept KV cache makes up for it)

Optimum Intel misses the last one on the CPU: the stateful attention of OpenVINO's CPU plugin, the only one that
library runs, takes the new tokens of a prompt one at a time once anything is kept. Keeping the cache is still far
cheaper than computing a long chat again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from engines import ENGINES  # noqa: E402
from engines.environments.environments import Environments  # noqa: E402
from engines.models.library import ModelLibrary  # noqa: E402
from engines.protocol import Finished, GenerationRequest, Message, Target  # noqa: E402
from engines.runtime.manager import EngineManager  # noqa: E402
from engines.worker.prompt import PromptEncoder  # noqa: E402

WEIGHTS = PROJECT / "engines" / "demo_model" / "weights"
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 10,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
}
QUESTION = "Tell me what a neural processing unit is good for, and what it is not good for. " * 5
PRECISIONS = {"transformers": "bf16"}
REPLY_TOKENS = 48
FOLLOW_UP_TOKENS = 16
CHATS, TURNS = 3, 8
MIN_DECODE_RATIO, MAX_TTFT_DIFFERENCE_S, MAX_TURN_RATIO = 0.98, 0.015, 1.5


def make_model(folder: Path) -> int:
    """A Phi-3 of random weights with the bundled model's tokenizer; returns its number of parameters."""
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    small = json.loads((WEIGHTS / "config.json").read_text(encoding="utf-8"))
    shared = {name: small[name] for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model = Phi3ForCausalLM(Phi3Config(**shared, **SHAPE)).to(torch.bfloat16)
    # It says whole words only: like a real reply, and unlike random bytes, they come back as the same tokens.
    vocabulary = json.loads((WEIGHTS / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = torch.zeros(small["vocab_size"], 1, dtype=torch.bfloat16)
    words[[number for text, number in vocabulary.items() if re.fullmatch("Ġ[a-z]+", text)]] = 1
    model.lm_head.weight.data *= words
    model.save_pretrained(folder)
    for path in WEIGHTS.glob("*"):
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    return sum(weight.numel() for weight in model.parameters())


# --- the bare scripts: each library as its own samples use it ------------------------------------------------

_BARE_LOOP = """
import json, sys, time
{setup}
for line in sys.stdin:
    ids = json.loads(line)
    times = []
    started = time.perf_counter()
{generate}
    print(json.dumps([t - started for t in times]), flush=True)
"""

_BARE_OPENVINO_GENAI = (
    """
import numpy, openvino, openvino_genai as genai
PROPERTIES = {properties!r}
pipe = genai.LLMPipeline({folder!r}, {device!r}, **PROPERTIES)
class Streamer(genai.StreamerBase):
    def write(self, token):
        times.append(time.perf_counter())
        return genai.StreamingStatus.RUNNING
    def end(self): pass
config = genai.GenerationConfig(max_new_tokens={tokens}, ignore_eos=True)
""",
    """
    pipe.generate(openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), config, Streamer())
""",
)

_BARE_GENERATE = """
    model.generate(torch.tensor([ids]), attention_mask=torch.ones((1, len(ids)), dtype=torch.int64),
        max_new_tokens={tokens}, min_new_tokens={tokens}, do_sample=False, streamer=Streamer())
"""
_BARE_STREAMER = """
class Streamer:
    def __init__(self): self.prompt = True
    def put(self, value):
        if not self.prompt: times.append(time.perf_counter())
        self.prompt = False
    def end(self): pass
"""
_BARE_OPTIMUM_INTEL = (
    """
import torch
from optimum.intel.openvino import OVModelForCausalLM
PROPERTIES = {properties!r}
model = OVModelForCausalLM.from_pretrained({folder!r}, device={device!r}, ov_config=PROPERTIES, export=False)
"""
    + _BARE_STREAMER,
    _BARE_GENERATE,
)

_BARE_TRANSFORMERS = (
    """
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({folder!r}, dtype=torch.bfloat16)
"""
    + _BARE_STREAMER,
    _BARE_GENERATE,
)

_BARE_ONNXRUNTIME_GENAI = (
    """
import onnxruntime_genai as og
config = og.Config({folder!r}); config.overlay('{{"model": {{"eos_token_id": [2147483647]}}}}')
model = og.Model(config)
params = og.GeneratorParams(model)
params.set_search_options(max_length=4096, do_sample=False)
""",
    """
    generator = og.Generator(model, params)
    started = time.perf_counter()
    generator.append_tokens(ids)
    for _ in range({tokens}):
        generator.generate_next_token()
        generator.get_next_tokens()
        times.append(time.perf_counter())
""",
)
BARE = {
    "openvino-genai": _BARE_OPENVINO_GENAI,
    "optimum-intel": _BARE_OPTIMUM_INTEL,
    "onnxruntime-genai": _BARE_ONNXRUNTIME_GENAI,
    "transformers": _BARE_TRANSFORMERS,
}


class BareScript:
    """A process that loads the model with the raw library and times one generation per line of token ids."""

    def __init__(self, target: Target, folder: str, cache_dir: Path):
        import importlib

        spec = next(spec for spec in ENGINES if spec.name == target.engine)
        settle = getattr(importlib.import_module(spec.module), "device_properties", None)
        facts = {
            "folder": folder,
            "device": target.device,
            "tokens": REPLY_TOKENS,
            "properties": settle(target.device, str(cache_dir)) if settle else {},
        }
        setup, generate = (part.format(**facts) for part in BARE[target.engine])
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _BARE_LOOP.format(setup=setup, generate=generate)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def token_offsets_s(self, ids: list[int]) -> list[float]:
        self._process.stdin.write(json.dumps(ids) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("["):
                return json.loads(line)
        raise SystemExit("the bare script ended")

    def close(self) -> None:
        self._process.kill()  # some libraries take their time to leave
        self._process.wait()


# --- measuring -----------------------------------------------------------------------------------------------


def decode_tok_s(offsets: list[float]) -> float:
    return (len(offsets) - 1) / (offsets[-1] - offsets[0])


def compare(manager: EngineManager, target: Target, cache_dir: Path, rounds: int) -> dict:
    """Alternate the bare script and the worker on prompts that differ from their first token on."""
    with manager.lease(target) as lease:
        encoder = PromptEncoder(lease.model.path)
        bare = BareScript(target, lease.model.path, cache_dir)
        pairs = []
        for number in range(rounds + 1):
            messages = (Message("user", f"{number} {QUESTION}"),)
            request = GenerationRequest(messages, REPLY_TOKENS, ignore_eos=True, reuse_kv_cache=False)
            ids = encoder.encode(messages)

            def ours(request=request):
                outcome = lease.generate("run", request, lambda event: None)
                assert isinstance(outcome, Finished), outcome
                return list(outcome.metrics.token_offsets_s)

            def theirs(ids=ids):
                return bare.token_offsets_s(ids)

            first, second = (ours, theirs) if number % 2 else (theirs, ours)
            times = {first: first(), second: second()}
            pairs.append((times[ours], times[theirs]))
        bare.close()
        pairs = pairs[1:]  # the first warms both up
        return {
            "prompt_tokens": len(ids),
            "decode_tok_s": statistics.median(decode_tok_s(ours) for ours, _ in pairs),
            "bare_decode_tok_s": statistics.median(decode_tok_s(theirs) for _, theirs in pairs),
            "decode_ratio": statistics.median(decode_tok_s(o) / decode_tok_s(t) for o, t in pairs),
            "ttft_s": statistics.median(ours[0] for ours, _ in pairs),
            "bare_ttft_s": statistics.median(theirs[0] for _, theirs in pairs),
            "ttft_difference_s": statistics.median(o[0] - t[0] for o, t in pairs),
        }


def follow_up(manager: EngineManager, target: Target) -> dict:
    """TTFT of each of eight turns of a chat, the same question every time; the median over some chats."""
    chats, cached = [], []
    with manager.lease(target) as lease:
        for chat in range(CHATS + 1):
            messages, ttfts, cached = (), [], []
            for _turn in range(TURNS):
                messages = (*messages, Message("user", f"{chat} {QUESTION}"))
                request = GenerationRequest(messages, FOLLOW_UP_TOKENS, ignore_eos=True)
                outcome = lease.generate("run", request, lambda event: None)
                assert isinstance(outcome, Finished), outcome
                messages = (*messages, Message("assistant", outcome.text))
                ttfts.append(outcome.metrics.ttft_s)
                cached.append(outcome.metrics.cached_prompt_tokens)
            chats.append(ttfts)
    chats = chats[1:]  # the first warms up
    return {
        "turn_ttft_s": [statistics.median(turn) for turn in zip(*chats, strict=True)],
        "cached_prompt_tokens": cached,
        "turn_ratio": statistics.median(ttfts[-1] / ttfts[0] for ttfts in chats),
    }


def verdict(figures: dict, reuses: bool) -> dict[str, bool]:
    return {
        "decode": figures["decode_ratio"] >= MIN_DECODE_RATIO,
        "ttft": figures["ttft_difference_s"] <= MAX_TTFT_DIFFERENCE_S,
        "follow-up": not reuses or figures["turn_ratio"] <= MAX_TURN_RATIO,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", action="append", choices=sorted(BARE), help="default: all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work-dir", type=Path, help="keep the model and its conversions here")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (arguments.work_dir or Path(temporary)).resolve()
        model = work / "random-phi3"
        if not (model / "config.json").exists():
            model.mkdir(parents=True)
            print(f"made a model of {make_model(model) / 1e6:.0f} M parameters", file=sys.stderr)
        results = {name: measure(name, model, work, arguments.rounds) for name in arguments.engine or BARE}
    if arguments.json:
        print(json.dumps(results, indent=1))
    return 0 if all(all(figures["passed"].values()) for figures in results.values()) else 1


def measure(name: str, model: Path, work: Path, rounds: int) -> dict:
    spec = next(spec for spec in ENGINES if spec.name == name)
    target = Target(name, "CPU", PRECISIONS.get(name, "int4"), str(model))
    manager = EngineManager(work, ModelLibrary(work), Environments(work))
    try:
        figures = compare(manager, target, work / "bare-cache", rounds) | follow_up(manager, target)
    finally:
        manager.shutdown()
    figures["passed"] = verdict(figures, spec.reuses_kv_cache)
    turns = figures["turn_ttft_s"]
    print(
        f"{target.spelling:28s} decode {figures['decode_tok_s']:6.1f} tok/s, "
        f"bare {figures['bare_decode_tok_s']:6.1f}, ratio {figures['decode_ratio']:.3f}; "
        f"TTFT {figures['ttft_s'] * 1000:6.0f} ms, difference {figures['ttft_difference_s'] * 1000:+6.1f} ms; "
        f"turn 1 {turns[0] * 1000:.0f} ms, turn {TURNS} {turns[-1] * 1000:.0f} ms, "
        f"ratio {figures['turn_ratio']:.2f}; {figures['passed']}",
        file=sys.stderr,
    )
    return figures


if __name__ == "__main__":
    sys.exit(main())
