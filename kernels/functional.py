"""The one door to the native operators: checks their arguments, chooses a backend, and words every refusal."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from . import library
from .linear import linear_info
from .portable import gathered_attention, is_portable
from .reference import elsa_attention_reference, hadamard_convolution_reference

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
        value, logits = library.autocast_inputs(value.device.type, value, logits)
    _check(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, attn_drop)
    if _choose(backend, value, attn_drop) == "reference":
        run = gathered_attention if is_portable() else elsa_attention_reference
        return run(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, attn_drop)
    accumulate = torch.float64 if value.dtype == torch.float64 else torch.float32
    ghost_mul, ghost_add = (None if ghost is None else ghost.to(accumulate) for ghost in (ghost_mul, ghost_add))
    return torch.ops.elsa.attention_forward(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation)


def hadamard_convolution(
    packed: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    dilation: int = 1,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Hadamard attention up to its 1×1 convolution: ``GELU(conv_K×K(query · key · scale) + bias)``.

    Args:
        packed: (B, H, W, D), channels last: C_q channels of queries, C_q of keys, and any others, those of the values.
        weight: (C_q, width, K, K) in packed's dtype, of a convolution with C_q / width groups; K is odd.
            Under autocast packed, weight and bias are cast to its dtype first (float64 excepted).
        bias: (C_q,) in packed's dtype.
        scale: factor on query · key.
        dilation: distance between taps, in positions.
        backend: as of elsa_attention. On a GPU "auto" is PyTorch's convolution (the reference), unless ``ELSA_BACKEND``
            says cuda: which one is faster depends on the GPU; ``tools/benchmark.py op --device cuda`` tells.

    Returns:
        (local, rest): (B, H, W, C_q) and the other channels of packed, (B, H, W, D − 2·C_q), a view that must not be
        written to. Both in packed's dtype. They come from one function so that one gradient of packed can be filled.

    Raises:
        TypeError, ValueError, RuntimeError: as elsa_attention.
    """
    tensors = (packed, weight, bias)
    if all(isinstance(tensor, Tensor) for tensor in tensors[:2]):
        packed, weight, bias = library.autocast_inputs(packed.device.type, *tensors)
    _check_hadamard(packed, weight, bias, scale, dilation)
    if _choose(backend, packed, unmeasured=("cuda",)) == "reference":
        return hadamard_convolution_reference(packed, weight, bias, scale, dilation)
    return library.hadamard(packed, weight, bias, float(scale), dilation)


def backend_info() -> dict[str, Any]:
    """Which backends can run here, and for the others the reason why not: ``{name: "available" | reason}``.

    Also the instruction set of the CPU kernels, and by whose product linear layers are computed (``linear``).
    """
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
    info["linear"] = linear_info()
    return info


def _choose(backend: str, tensor: Tensor, attn_drop: float = 0.0, unmeasured: tuple[str, ...] = ()) -> str:
    """The backend that runs: the one asked for if it can, else an error that says why it cannot.

    ``unmeasured`` names those that "auto" does not take. Portable graphs hold the reference's operators, unless
    another backend is asked for by name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} does not exist; choose one of {', '.join(BACKENDS)}")
    if backend == "auto":
        backend = os.environ.get("ELSA_BACKEND", "auto")
        if backend not in BACKENDS:
            raise ValueError(f"ELSA_BACKEND is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "reference" or (backend == "auto" and is_portable()):
        return "reference"
    device = tensor.device.type
    obstacle = _obstacle(device if backend == "auto" else backend, tensor, attn_drop)
    if backend == "auto":
        return "reference" if obstacle or device in unmeasured else device
    if obstacle:
        raise RuntimeError(f"backend {backend!r} cannot run: {obstacle}")
    return backend


def _obstacle(backend: str, tensor: Tensor, attn_drop: float) -> str | None:
    if backend not in library.OBSTACLES:
        return f"there are no kernels for {backend} tensors"
    if library.OBSTACLES[backend] is not None:
        return library.OBSTACLES[backend]
    if tensor.device.type != backend:
        return f"the tensors are on {tensor.device}"
    if torch._C._are_functorch_transforms_active():
        return "it has no rules for torch.func's transforms"
    if attn_drop > 0:
        return f"it has no attention dropout, and attn_drop is {attn_drop}"
    return None


def _check_number(name: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")


def _check_tensor(name: str, tensor: Any, first: str, like: Tensor, float32: bool = False) -> None:
    """A floating-point tensor on the device and in the dtype of ``like``, named ``first``; or in float32 as well."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")
    if tensor.device != like.device:
        raise TypeError(f"{name} is on {tensor.device}, {first} on {like.device}; put both on one device")
    if tensor.dtype != like.dtype and not (float32 and tensor.dtype == torch.float32):
        raise TypeError(f"{name} has dtype {tensor.dtype}, {first} {like.dtype}; they must agree")


def _check(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, attn_drop) -> None:
    for name, number in (("num_heads", num_heads), ("kernel_size", kernel_size), ("dilation", dilation)):
        _check_number(name, number)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}; try {kernel_size - 1} or {kernel_size + 1}")
    if not 0.0 <= attn_drop < 1.0:
        raise ValueError(f"attn_drop must be in [0, 1), got {attn_drop}")

    inputs = {"value": value, "logits": logits, "ghost_mul": ghost_mul, "ghost_add": ghost_add}
    tensors = {name: tensor for name, tensor in inputs.items() if tensor is not None or not name.startswith("ghost")}
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, "value", value, float32=name.startswith("ghost"))

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


def _check_hadamard(packed, weight, bias, scale, dilation) -> None:
    _check_number("dilation", dilation)
    if isinstance(scale, bool) or not isinstance(scale, (int, float, torch.SymFloat)):
        raise TypeError(f"scale must be a number, got {scale!r}")
    tensors = {"packed": packed, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, tensor in tensors.items():
        _check_tensor(name, tensor, "packed", packed)
    if packed.ndim != 4:
        raise ValueError(f"packed must be (B, H, W, D), got shape {tuple(packed.shape)}")
    if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[3] % 2 == 0:
        raise ValueError(f"weight must be (C_q, width, K, K) with an odd K, got shape {tuple(weight.shape)}")
    channels, width = weight.shape[:2]
    if channels == 0 or width == 0 or channels % width:
        raise ValueError(f"the group width must divide C_q: weight is {tuple(weight.shape)}, (C_q, width, K, K)")
    if packed.shape[1] == 0 or packed.shape[2] == 0:
        raise ValueError(f"packed needs at least one position, got shape {tuple(packed.shape)}")
    if packed.shape[3] < 2 * channels:
        raise ValueError(
            f"packed needs {channels} channels of queries and as many of keys, as weight has, got {packed.shape[3]}"
        )
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(f"bias must be (C_q,) = {(channels,)}, got shape {tuple(bias.shape)}")
