"""What one core, or a GPU, can compute at most: the measure that shares of the peak are of."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from elsa.engine.utilisation import peak as product_peak

# Twelve independent sums in registers hide the latency of two multiply-add units (four cycles each, and more).
# Starting values differ, or the compiler would compute one sum.
SOURCE = """
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float Vector __attribute__((vector_size(BYTES)));
enum { SUMS = 12, LANES = BYTES / 4 };
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

template <bool pairs> static double loop(long turns, float* values) {
    Vector sums[SUMS], factor, term;
    for (int i = 0; i < SUMS; ++i)
        for (int j = 0; j < LANES; ++j) sums[i][j] = values[j] + i;
    for (int j = 0; j < LANES; ++j) { factor[j] = values[j]; term[j] = values[j] * 0.5f; }
    for (long turn = 0; turn < turns; ++turn) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; ++i) {
#if defined(__AVX512BF16__)
            if (pairs) sums[i] = (Vector)_mm512_dpbf16_ps((__m512)sums[i], (__m512bh)factor, (__m512bh)term);
            else
#endif
            sums[i] = sums[i] * factor + term;
        }
    }
    Vector total = sums[0];
    for (int i = 1; i < SUMS; ++i) total += sums[i];
    for (int j = 0; j < LANES; ++j) values[j] = total[j];
#if defined(__AVX512BF16__)
    if (pairs) return 2.0 * SUMS * LANES * turns;
#endif
    return 1.0 * SUMS * LANES * turns;
}
extern "C" double float32_loop(long turns, float* values) { return loop<false>(turns, values); }
extern "C" double bfloat16_loop(long turns, float* values) { return loop<true>(turns, values); }
"""
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC")
TURNS, REPETITIONS = 1_000_000, 40


class PeakRate(NamedTuple):
    """Multiply-adds per second of one core (of a GPU: of all of it), and what they are from."""

    rate: float
    origin: str


def peak_rate(device: torch.device, dtype: str) -> PeakRate:
    """That of a loop of multiply-adds in registers, made for this processor; where there is no compiler, and where a
    matrix product is faster (its units may be others), that of the fastest product; of a GPU by its data sheet.

    Args:
        dtype: float32 or bfloat16.
    """
    if device.type == "cuda":
        found = product_peak(device, dtype)
        return PeakRate(found.flops / 2, found.origin)
    rates = [PeakRate(_product(dtype), "the fastest of oneDNN's matrix products")]
    if (rate := _loop(dtype)) is not None:
        rates.insert(0, PeakRate(rate, "a loop of multiply-adds in registers"))
    return max(rates, key=lambda one: one.rate)


@cache
def _loop(dtype: str) -> float | None:
    """None without a compiler, or for one that takes other words."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "loop.cpp", Path(folder) / "loop.so"
        source.write_text(SOURCE)
        if subprocess.run([compiler, *FLAGS, source, "-o", library], capture_output=True).returncode:
            return None
        loop = ctypes.CDLL(str(library))[f"{dtype}_loop"]
    loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.POINTER(ctypes.c_float)]
    best = 0.0
    for _ in range(REPETITIONS):
        values = (ctypes.c_float * 16)(*[0.5] * 16)
        start = time.thread_time()
        done = loop(TURNS, values)
        best = max(best, done / (time.thread_time() - start))
    return best


@cache
def _product(dtype: str) -> float:
    """Of square products by one thread, inputs in the caches."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = 0.0
    for side in (256, 512):
        one = torch.ones(side, side, dtype=getattr(torch, dtype))
        calls = [lambda one=one: torch.mm(one, one)]
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            calls.append(lambda one=one: torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], ""))
        for call in calls:
            for _ in range(REPETITIONS // 4):
                start = time.thread_time()
                call()
                best = max(best, side**3 / (time.thread_time() - start))
    torch.set_num_threads(threads)
    return best
