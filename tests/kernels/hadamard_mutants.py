"""Seeded faults in the Hadamard convolution's CPU kernels, each of which the C++ test must catch.

``python tests/kernels/hadamard_mutants.py`` prints how; test_hadamard_cpu_cpp.py runs the same.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import emulation
from mutants import Mutant, report, sources

MUTANTS = (
    Mutant("rows of the ring overwrite each other", "hadamard_lanes.h", "(y + K) % K * stride",
           "(y + K) % (K - 1) * stride"),
    Mutant("the end of a row is not zero", "hadamard_lanes.h", "at = (columns + K / 2) * N; at", "at = stride; at"),
    Mutant("the first rows are not there", "images.h", "y < first_row + reach && y", "y < first_row && y"),
    Mutant("taps are not mirrored", "hadamard_lanes.h", "Mirrored ? kTaps - 1 - tap - n : tap + n", "tap + n"),
    Mutant("outputs beyond the last row of taps", "hadamard_lanes_backward.h", "const int64_t out = y + R - j;",
           "const int64_t out = y + j - R;"),
    Mutant("the key's gradient is not scaled", "hadamard_lanes_backward.h", "acc[p] * scale * q", "acc[p] * q"),
    Mutant("the bias is not added", "hadamard_lanes_forward.h", "bias ? load_channels", "!bias ? load_channels"),
    Mutant("the last slot is not reduced", "hadamard_lanes_backward.h", "slot < g.slots; ++slot",
           "slot < g.slots - 1; ++slot"),
    Mutant("the slope has the wrong sign", "gelu.h", "? -correction", "? correction"),
    Mutant("the end of the rest is lost", "hadamard_rest.h", "(rest + kLine - 1) / kLine", "rest / kLine"),
    Mutant("offsets are taken for taps", "hadamard_planes_backward.h", "planes.kernel - 1 - (t - skip)", "t - skip"),
    Mutant("rows of taps outside the map", "hadamard_planes.h", "first = y < reach ? reach - y : 0", "first = 0"),
)  # fmt: skip

FLAGS = ["-O1", "-Wno-psabi", "-pthread"]
WORK = tempfile.TemporaryDirectory(prefix="elsa-hadamard-mutants-")  # removed when the process ends


@cache
def test_object() -> list[str]:
    return emulation.compile_objects([emulation.CPP_TESTS / "test_hadamard_cpu.cpp"], Path(WORK.name), FLAGS)


def catch(mutant: Mutant | None, work: Path) -> str | None:
    """What the test says of the fault; None if it is content. Without a mutant: the clean sources."""
    folder = sources(mutant, work, "cpu")
    flags = [*FLAGS, f"-I{folder / 'cpu'}"]
    kernels = emulation.compile_objects([emulation.CPP_TESTS / "hadamard_f32.cpp"], work, flags)
    program = emulation.link([*test_object(), *kernels], work / "test", flags)
    result = subprocess.run([program], capture_output=True, text=True, timeout=300, check=False)
    if result.returncode == 0:
        return None
    match = re.search(r"WRONG \w+", result.stdout)
    return match[0] if match else f"exit status {result.returncode}"


if __name__ == "__main__":
    sys.exit(report(MUTANTS, lambda mutant: catch(mutant, Path(WORK.name) / "sources")))
