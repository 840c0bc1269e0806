"""The one door to the ELSA operator: checks its arguments, chooses a backend, and words every refusal."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from . import library
from .reference import elsa_attention_reference

BACKENDS = ("auto", "reference", "cpu", "cuda")
FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def elsa_attention(
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None = None,
    ghost_add: Tensor | None = None,
    *,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    attn_drop: float = 0.0,
    backend: str = "auto",
) -> Tensor:
    """ELSA's local aggregation: softmax over K² taps, ghost head, weighted sum of the neighbours' values.

    The softmax is neither masked nor renormalised at the border: taps outside the map keep their share and
    multiply zero. Released weights depend on it.

    Args:
        value: (B, H, W, C), channels last.
        logits: (B, H, W, G·K²) in value's dtype, head-major (entry g·K² + t), taps row by row from the top left.
            Under autocast, value and logits are cast to its dtype first (float64 excepted).
        ghost_mul, ghost_add: (C, K²) in value's dtype or float32; None means 1 and 0.
        num_heads: G, a divisor of C.
        kernel_size: K, odd.
        dilation: distance between taps, in positions.
        attn_drop: dropout probability between softmax and ghost head; pass 0 outside training. The fused
            backends have none, so a positive value runs the reference.
        backend: one of ``BACKENDS``. "auto" takes the compiled kernels of value's device where they are available and
            the reference elsewhere; the environment variable ``ELSA_BACKEND`` may name its choice. A backend asked for
            by name never falls back to another.

    Returns:
        (B, H, W, C) in value's dtype. Half-precision inputs are accumulated in float32.

    Raises:
        TypeError: an input is not a floating-point tensor, or dtypes or devices differ.
        ValueError: a shape, size or backend name is not allowed; the message names it.
        RuntimeError: the backend asked for cannot run here, or not on these tensors; the message says why.
    """
    if isinstance(value, Tensor) and isinstance(logits, Tensor):
        value, logits = library.autocast_inputs(value, logits)
    _check(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, attn_drop)
    chosen = _choose(backend, value, attn_drop)
    if chosen == "reference":
        return elsa_attention_reference(
            value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, attn_drop
        )
    accumulate = torch.float64 if value.dtype == torch.float64 else torch.float32
    ghost_mul, ghost_add = (None if ghost is None else ghost.to(accumulate) for ghost in (ghost_mul, ghost_add))
    return torch.ops.elsa.attention_forward(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation)


def backend_info() -> dict[str, Any]:
    """Which backends can run here, and for the others the reason why not: ``{name: "available" | reason}``."""
    info = {"reference": "available"}
    for name, obstacle in library.OBSTACLES.items():
        info[name] = obstacle or "available"
    if info["cuda"] == "available" and not torch.cuda.is_available():
        info["cuda"] = "the CUDA kernels are compiled, but torch sees no GPU"
    if info["cpu"] == "available":
        try:
            info["cpu_instruction_set"] = library.cpu_instruction_set()
        except RuntimeError as error:  # ELSA_CPU_ISA names one that this processor does not have
            info["cpu"] = str(error)
    return info


def _choose(backend: str, value: Tensor, attn_drop: float) -> str:
    """The backend that runs: the one asked for if it can, else an error that says why it cannot."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} does not exist; choose one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = os.environ.get("ELSA_BACKEND", "auto")
        if backend not in BACKENDS:
            raise ValueError(f"ELSA_BACKEND is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "reference":
        return backend
    obstacle = _obstacle(value.device.type if backend == "auto" else backend, value, attn_drop)
    if backend == "auto":
        return "reference" if obstacle else value.device.type
    if obstacle:
        raise RuntimeError(f"backend {backend!r} cannot run: {obstacle}")
    return backend


def _obstacle(backend: str, value: Tensor, attn_drop: float) -> str | None:
    if backend not in library.OBSTACLES:
        return f"there are no kernels for {backend} tensors"
    if library.OBSTACLES[backend] is not None:
        return library.OBSTACLES[backend]
    if value.device.type != backend:
        return f"value is on {value.device}"
    if attn_drop > 0:
        return f"it has no attention dropout, and attn_drop is {attn_drop}"
    return None


def _check(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, attn_drop) -> None:
    for name, number in (("num_heads", num_heads), ("kernel_size", kernel_size), ("dilation", dilation)):
        if isinstance(number, bool) or not isinstance(number, (int, torch.SymInt)):
            raise TypeError(f"{name} must be an int, got {number!r}")
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}; try {kernel_size - 1} or {kernel_size + 1}")
    if not 0.0 <= attn_drop < 1.0:
        raise ValueError(f"attn_drop must be in [0, 1), got {attn_drop}")

    inputs = {"value": value, "logits": logits, "ghost_mul": ghost_mul, "ghost_add": ghost_add}
    tensors = {name: tensor for name, tensor in inputs.items() if tensor is not None or not name.startswith("ghost")}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        if tensor.dtype not in FLOATING:
            raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
        if tensor.device != value.device:
            raise TypeError(f"{name} is on {tensor.device}, value on {value.device}; put both on one device")
        if tensor.dtype != value.dtype and not (name.startswith("ghost") and tensor.dtype == torch.float32):
            raise TypeError(f"{name} has dtype {tensor.dtype}, value {value.dtype}; they must agree")

    if value.ndim != 4:
        raise ValueError(f"value must be (B, H, W, C), got shape {tuple(value.shape)}")
    batch, height, width, channels = value.shape
    if height == 0 or width == 0 or channels == 0:
        raise ValueError(f"value needs at least one position and one channel, got shape {tuple(value.shape)}")
    if channels % num_heads:
        raise ValueError(f"num_heads must divide the channels: {channels} channels, {num_heads} heads")
    expected = (batch, height, width, num_heads * kernel_size**2)
    if tuple(logits.shape) != expected:
        raise ValueError(f"logits must be (B, H, W, G·K²) = {expected}, got shape {tuple(logits.shape)}")
    for name in ("ghost_mul", "ghost_add"):
        if name in tensors and tuple(tensors[name].shape) != (channels, kernel_size**2):
            raise ValueError(
                f"{name} must be (C, K²) = {(channels, kernel_size**2)}, got shape {tuple(tensors[name].shape)}"
            )
