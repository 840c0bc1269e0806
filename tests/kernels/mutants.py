"""Seeded faults in the CUDA sources, each of which some build of the C++ test must catch.

``python tests/kernels/mutants.py`` prints which build caught what; test_cuda_emulated_cpp.py runs the same.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import emulation


@dataclass(frozen=True)
class Mutant:
    """One textual change; `before` must occur exactly once in the file."""

    name: str
    file: str
    before: str
    after: str


MUTANTS = (
    Mutant("no barrier before the taps are summed", "aggregate.cuh",
           "      __syncthreads();\n      Pair sum", "      Pair sum"),
    Mutant("no barrier between channels", "aggregate.cuh",
           "      if (c0 > 0) __syncthreads();  // the previous channels are no longer read\n", ""),
    Mutant("no barrier after the tile's position is known", "aggregate.cuh",
           "*tile = locate_tile(m, index);\n    __syncthreads();", "*tile = locate_tile(m, index);"),
    Mutant("no barrier between row sums", "gradients.cuh",
           "  __syncthreads();  // also: the ghost sums have read the weights\n", ""),
    Mutant("no barrier before the logits' gradients are written", "gradients.cuh",
           "    __syncthreads();\n    write_dlogits", "    write_dlogits"),
    Mutant("no barrier before the reduction's second half", "reduce.cuh",
           "  sums[group][column] = sum;\n  __syncthreads();", "  sums[group][column] = sum;"),
    Mutant("the map's right border is one too far", "tile.cuh", "x >= m.width) return -1", "x > m.width) return -1"),
    Mutant("a channel beyond the head is written", "aggregate.cuh", "if (left > 1) to[1]", "to[1]"),
    Mutant("too little shared memory", "aggregate.cuh",
           "size_t(rows) * stride * sizeof(T)", "size_t(rows - 1) * stride * sizeof(T)"),
    Mutant("rows of the window overlap", "gradients.cuh",
           "stride = cols * channels + pad,", "stride = cols * channels - 2,"),
    Mutant("a return before a barrier", "reduce.cuh", "  A sum = 0;\n", "  A sum = 0;\n  if (n >= count) return;\n"),
    Mutant("divergent shuffle", "generic.cuh",
           "    mean = warp_sum(mean);\n", "    if (lane < a.head_channels) mean = warp_sum(mean);\n"),
    Mutant("the softmax's maximum is not shared", "tile.cuh", "top = larger(top, __shfl_xor_sync(kWarpMask, top, d))",
           "top = larger(top, top)"),
    Mutant("outside positions keep a weight of the softmax", "tile.cuh", "if (at < 0) top = 0;", ""),
    Mutant("ghosts are not flipped", "tile.cuh", "FLIP ? TAPS - 1 - tap : tap", "tap"),
    Mutant("the last slot is not reduced", "reduce.cuh", "slot < slots; slot +=", "slot < slots - 1; slot +="),
    Mutant("dilation moves the phase", "tile.cuh", "m.dilation + tile.phase_x", "m.dilation + tile.phase_y"),
)  # fmt: skip

BUILDS = {"address": emulation.ASAN, "thread": emulation.TSAN}
WORK = tempfile.TemporaryDirectory(prefix="elsa-mutants-")  # removed when the process ends


def sources(mutant: Mutant | None, work: Path, part: str = "cuda") -> Path:
    """A copy of the sources of ``part`` ("cpu" or "cuda") in an emptied folder, with the fault."""
    if work.exists():
        shutil.rmtree(work)
    folder = work / "csrc"
    shutil.copytree(emulation.CSRC, folder, ignore=shutil.ignore_patterns("cpu" if part == "cuda" else "cuda"))
    if mutant is None:
        return folder
    path = folder / part / mutant.file
    text = path.read_text()
    if text.count(mutant.before) != 1:
        raise ValueError(f"mutant {mutant.name!r}: its text occurs {text.count(mutant.before)} times in {mutant.file}")
    path.write_text(text.replace(mutant.before, mutant.after))
    return folder


@cache
def unchanged_objects(name: str) -> list[str]:
    """Everything of the C++ test that no mutant touches."""
    flags = BUILDS[name]
    units = [
        emulation.CSRC / "cuda" / "launch.cu",
        *(emulation.CPP_TESTS / f"{x}.cpp" for x in ("only_f32", "test_kernels")),
    ]
    return emulation.compile_objects(units, Path(WORK.name) / name, flags)


def build(folder: Path, name: str) -> Path:
    """The C++ test over the kernels in `folder`, for float alone."""
    flags = BUILDS[name]
    kernels = emulation.compile_objects([folder / "cuda" / "launch_f32.cu"], folder / name, flags)
    return emulation.link([*unchanged_objects(name), *kernels], folder / f"test_{name}", flags)


def verdict(program: Path, order: str = "fwd", argument: str = "f32") -> str | None:
    """What the test program says, in a few words; None if it is content."""
    env = {**os.environ, "CUEMU_ORDER": order, "TSAN_OPTIONS": "exitcode=66"}
    result = subprocess.run([program, argument], capture_output=True, text=True, env=env, timeout=300, check=False)
    if result.returncode == 0:
        return None
    text = result.stdout + result.stderr
    for pattern in (r"CAUGHT cuemu: (.*)", r"AddressSanitizer: ([\w-]+)", r"ThreadSanitizer: ([\w ]+)",
                    r"runtime error: (.*)", r"(WRONG \w+)"):  # fmt: skip
        if match := re.search(pattern, text):
            return match[1][:100]
    return f"exit status {result.returncode}"


def catch(mutant: Mutant | None, work: Path) -> str | None:
    """Which build notices the fault, and how; None if none does. Without a mutant: the clean sources."""
    folder = sources(mutant, work)
    for name in BUILDS:
        program = build(folder, name)
        for order in ("fwd", "rev", "3") if name == "address" else ("fwd",):
            if words := verdict(program, order):
                return f"{name}, order {order}: {words}"
    return None


def report(mutants: Iterable[Mutant], catch: Callable[[Mutant | None], str | None]) -> int:
    """Prints what caught the clean sources, which nothing should, and each fault; how many went wrong."""
    clean = catch(None)
    print(f"{'clean sources':55} {clean or 'no report'}", flush=True)
    wrong = int(clean is not None)
    for mutant in mutants:
        caught = catch(mutant)
        wrong += caught is None
        print(f"{mutant.name:55} {caught or 'NOT CAUGHT'}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(report(MUTANTS, lambda mutant: catch(mutant, Path(WORK.name) / "sources")))
