"""Child process that converts one model: `python -m engines.models.conversion.worker`, one JSON job on stdin.

It runs the converters as anyone would from a command line, then checks what they wrote, gives it the source's
tokenizer and chat template, writes the manifest, and only then gives the folder its final name.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.engine import EngineError
from engines.models.conversion.check import check_converted
from engines.models.folders import (
    MANIFEST,
    MANIFEST_VERSION,
    ONNXRUNTIME_GENAI,
    OPENVINO,
    damage,
    file_sizes,
    read_manifest,
    remove_folder,
    take_prompt_files,
    total_weight_bytes,
    write_json,
)
from engines.models.plan import size
from engines.processes.jobs import ChildEnd
from engines.processes.locks import wait_for_lock
from engines.toolkit.library_errors import is_memory_error
from engines.toolkit.process_facts import memory_bytes
from engines.toolkit.putting import put_in_place
from engines.worker.prompt import PromptEncoder

_POLL_S = 0.5
_FULL_BYTES = 2**20
"""A disk with less than that free is full: what did not fit is larger."""
_STREAM_FAILED = ("basic_ios::clear", "iostream error", "ios_base::failbit")


class ConversionError(Exception):
    """What the converter did that is not an exception of its own."""


def main() -> int:
    temporary: list[Path] = []

    def clean_up() -> None:
        for path in temporary:
            shutil.rmtree(path, ignore_errors=True)

    child = ChildEnd(clean_up)
    job = child.job
    temporary.append(Path(job["temporary"]))
    try:
        child.result(_make(job, child))
    except EngineError as error:
        full = _disk_full(error, job)
        child.error(*(full or (str(error), error.remedy)), error.kind)
    except MemoryError:
        traceback.print_exc()
        child.error("There was not enough memory for the conversion.", _remedy(job), "memory")
    except BaseException as error:  # noqa: BLE001 — the libraries raise anything, SystemExit included
        traceback.print_exc()
        full = _disk_full(error, job)
        child.error(
            *(full or (_explain(error, job), _remedy(job))), "memory" if is_memory_error(error) else "model"
        )
    return 0


def _make(job: Mapping[str, Any], child: ChildEnd) -> dict[str, Any]:
    folder, temporary = Path(job["folder"]), Path(job["temporary"])

    def waiting() -> None:
        child.progress("queue", "Waiting for another conversion to end")

    with wait_for_lock(Path(job["models_dir"]) / "conversion.lock", waiting, _POLL_S):
        return _make_alone(job, child, folder, temporary)


def _make_alone(job: Mapping[str, Any], child: ChildEnd, folder: Path, temporary: Path) -> dict[str, Any]:
    _sweep(Path(job["models_dir"]))
    manifest = read_manifest(folder)
    if manifest is not None and damage(folder, manifest["files"]) is None:
        return manifest  # another process made it meanwhile
    remove_folder(folder)
    PromptEncoder(Path(job["source"]))  # what no prompt can be made with is not worth converting
    temporary.mkdir(parents=True)
    scratch = temporary / "scratch"
    scratch.mkdir()
    tempfile.tempdir = str(scratch)

    started = time.monotonic()
    with _LogProgress(child, job):
        _CONVERTERS[job["recipe"]["format"]](job, temporary, scratch)
    _refuse_invented_weights(Path(job["log_path"]))
    shutil.rmtree(scratch, ignore_errors=True)
    child.progress("convert", "Checking the result", 0.97)
    take_prompt_files(Path(job["source"]), temporary, job["recipe"]["format"])
    check_converted(temporary, job["recipe"])
    manifest = _manifest(job, temporary, time.monotonic() - started)
    write_json(temporary / MANIFEST, manifest)
    put_in_place(temporary, folder)
    return manifest


def _sweep(models_dir: Path) -> None:
    """Remove what killed conversions left; safe because the lock is ours."""
    for pattern in ("*/.making-*", "*/.removing-*"):
        for path in models_dir.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def _manifest(job: Mapping[str, Any], folder: Path, seconds: float) -> dict[str, Any]:
    sizes = file_sizes(folder)
    return {
        "manifest_version": MANIFEST_VERSION,
        "model": job["model"],
        "format": job["recipe"]["format"],
        "precision": job["recipe"]["precision"],
        "revision": job["revision"],
        "recipe": job["recipe"],
        "recipe_sha256": job["recipe_sha256"],
        "files": sizes,
        "weight_bytes": total_weight_bytes(sizes),
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "expected_s": job.get("expected_s"),
        "peak_rss_bytes": memory_bytes()[1],
    }


# --- converters --------------------------------------------------------------------------------------------


def _to_openvino(job: Mapping[str, Any], output: Path, _scratch: Path) -> None:
    from optimum.commands.optimum_cli import main as optimum_cli

    options = job["recipe"]["options"]
    arguments = ["optimum-cli", "export", "openvino", "--model", job["source"]]
    arguments += ["--task", options["task"], "--weight-format", options["weight_format"]]
    arguments += ["--library", "transformers"]
    for option in ("group_size", "ratio", "group_size_fallback"):
        if option in options:
            arguments += [f"--{option.replace('_', '-')}", str(options[option])]
    if options.get("sym"):
        arguments.append("--sym")
    if job["trust_remote_code"]:
        arguments.append("--trust-remote-code")
    sys.argv = [*arguments, str(output)]
    _log(" ".join(sys.argv))
    optimum_cli()


def _to_onnxruntime_genai(job: Mapping[str, Any], output: Path, scratch: Path) -> None:
    from onnxruntime_genai.models.builder import create_model

    options = dict(job["recipe"]["options"])
    provider = options.pop("execution_provider")
    _log(f"create_model {job['recipe']['precision']} {provider} {options}")
    create_model(
        job["model"],
        job["source"],
        str(output),
        job["recipe"]["precision"],
        provider,
        str(scratch / "cache"),
        hf_remote=bool(job["trust_remote_code"]),  # the builder's own default is to run a repository's code
        hf_token="false",
        **options,
    )


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


_CONVERTERS = {OPENVINO: _to_openvino, ONNXRUNTIME_GENAI: _to_onnxruntime_genai}


def _refuse_invented_weights(log_path: Path) -> None:
    """transformers fills tensors that a checkpoint lacks with random numbers and only mentions it."""
    text = log_path.read_text(encoding="utf-8", errors="replace") if log_path.exists() else ""
    missing = list(
        dict.fromkeys(re.findall(r"^(\S+)\s*\|\s*MISSING\b", text, re.MULTILINE))
    )  # the library may say it twice
    if missing:
        raise ConversionError(
            f"the checkpoint lacks {len(missing)} tensors of its architecture, for example {missing[0]}"
        )


# --- progress and reasons ----------------------------------------------------------------------------------


class _LogProgress:
    """Reads the libraries' own progress out of the log while they work."""

    def __init__(self, child: ChildEnd, job: Mapping[str, Any]):
        self._child = child
        self._path = Path(job["log_path"])
        self._layers = job.get("layers")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _LogProgress:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        best = ("", 0.0)
        self._child.progress("convert", "Loading the conversion libraries", 0.0)
        while not self._stopped.wait(_POLL_S):
            stage = read_stage(self._tail(), self._layers)
            if stage is not None and stage != best and stage[1] >= best[1]:
                best = stage
                self._child.progress("convert", *stage)

    def _tail(self) -> str:
        try:
            with self._path.open("rb") as log:
                log.seek(max(0, log.seek(0, 2) - 8192))
                return log.read().decode("utf-8", "replace")
        except OSError:
            return ""


