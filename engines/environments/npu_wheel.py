"""Build the Intel NPU Acceleration Library's wheel on Linux, where none is published.

Its source distribution downloads an OpenVINO archive for two Ubuntu releases only. PyPI's `openvino` wheel
of the same version carries the same headers, CMake files and libraries, so it is laid out the way that
archive would be, and a CMake toolchain file points the unchanged source there. Everything comes from the
package index pip is configured for. The build uses -march=native: it is for the machine it runs on.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PACKAGE = "intel-npu-acceleration-library"
OPENVINO = "openvino==2024.4.0"
"""The version the library's CMakeLists.txt names."""
_LIBRARIES = ("_intel_cpu_plugin", "_auto_plugin", "_intel_npu_plugin", "_ir_frontend", "libtbb", "libhwloc")
_NOT_PYTHON = ("libs", "include", "cmake")

RunStep = Callable[..., str]
"""Runs a command line (`env=` adds variables), returns its output, raises on failure or cancel."""


def compiler() -> str | None:
    """Path of the C++ compiler CMake would take; None when there is none."""
    names = (os.environ.get("CXX"), "c++", "g++", "clang++")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def build_wheel(python: Path, requirement: str, work: Path, pip_env: Mapping[str, str], run: RunStep) -> Path:
    """Build `requirement` (`intel-npu-acceleration-library==1.4.0`) with `python`'s pip below the folder `work`.

    `python` needs setuptools. Returns the wheel's path; what `run` raises passes through.
    """
    pip = [str(python), "-m", "pip"]
    work.mkdir(parents=True, exist_ok=True)
    run([*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", str(work), OPENVINO])
    archive = lay_out_openvino(next(work.glob("openvino-*.whl")), work / "openvino")
    toolchain = write_toolchain(archive, work / "toolchain.cmake")
    wheels = work / "wheels"
    wheels.mkdir(exist_ok=True)
    # setuptools comes from the environment itself: an isolated build would fetch whatever is newest.
    command = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--use-pep517", "--no-binary", PACKAGE]
    run(
        [*command, "--wheel-dir", str(wheels), requirement],
        env=_build_env(pip, toolchain, work, pip_env, run),
    )
    return next(wheels.glob("*.whl"))


def lay_out_openvino(wheel: Path, folder: Path) -> Path:
    """Unpack PyPI's OpenVINO wheel in the shape of OpenVINO's own Linux archive; returns its root."""
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    package = (
        folder / "openvino"
    )  # stays here: the CMake files look for libraries and headers beside runtime/
    libraries = folder / "runtime" / "lib" / "intel64"
    libraries.mkdir(parents=True)
    shutil.copytree(package / "cmake", folder / "runtime" / "cmake")
    for path in (package / "libs").iterdir():
        if any(part in path.name for part in _LIBRARIES):
            shutil.copy2(path, libraries)
    core = next((package / "libs").glob("libopenvino.so.*"))
    shutil.copy2(core, libraries)  # the plugins ask for the versioned name,
    shutil.copy2(core, libraries / "libopenvino.so")  # the Python package for this one
    bindings = folder / "python" / "openvino"
    shutil.copytree(
        package, bindings, ignore=lambda where, _names: _NOT_PYTHON if Path(where) == package else ()
    )
    return folder


def write_toolchain(openvino: Path, path: Path) -> Path:
    """A CMake toolchain file that makes FetchContent take the folder instead of a download."""
    path.write_text(
        'set(OV_LIBRARY_URL "unused" CACHE STRING "")\n'
        f'set(FETCHCONTENT_SOURCE_DIR_OPENVINO "{openvino.as_posix()}" CACHE PATH "")\n',
        encoding="utf-8",
    )
    return path


def _build_env(
    pip: Sequence[str], toolchain: Path, work: Path, pip_env: Mapping[str, str], run: RunStep
) -> dict[str, str]:
    env = {"CMAKE_TOOLCHAIN_FILE": str(toolchain), "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    path = pip_env.get("PATH", os.defpath)
    wanted = {
        "cmake": work / "tools" / "cmake" / "data" / "bin",
        "ninja": work / "tools" / "bin",
    }
    if shutil.which("cmake"):
        del wanted["cmake"]
    if shutil.which("make"):
        del wanted["ninja"]
    elif shutil.which("ninja"):
        del wanted["ninja"]
        env["CMAKE_GENERATOR"] = "Ninja"
    else:
        env["CMAKE_GENERATOR"] = "Ninja"
    if wanted:
        run([*pip, "install", "--only-binary=:all:", "--target", str(work / "tools"), *wanted])
        path = os.pathsep.join([*(str(folder) for folder in wanted.values()), path])
    return {**env, "PATH": path}
