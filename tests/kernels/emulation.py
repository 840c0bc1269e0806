"""Compiles the CUDA sources with the host's C++ compiler, so that they run under the emulator. For tests only.

Outputs lie under ``build/emulated`` and are named after a hash of sources, compiler and flags: unchanged sources are
compiled once.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "kernels" / "csrc"
EMULATOR = Path(__file__).resolve().parent / "emu"
CPP_TESTS = Path(__file__).resolve().parent / "cpp"
BUILD = ROOT / "build" / "emulated"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
FLAGS = ["-std=gnu++20", "-g1", "-Wall", "-Wno-unknown-pragmas", "-Werror", f"-I{EMULATOR}"]
TYPES = ("f32", "f64", "f16", "bf16")
ATTENTION_UNITS = ("launch", *(f"launch_{name}" for name in TYPES))
HADAMARD_UNITS = ("hadamard_launch", *(f"hadamard_{name}" for name in TYPES))
ASAN = ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
TSAN = ["-O0", "-fsanitize=thread"]


def fingerprint(*parts: object) -> str:
    """Hash of every source that a build can see, and of `parts`."""
    digest = hashlib.sha256(repr((COMPILER, parts)).encode())
    for path in sorted([Path(__file__), *CSRC.rglob("*.*"), *EMULATOR.iterdir(), *CPP_TESTS.iterdir()]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compile_objects(sources: list[Path], folder: Path, flags: list[str]) -> list[str]:
    """Compile each source (a .cu file as C++) to an object in `folder`, two at a time at most."""
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(source: Path) -> str:
        target = folder / f"{source.stem}.o"
        run([COMPILER, *FLAGS, *flags, "-c", "-x", "c++", str(source), "-o", str(target)])
        return str(target)

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(compile_one, sources))


def link(objects: list[str], output: Path, flags: list[str]) -> Path:
    """Link to `output`, which appears only when it is complete."""
    partial = output.with_name(output.name + ".partial")
    switches = [flag for flag in flags if not flag.startswith(("-I", "-D", "-l"))]
    libraries = [flag for flag in flags if flag.startswith("-l")]
    run([COMPILER, *switches, *objects, *libraries, "-o", str(partial)])
    partial.replace(output)
    return output


def build(sources: list[Path], output: Path, flags: list[str], link_flags: tuple[str, ...] = ()) -> Path:
    """Compile and link, unless the output is there; one process at a time."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            objects = compile_objects(sources, output.with_suffix(".objects"), flags)
            link(objects, output, [*flags, *link_flags])
            shutil.rmtree(output.with_suffix(".objects"))
    return output


def run(command: list[str], **env: str) -> subprocess.CompletedProcess:
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=900)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} exited with {result.returncode}:\n{result.stdout}{result.stderr}")
    return result


@cache
def library() -> Path:
    """The operator as ``torch.ops.elsa_emu``, on CPU tensors."""
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    target = "-DTORCH_TARGET_VERSION=0x020c000000000000"
    includes = [f"-I{path}" for path in include_paths()]
    flags = ["-O2", "-fPIC", "-shared", "-fvisibility=hidden", target, *includes]
    libraries = [*(f"-L{path}" for path in library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
    output = BUILD / f"op_emu-{fingerprint(flags, torch.__version__)}.so"
    units = [CSRC / "cuda" / f"{unit}.cu" for unit in (*ATTENTION_UNITS, *HADAMARD_UNITS)]
    return build([*units, EMULATOR / "op_emu.cpp"], output, flags, tuple(libraries))


@cache
def program(name: str, *flags: str, units: tuple[str, ...] = ()) -> Path:
    """The C++ test ``cpp/NAME.cpp``, linked with the kernels of these units."""
    output = BUILD / f"{name}-{fingerprint(flags, units)}"
    kernels = [CSRC / "cuda" / f"{unit}.cu" for unit in units]
    return build([*kernels, CPP_TESTS / f"{name}.cpp"], output, list(flags))
