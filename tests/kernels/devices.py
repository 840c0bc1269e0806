"""Where the CUDA kernels are executed, and how far from double precision they may be."""

from __future__ import annotations

import pytest
import torch

# Relative to the largest value of the compared tensor.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.2e-2}
DTYPES = list(TOLERANCE)
GPU = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA GPU: the kernels were executed by the emulator only"
)


def operator(device: str):
    """The operators that compute on tensors of a device: emulated ones on the CPU."""
    return torch.ops.elsa_emu if device == "cpu" else torch.ops.elsa
