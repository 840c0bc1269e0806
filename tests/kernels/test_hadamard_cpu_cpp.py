"""The C++ test of the Hadamard convolution's CPU kernels: sanitizers, data races, seeded faults."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import emulation
import hadamard_mutants
import pytest

CPU = emulation.CSRC / "cpu"
F32 = emulation.CPP_TESTS / "hadamard_f32.cpp"
# The kernels in lanes are too large for the checks of undefined behaviour, which the compiler takes minutes for.
ADDRESS = ["-O1", "-fsanitize=address"]
RACES = ["-O1", "-fsanitize=thread"]

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler for the C++ tests")


def execute(*units: Path, flags: list[str]) -> str:
    """The last line of the C++ test linked with these units."""
    flags = [*flags, "-Wno-psabi", "-pthread", f"-I{CPU}"]
    name = f"test_hadamard_cpu-{emulation.fingerprint(flags, [unit.name for unit in units])}"
    sources = [*units, emulation.CPP_TESTS / "test_hadamard_cpu.cpp"]
    program = emulation.build(sources, emulation.BUILD / name, flags)
    result = subprocess.run([program], capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.splitlines()[-1]


def test_address_and_undefined_behaviour():
    assert execute(CPU / "plain_hadamard.cpp", flags=emulation.ASAN) == "36 cases, 0 bad"


@pytest.mark.parametrize("unit", [F32, CPU / "avx512_bf16_hadamard.cpp"], ids=lambda unit: unit.stem)
def test_address_in_lanes(unit):
    if execute(unit, flags=ADDRESS) == "0 cases, 0 bad":
        pytest.skip(f"this processor cannot run {unit.stem}")


def test_data_races():
    units = [CPU / "plain_hadamard.cpp", *([F32] if platform.machine() == "x86_64" else [])]
    assert execute(*units, flags=RACES).endswith(" cases, 0 bad")


@pytest.mark.parametrize("mutant", hadamard_mutants.MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_seeded_fault_is_caught(mutant, tmp_path):
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX2, which the faults are compiled for")
    assert hadamard_mutants.catch(mutant, tmp_path / "sources") is not None
