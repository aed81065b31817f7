"""What an isolated environment is, and everything that decides its content.

A name, a pinned requirements file and an interpreter to build on; the key of its folder is a hash of these and of
the kind of machine, so nothing stale is ever taken for what is wanted.
"""

from __future__ import annotations

import contextlib
import hashlib
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engines.engine import EngineError
from engines.environments.interpreters import Interpreter

MAIN = "main"

_INSTRUCTION_SETS = (
    "adx",
    "aes",
    "amx",
    "avx",
    "bmi",
    "f16c",
    "fma",
    "gfni",
    "movbe",
    "sha",
    "sse",
    "ssse",
    "vaes",
)


class SetUpError(EngineError):
    """An environment could not be created; the log has every line."""

    kind = "unavailable"


class SetUpCancelledError(EngineError):
    kind = "cancelled"


@dataclass(frozen=True)
class EnvironmentSpec:
    """What an isolated environment is made of."""

    name: str
    title: str
    requirements: Path
    pythons: tuple[tuple[int, int], ...]
    """Python versions it works on, best first."""
    imports: tuple[str, ...]
    """Modules that must import for it to count as working."""
    distributions: tuple[str, ...]
    """Packages whose versions are worth showing."""
    disk_bytes: int
    """Free space wanted before starting, downloads included."""
    machines: tuple[str, ...] = ("amd64", "x86_64")
    platforms: tuple[str, ...] = ("win32", "linux")
    source_package: str | None = None
    """Package that is built from source where there is no wheel (engines/environments/npu_wheel.py)."""


ENVIRONMENTS: tuple[EnvironmentSpec, ...] = (
    EnvironmentSpec(
        name="intel-npu",
        title="Intel NPU Acceleration Library",
        requirements=Path(__file__).with_name("intel_npu.txt"),
        pythons=((3, 11), (3, 12)),
        imports=("intel_npu_acceleration_library", "transformers", "tokenizers", "jinja2", "psutil"),
        distributions=(
            "intel-npu-acceleration-library",
            "neural-compressor",
            "transformers",
            "torch",
            "numpy",
            "tokenizers",
        ),
        disk_bytes=3_000_000_000,
        source_package="intel-npu-acceleration-library",
    ),
)


@dataclass(frozen=True)
class EnvironmentStatus:
    """How an environment stands: `ready`, `missing`, `outdated`, `broken` or `impossible`."""

    name: str
    title: str
    state: str
    interpreter: Path | None = None
    python_version: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int | None = None
    set_up_s: float | None = None
    """How long the set-up took."""
    reason: str | None = None
    remedy: str | None = None
    log_path: Path | None = None

    @property
    def ready(self) -> bool:
        return self.state == "ready"


def requirements_sha256(spec: EnvironmentSpec) -> str:
    """Hash of the pins alone: comments and line ends do not rebuild gigabytes."""
    lines = spec.requirements.read_text(encoding="utf-8").splitlines()
    pins = [line.split(" #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]
    return hashlib.sha256("\n".join(pins).encode()).hexdigest()


def machine_fingerprint(spec: EnvironmentSpec) -> str:
    """What a build from source depends on: -march=native code runs on the same kind of processor only."""
    parts = [sys.platform, platform.machine()]
    if spec.source_package is not None and sys.platform == "linux":
        with contextlib.suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
            # Only instruction sets: a kernel update adds and removes other flags.
            parts += sorted(flag for flag in flags if flag.startswith(_INSTRUCTION_SETS))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def environment_key(spec: EnvironmentSpec, base: Interpreter) -> str:
    """Folder name of an environment: everything that decides its content."""
    parts = [requirements_sha256(spec), base.executable, base.version_text, machine_fingerprint(spec)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