_STAGES = (
    # (pattern, text, fraction at 0 %, fraction at 100 %); the last match in the log decides
    (re.compile(r"Loading weights:\s+(\d+)%"), "Reading the weights", 0.05, 0.2),
    (re.compile(r"TracerWarning()"), "Tracing the model", 0.25, 0.25),
    (re.compile(r"Mixed-Precision assignment\D*(\d+)%"), "Choosing the precision of each layer", 0.3, 0.45),
    (re.compile(r"Applying Weight Compression\D*(\d+)%"), "Compressing the weights", 0.45, 0.9),
    (re.compile(r"Reading decoder layer()"), "Building the graph", 0.2, 0.2),
    (re.compile(r"quantization of /model/layers\.(\d+)/"), "Compressing the weights", 0.3, 0.8),
    (re.compile(r"Saving [^\n\r]*?:\s+(\d+)%"), "Writing the weights", 0.8, 0.95),
)


def read_stage(log_tail: str, layers: int | None) -> tuple[str, float] | None:
    """(what is being done, fraction done) from the end of a converter's log; None when it says nothing."""
    last = None
    for pattern, text, start, end in _STAGES:
        for match in pattern.finditer(log_tail):
            if last is None or match.start() >= last[0]:
                scale = (layers or 32) if "layers" in pattern.pattern else 100
                done = min(1.0, int(match.group(1) or 0) / scale)
                last = (match.start(), text, start + (end - start) * done)
    return None if last is None else (last[1], round(last[2], 3))


def _explain(error: BaseException, job: Mapping[str, Any]) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, LookupError):  # of a missing key only the key is said
        reason = f"{type(error).__name__}: {reason}"
    if len(reason) > 400:
        reason = reason[:400] + "…"
    return f"{job['model']} could not be converted to {job['recipe']['format']}: {reason}"


def _disk_full(error: BaseException, job: Mapping[str, Any]) -> tuple[str, str] | None:
    """(what happened, what to do) where the disk took no more; native code says only that a stream failed."""
    no_space = getattr(error, "errno", None) in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    free = shutil.disk_usage(job["models_dir"]).free
    if not no_space and free >= _FULL_BYTES and not any(sign in str(error) for sign in _STREAM_FAILED):
        return None
    return (
        f"{job['model']} could not be converted to {job['recipe']['format']}: its files could not be written, with "
        f"{size(free)} free on the disk.",
        f"Free some space on the disk of {job['models_dir']}, or choose another one with --data-dir.",
    )


def _remedy(job: Mapping[str, Any]) -> str:
    return f"The whole story is in {job['log_path']}"


if __name__ == "__main__":
    sys.exit(main())
