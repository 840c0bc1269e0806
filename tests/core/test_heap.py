"""Freed memory is kept: a second round of the same blocks is not faulted in again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

ROUNDS = """
import ctypes, json, resource, sys
from elsa.core import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: where huge pages are always used, faults are few
kept = keep_freed_memory() if sys.argv[1] == "kept" else None

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(2**20) for _ in range(200)]
    for block in blocks:
        ctypes.memset(block, 1, 2**20)
    for block in reversed(blocks):
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(), faults()
print(json.dumps([kept, faults()]))
"""


def rounds(how: str, **environment: str) -> list[object]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    said = subprocess.run(
        [sys.executable, "-c", ROUNDS, how], env=clean | environment, capture_output=True, text=True, check=True
    )
    return json.loads(said.stdout)


def has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


@pytest.mark.skipif(not has_glibc(), reason="needs the GNU C library")
def test_a_second_round_of_the_same_blocks_is_not_faulted_in_again():
    (_, given_back), (kept, again) = rounds("given back"), rounds("kept")
    assert kept is True
    assert given_back > 20_000 and again < 500  # of 51,200 pages


def test_settings_of_the_environment_are_left_alone():
    assert rounds("kept", MALLOC_TRIM_THRESHOLD_="1000000")[0] is False
