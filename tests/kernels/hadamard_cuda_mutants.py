"""Seeded faults in the CUDA sources of the Hadamard convolution, as mutants.py has them for the other operator.

``python tests/kernels/hadamard_cuda_mutants.py`` prints which build caught what; test_cuda_emulated_cpp.py runs them.
"""

from __future__ import annotations

import sys
import tempfile
from functools import cache, partial
from pathlib import Path

import emulation
from mutants import BUILDS, Mutant, report, sources, verdict

TYPES = {"f16": "__half", "f32": "float"}
WORK = tempfile.TemporaryDirectory(prefix="elsa-hadamard-cuda-mutants-")  # removed when the process ends

# By the storage type whose kernels are compiled.
MUTANTS = {
    "f16": (
        Mutant("no barrier before the window is read", "hadamard_conv.cuh",
               "return __syncthreads_count(strange) > 0;", "return strange;"),
        Mutant("no barrier before sums take the window's place", "hadamard_conv.cuh",
               "      __syncthreads();  // the window is no longer read\n", ""),
        Mutant("no barrier before the sums are read", "hadamard_conv.cuh",
               "      engine.write(plane);\n      __syncthreads();\n", "      engine.write(plane);\n"),
        Mutant("channels beyond the last are written", "hadamard_conv.cuh",
               "if (at < 0 || channel >= a.layout.channels) continue;", "if (at < 0) continue;"),
        Mutant("too little shared memory", "hadamard_conv.cuh",
               "(plane_floats + Engine::shared_floats)", "(plane_floats + Engine::shared_floats - 4)"),
        Mutant("taps are not mirrored", "hadamard_engines.cuh", "K * K - 1 - dy * K - dx]", "dy * K + dx]"),
        Mutant("a unit's second position has the first one's taps", "hadamard_engines.cuh",
               "(2 * t + n) / W - g / W", "(2 * t + n) / W"),
        Mutant("rows of matrices are not aligned", "hadamard_engines.cuh",
               "(lane % 8 + lane / 16) * 8", "(lane % 8 + lane / 16) * 4"),
        Mutant("upper and lower half change places", "hadamard_weights.cuh",
               "products.at(quarter / 2 * kHalfRows", "products.at(quarter % 2 * kHalfRows"),
        Mutant("later turns overwrite the first", "hadamard_weights.cuh", "turn == 0 ? sum : to + sum", "sum"),
    ),
    "f32": (
        Mutant("no barrier between tiles of the weights' gradient", "hadamard_weights.cuh",
               "    __syncthreads();\n    sums.add", "    sums.add"),
        Mutant("two threads share their sums of the bias", "hadamard_weights.cuh",
               "bias_sums + threadIdx.x * kPiece", "bias_sums + threadIdx.x / 8 * 8 * kPiece"),
        Mutant("the window's right border is missed", "hadamard_tile.cuh",
               "col >= cols; col -= cols", "col > cols; col -= cols"),
        Mutant("rows of the window overlap", "hadamard_tile.cuh",
               "row_stride = groups * stride * W;", "row_stride = groups * stride * W - 4;"),
        Mutant("the rest is not copied to its end", "hadamard_generic.cuh",
               "n < packs; n += 32", "n < packs - 1; n += 32"),
        Mutant("generic: the last tap of an axis is left out", "hadamard_generic.cuh",
               "half + after + 1 :", "half + after :"),
    ),
}  # fmt: skip
CASES = tuple((storage, mutant) for storage, mutants in MUTANTS.items() for mutant in mutants)


@cache
def unchanged_objects(build: str, storage: str) -> list[str]:
    """Everything of the C++ test that no mutant touches."""
    flags = [*BUILDS[build], f"-DELSA_PRESENT={TYPES[storage]}"]
    units = [
        emulation.CSRC / "cuda" / "hadamard_launch.cu",
        *(emulation.CPP_TESTS / f"{x}.cpp" for x in ("only_hadamard", "test_hadamard_kernels")),
    ]
    return emulation.compile_objects(units, Path(WORK.name) / f"{build}_{storage}", flags)


def catch(storage: str, mutant: Mutant | None, work: Path) -> str | None:
    """Which build notices the fault, and how; None if none does. Without a mutant: the clean sources."""
    folder = sources(mutant, work)
    for build, flags in BUILDS.items():
        kernels = emulation.compile_objects([folder / "cuda" / f"hadamard_{storage}.cu"], folder / build, flags)
        program = emulation.link([*unchanged_objects(build, storage), *kernels], folder / f"test_{build}", flags)
        for order in ("fwd", "rev", "3") if build == "address" else ("fwd",):
            if words := verdict(program, order, storage):
                return f"{build}, order {order}: {words}"
    return None


if __name__ == "__main__":
    place = Path(WORK.name) / "sources"
    sys.exit(sum(report(mutants, partial(catch, storage, work=place)) for storage, mutants in MUTANTS.items()))
