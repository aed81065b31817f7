"""Do the memory estimates hold at real size? A random Phi-3 is planned, converted and loaded, and the peaks compared.

    python tests/benchmarks/real_size.py                 # 3.8 B, as Phi-3-mini: 8 GB of disk twice, 12 GB of memory
    python tests/benchmarks/real_size.py --layers 8      # the same model with fewer layers

What does not fit into memory is left out and said so. Exit status 1 when an estimate is more than 25 % off.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(PROJECT))

from engines import spec_by_name  # noqa: E402
from engines.environments.environments import Environments  # noqa: E402
from engines.models.folders import read_manifest  # noqa: E402
from engines.models.library import ModelLibrary  # noqa: E402
from engines.models.model_names import DEMO_FOLDER  # noqa: E402
from engines.protocol import GenerationRequest, Message, Target  # noqa: E402
from engines.runtime.manager import EngineFailure, EngineManager  # noqa: E402
from tests.engines.models.shapes import phi3_shapes, write_random  # noqa: E402

TOLERANCE = 0.25
SIXTEEN_GB_PC = 13_500_000_000
"""What a PC with 16 GB has to spare."""
QUESTION = GenerationRequest((Message("user", "What is an NPU?"),), max_new_tokens=8, ignore_eos=True)


def make_model(folder: Path, layers: int) -> None:
    """Phi-3-mini's shape with random weights and the bundled tokenizer."""
    shapes = phi3_shapes(hidden=3072, layers=layers, vocab=32064, intermediate=8192)
    folder.mkdir(parents=True)
    for path in DEMO_FOLDER.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "hidden_size": 3072,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 8192,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_random(folder / "model.safetensors", shapes)


class Report:
    def __init__(self) -> None:
        self.rows: list[dict] = []

    def add(self, what: str, estimate: int, measured: int, seconds: float) -> None:
        off = estimate / measured - 1
        self.rows.append({"what": what, "estimate_bytes": estimate, "measured_bytes": measured, "off": off})
        print(
            f"{what:44} estimate {estimate / 1e9:6.2f} GB  measured {measured / 1e9:6.2f} GB  "
            f"{off:+5.0%}  {seconds:5.0f} s",
            flush=True,
        )

    @property
    def is_good(self) -> bool:
        return all(abs(row["off"]) <= TOLERANCE for row in self.rows)


def convert(library: ModelLibrary, target: Target, report: Report) -> None:
    spec = spec_by_name(target.engine)
    plan = library.plan(target, spec)
    print("\n".join(f"  {line}" for line in plan.lines()), flush=True)
    if plan.refusal:
        print(f"{target.spelling}: refused, as it must be here; left out", flush=True)
        return
    if plan.ready:
        return
    prepared = library.prepare(target, spec, lambda progress: None, threading.Event())
    manifest = read_manifest(Path(prepared.path))
    report.add(f"convert {target.spelling}", plan.peak_bytes, manifest["peak_rss_bytes"], manifest["seconds"])
    print(
        f"  output estimated {plan.disk_bytes / 1e9:.2f} GB, is {prepared.weight_bytes / 1e9:.2f} GB",
        flush=True,
    )


def load(manager: EngineManager, library: ModelLibrary, target: Target, report: Report) -> None:
    spec = spec_by_name(target.engine)
    if not library.is_ready(target, spec):
        return
    began = time.monotonic()
    try:
        with manager.lease(target) as lease:
            lease.generate("run", QUESTION, lambda event: None)
            peak = manager.state(target).peak_rss_bytes
            report.add(
                f"load {target.spelling}", lease.model.estimated_peak_bytes, peak, time.monotonic() - began
            )
    except EngineFailure as failure:
        print(f"load {target.spelling}: {failure}", flush=True)
    manager.unload(target)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=32, help="32 is Phi-3-mini's 3.8 B; 8 is 1.1 B")
    parser.add_argument("--folder", type=Path, help="work here and keep everything")
    parser.add_argument("--skip-onnx", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="real-size-"))
    report = Report()
    try:
        source = folder / f"phi3-{arguments.layers}-layers"
        if not source.exists():
            make_model(source, arguments.layers)
        library = ModelLibrary(folder / "data")
        onnx = Target("onnxruntime-genai", "CPU", "int4", str(source))
        small_pc = ModelLibrary(folder / "data", memory=lambda: SIXTEEN_GB_PC)
        refusal = small_pc.plan(onnx, spec_by_name(onnx.engine)).refusal
        print(f"On a 16 GB PC, ONNX Runtime int4: {refusal or 'would be tried'}", flush=True)
        targets = [Target("openvino-genai", "CPU", "int4", str(source))]
        targets += [] if arguments.skip_onnx else [onnx]
        for target in targets:
            convert(library, target, report)
        manager = EngineManager(folder / "data", library, Environments(folder / "data"))
        try:
            for target in (targets[0], Target("optimum-intel", "CPU", "int4", str(source)), *targets[1:]):
                load(manager, library, target, report)
        finally:
            manager.shutdown()
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps({"layers": arguments.layers, "within": report.is_good, "rows": report.rows}, indent=1))
    return 0 if report.is_good else 1


if __name__ == "__main__":
    sys.exit(main())
