"""How much of what a device can compute a training uses: operations counted once, over the device's peak."""

from __future__ import annotations

import copy
import re
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

from .step import Step

BACKWARD = 2  # a backward pass computes two products for each of the forward pass
# TFLOP/s by NVIDIA's data sheets of each GPU, dense (sparsity's factor of 2 left out): float32 (CUDA cores), TF32,
# 16 bits with float32 accumulation (tensor cores); 0: not there. Of GeForce and RTX A6000 by the architectures' white
# papers (GA102, AD102). First match counts.
PEAKS: tuple[tuple[str, float, float, float], ...] = (
    (r"H200 NVL", 60, 417.5, 835.5),
    (r"H200", 67, 494.5, 989.5),
    (r"H100 NVL", 60, 417.5, 835.5),
    (r"H100 PCIe", 51, 378, 756),
    (r"H100( SXM\w*| 80GB HBM3)", 67, 494.5, 989.5),
    (r"A100", 19.5, 156, 312),
    (r"A40", 37.4, 74.8, 149.7),
    (r"A30", 10.3, 82, 165),
    (r"A10", 31.2, 62.5, 125),
    (r"L40S", 91.6, 183, 362),
    (r"L4", 30.3, 60, 121),
    (r"T4", 8.1, 0, 65),
    (r"V100-SXM\w*", 15.7, 0, 125),
    (r"V100-PCIE", 14, 0, 112),
    (r"RTX A6000", 38.7, 77.4, 154.8),
    (r"RTX 6000 Ada", 91.1, 182.1, 364.2),
    (r"RTX 4090", 82.6, 82.6, 165.2),
    (r"RTX 3090", 35.6, 35.6, 71),
)
OTHER = re.compile(r"MIG|Laptop|Max-Q|RTX 4090 D|RTX 3090 Ti")  # names that contain one of another, faster or slower
MEASURED_SECONDS, MOST_SIDE = 0.05, 8192


@dataclass(frozen=True)
class Peak:
    """FLOP/s of a device in a data type, and where the number is from."""

    flops: float
    origin: str


def peak(device: torch.device, precision: str) -> Peak:
    """That of the data sheet where the GPU is known, else what a matrix product reaches here.

    Args:
        precision: float32, bfloat16 or float16.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        fast = torch.get_float32_matmul_precision() != "highest"
        if found := data_sheet(name, "tf32" if precision == "float32" and fast else precision):
            return Peak(found * 1e12, f"{name}'s data sheet")
    return Peak(measured(device, getattr(torch, precision)), "the fastest matrix product measured here")


def data_sheet(name: str, kind: str) -> float:
    """TFLOP/s of a GPU by its name; 0 where it is not known.

    Args:
        kind: float32, tf32, bfloat16 or float16.
    """
    if OTHER.search(name):
        return 0
    for pattern, plain, tf32, half in PEAKS:
        if re.search(rf"(?<![\w-]){pattern}(?!\w)", name.replace("Tesla ", "").replace("NVIDIA ", "")):
            if kind == "bfloat16" and not tf32:
                return 0  # Volta and Turing have no bfloat16
            return {"float32": plain, "tf32": tf32}.get(kind, half)
    return 0


@cache
def measured(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of some matrix products, in ``dtype`` or float32, for a moment each; of large ones where
    there is time for them."""
    return max(_rate(device, kind) for kind in {dtype, torch.float32})


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    best, side, end = 0.0, 256, time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < end:
        one = torch.ones(side, side, device=device, dtype=dtype)
        torch.mm(one, one)  # libraries are loaded and memory is taken
        _wait(device)
        began = time.perf_counter()
        torch.mm(one, one)
        _wait(device)
        seconds = time.perf_counter() - began
        best = max(best, 2 * side**3 / seconds)
        if seconds < MEASURED_SECONDS / 32 and side < MOST_SIDE:
            side *= 2
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def count_flops(step: Step, batch: Any) -> float:
    """Floating-point operations of a training step, for each image of a micro-batch of this shape.

    Those of a forward pass with the loss, of matrix products, convolutions, attention and our operator, times 3: what
    is computed a second time to save memory does not count, what needs no gradient counts as if it did. Nothing that is
    trained changes: a copy of the model is counted, or the model itself in evaluation mode where its weights are spread
    over the processes, which then must all do this together.
    """
    twin = copy.copy(step)
    spread = any(isinstance(parameter, DTensor) for parameter in step.source.parameters())
    if not spread:
        twin.source = twin.model = copy.deepcopy(step.source)
    was_training = twin.model.training
    twin.model.eval()
    # With gradients attention is the products that are counted; of spread weights no backward pass would follow.
    graph, stance = torch.set_grad_enabled(not spread), torch.compiler.set_stance("force_eager")
    with graph, stance, FlopCounterMode(display=False) as counter:
        twin.loss(copy.deepcopy(batch))
    twin.model.train(was_training)
    return counter.get_total_flops() * (1 + BACKWARD) / max(step.count(batch), 1)
