"""The emulator's own test, and the kernels' C++ test: sanitizers, thread orders, seeded faults."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import emulation
import hadamard_cuda_mutants
import mutants
import pytest

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="no C++ compiler for the emulated kernels")


def execute(program: Path, *arguments: str, order: str = "fwd") -> subprocess.CompletedProcess:
    env = {**os.environ, "CUEMU_ORDER": order, "TSAN_OPTIONS": "exitcode=66"}
    return subprocess.run([program, *arguments], capture_output=True, text=True, env=env, timeout=600, check=False)


OPERATORS = {"test_kernels": emulation.ATTENTION_UNITS, "test_hadamard_kernels": emulation.HADAMARD_UNITS}


@pytest.mark.parametrize("order", ["fwd", "rev", "7"])
@pytest.mark.parametrize("name", OPERATORS)
def test_address_and_undefined_behaviour(name, order):
    result = execute(emulation.program(name, *emulation.ASAN, units=OPERATORS[name]), order=order)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", OPERATORS)
def test_data_races(name):
    result = execute(emulation.program(name, *emulation.TSAN, units=OPERATORS[name]))
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("flags", [[], ["-DCUEMU_UCONTEXT"], emulation.ASAN, emulation.TSAN], ids=" ".join)
def test_emulator(flags):
    """Results and reported errors; the fallback for other processors; and that the sanitizers see through it."""
    program = emulation.program("test_emulator", *flags)
    result = execute(program)
    assert result.returncode == 0, result.stdout + result.stderr
    if flags == emulation.ASAN:
        assert "use-after-poison" in execute(program, "overrun").stderr
    if flags == emulation.TSAN:
        assert "data race" in execute(program, "race").stderr


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_seeded_fault_is_caught(mutant, tmp_path):
    assert mutants.catch(mutant, tmp_path / "sources") is not None


@pytest.mark.parametrize(
    "storage, mutant", hadamard_cuda_mutants.CASES, ids=lambda x: x if isinstance(x, str) else x.name.replace(" ", "-")
)
def test_seeded_fault_in_the_hadamard_convolution_is_caught(storage, mutant, tmp_path):
    assert hadamard_cuda_mutants.catch(storage, mutant, tmp_path / "sources") is not None
