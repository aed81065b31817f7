"""Is the best lane here as fast as llama.cpp? The same random weights, Q4_0 against int4, alternating in one run.

    python tests/benchmarks/llama_cpp.py [--size 120m|1b|3.8b] [--on TARGET …] [--rounds 5] [--environment FOLDER]

llama.cpp comes as llama-cpp-python, built for this processor in an environment of the benchmark's own (a C++ compiler
and cmake are needed; some ten minutes, kept when --environment names a folder). Its model holds every matrix as Q4_0
(4.5 bits a weight) but the output, which is Q8_0 as the lanes' is int8. Both sides read equal prompt token ids, and
decode the same number of tokens; of each, bytes of weights, the median decode rate and TTFT are printed. Exit status
1 where the best lane decodes more slowly than llama.cpp, and 2 where other programs worked meanwhile: llama.cpp's
threads wait for each other in busy loops, so that one other busy program took 94 % off its rate here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from engines.environments.environments import Environments  # noqa: E402
from engines.measure import lanes, prompts, suites  # noqa: E402
from engines.measure.plan import plan  # noqa: E402
from engines.measure.session import Session  # noqa: E402
from engines.models.library import ModelLibrary  # noqa: E402
from engines.protocol import Target  # noqa: E402
from engines.runtime.manager import EngineManager  # noqa: E402
from engines.worker.prompt import PromptEncoder  # noqa: E402
from tests.benchmarks.measure_rehearsal import BARE, SIZES, make_model  # noqa: E402

LANES = ("openvino-genai/CPU/int4", "onnxruntime-genai/CPU/int4")
PACKAGES = ("llama-cpp-python==0.3.36", "gguf==0.19.0")

WRITE_GGUF = """
import json, struct, sys
from pathlib import Path
import gguf, numpy as np
from gguf import GGMLQuantizationType as Type, quants
source, target = Path(sys.argv[1]), sys.argv[2]
config = json.loads((source / "config.json").read_text())
layers, hidden = config["num_hidden_layers"], config["hidden_size"]
writer = gguf.GGUFWriter(target, "phi3")
writer.add_context_length(config["max_position_embeddings"])
writer.add_rope_scaling_orig_ctx_len(config["max_position_embeddings"])
writer.add_embedding_length(hidden)
writer.add_block_count(layers)
writer.add_feed_forward_length(config["intermediate_size"])
writer.add_head_count(config["num_attention_heads"])
writer.add_head_count_kv(config["num_key_value_heads"])
writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
writer.add_rope_dimension_count(hidden // config["num_attention_heads"])
writer.add_rope_freq_base(config["rope_theta"])
writer.add_sliding_window(0)
writer.add_vocab_size(config["vocab_size"])
writer.add_tokenizer_model("none")
names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
for layer in range(layers):
    for theirs, ours in (
        ("self_attn.qkv_proj", "attn_qkv"), ("self_attn.o_proj", "attn_output"), ("mlp.gate_up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
    ):
        names[f"model.layers.{layer}.{theirs}"] = f"blk.{layer}.{ours}"
weights = source / "model.safetensors"
with weights.open("rb") as stream:
    size = struct.unpack("<Q", stream.read(8))[0]
    header = json.loads(stream.read(size))
for name, entry in header.items():
    if name == "__metadata__":
        continue
    begin, end = entry["data_offsets"]
    raw = np.fromfile(weights, np.uint16, (end - begin) // 2, offset=8 + size + begin)
    values = (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    short = names[name.removesuffix(".weight")] + ".weight"
    if values.ndim == 1:
        writer.add_tensor(short, values)
        continue
    kind = Type.Q8_0 if short == "output.weight" else Type.Q4_0
    writer.add_tensor(short, quants.quantize(values, kind), raw_dtype=kind)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""

RUN = """
import json, sys, time
import numpy as np
from llama_cpp import Llama
path, prompts, new_tokens, threads = json.load(sys.stdin)
model = Llama(path, n_ctx=4096, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
found = []
for at, ids in enumerate(prompts):
    model.reset()
    started = time.perf_counter()
    model.eval(ids)
    stamps = []
    for step in range(new_tokens):
        logits = np.ctypeslib.as_array(model._ctx.get_logits_ith(-1), shape=(model.n_vocab(),))
        token = int(logits.argmax())
        stamps.append(time.perf_counter())
        if step + 1 < new_tokens:
            model.eval([token])
    if at:  # the first one warms up
        found.append([stamps[0] - started, (len(stamps) - 1) / (stamps[-1] - stamps[0])])
print(json.dumps(found))
"""


def python_in(folder: Path) -> Path:
    """The Python of an environment that has llama.cpp; built where it is not there yet."""
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
    if subprocess.run([python, "-c", "import llama_cpp, gguf"], capture_output=True, check=False).returncode:
        print("building llama.cpp …", flush=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


def theirs(python: Path, gguf: Path, ids: list[list[int]], threads: int) -> list[tuple[float, float]]:
    """TTFT in seconds and decode rate of each prompt but the first."""
    done = subprocess.run(
        [python, "-c", RUN],
        input=json.dumps([str(gguf), ids, BARE.new_tokens, threads]),
        capture_output=True,
        text=True,
        check=True,
        cwd=tempfile.gettempdir(),
    )
    return json.loads(done.stdout.splitlines()[-1])


def ours(manager: EngineManager, target: Target) -> tuple[list[tuple[float, float]], int | None, int]:
    """The same of a lane, measured as Measure does it, its bytes of weights, and how many repeats were disturbed."""
    suite = suites.Suite("own", "Against llama.cpp", (BARE,), 5, passes=("speed",))
    lane = lanes.lane_of(manager, target)
    done = Session(plan(target.model, [lane], suite), manager, cooldown_s=0.2).run()
    (result,) = done.lanes
    runs = [(r.token_offsets_s[0], r.decode_tok_s) for r in result.repeats if r.counts and r.decode_tok_s]
    return runs, result.weight_bytes, sum(r.disturbed for r in result.repeats)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="1b")
    parser.add_argument("--on", action="append", help="default: " + ", ".join(LANES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of llama.cpp; default: the processor's cores")
    parser.add_argument("--environment", type=Path, help="build llama.cpp here and keep it")
    parser.add_argument("--folder", type=Path, help="keep model and conversions here")
    arguments = parser.parse_args()
    import psutil

    threads = arguments.threads or psutil.cpu_count(logical=False) or 1
    with tempfile.TemporaryDirectory(prefix="llama-cpp-") as temporary:
        folder = arguments.folder or Path(temporary)
        python = python_in(arguments.environment or folder / "environment")
        source, gguf = folder / f"random-{arguments.size}", folder / f"random-{arguments.size}.q4_0.gguf"
        if not source.exists():
            make_model(source, arguments.size)
        if not gguf.exists():
            subprocess.run([python, "-c", WRITE_GGUF, source, gguf], check=True)
        data = folder / "data"
        manager = EngineManager(data, ModelLibrary(data), Environments(data))
        try:
            return compare(manager, source, gguf, python, threads, arguments)
        finally:
            manager.shutdown()


def compare(
    manager: EngineManager,
    source: Path,
    gguf: Path,
    python: Path,
    threads: int,
    arguments: argparse.Namespace,
) -> int:
    targets = [Target.parse(spelling, str(source)) for spelling in arguments.on or LANES]
    for target in targets:
        manager.prepare(target)
    encoder = PromptEncoder(manager.prepare(targets[0]).path)
    found: dict[str, list[tuple[float, float]]] = {"llama.cpp Q4_0": []}
    weights: dict[str, int | None] = {"llama.cpp Q4_0": gguf.stat().st_size}
    disturbed = 0
    for number in range(arguments.rounds):
        ids = [
            encoder.encode_exactly(prompts.request(BARE, 100 * number + n).messages, BARE.prompt_tokens)
            for n in range(6)
        ]
        found["llama.cpp Q4_0"] += theirs(python, gguf, ids, threads)
        for target in targets:
            runs, weights[target.spelling], spoiled = ours(manager, target)
            disturbed += spoiled
            found.setdefault(target.spelling, []).extend(runs)
    rates = {name: statistics.median(rate for _, rate in runs) for name, runs in found.items() if runs}
    for name, rate in rates.items():
        firsts, size = statistics.median(first for first, _ in found[name]), weights[name]
        print(
            f"{name:30} {rate:7.2f} tok/s  TTFT {firsts:.3f} s  {(size or 0) / 1e9:.2f} GB  "
            f"({rate / rates['llama.cpp Q4_0']:.2f} × llama.cpp's decode, {len(found[name])} runs)",
            flush=True,
        )
    if disturbed:
        print(f"{disturbed} repeats were disturbed by other programs: take these figures for nothing.")
        return 2
    best = max(rate for name, rate in rates.items() if name != "llama.cpp Q4_0")
    return 0 if best >= rates["llama.cpp Q4_0"] else 1


if __name__ == "__main__":
    sys.exit(main())
