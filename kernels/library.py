"""Loads the compiled operators once, keeps the reason where it cannot, and registers what torch needs to know of them.

The C++ side defines ``attention_forward`` and ``attention_backward``, ``hadamard_forward`` and ``hadamard_backward``,
``gelu_forward`` and ``gelu_backward`` of ``torch.ops.elsa`` (csrc/schema.h) and their kernels per device. Registered
here: fake kernels (shapes for tracing), the autograd formulas and the FLOP formulas. The fake kernels' signatures are
what this file takes the operators to be: a library that defines others is not used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

FOLDER = Path(__file__).parent
REBUILD = "build it with: pip install --no-build-isolation --no-deps --force-reinstall PATH_OF_THE_SOURCES"


def load(name: str) -> str | None:
    """Load the library ``name`` beside this file; None on success, else the reason in one sentence."""
    path = max(FOLDER.glob(f"{name}.*so"), key=lambda file: file.stat().st_mtime, default=None)
    record = _build_record()
    if path is None:
        reason = record.get("missing", {}).get(name)
        return reason or f"the compiled library {name} is not installed; {REBUILD}"
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        cause = str(error.__cause__ or error).strip().splitlines()[0]
        return (
            f"{path.name} does not load: {cause}; it was built with torch {record.get('torch', 'unknown')}, "
            f"this is torch {torch.__version__}; {REBUILD}"
        )
    return None


def cuda_architectures() -> str:
    """GPU architectures that the CUDA kernels were built for, "8.0;9.0;10.0+PTX"; empty where that is not known."""
    return _build_record().get("architectures") or ""


def _build_record() -> dict:
    try:
        return json.loads((FOLDER / "_build.json").read_text())
    except (OSError, ValueError):
        return {}


def _wrong_schema() -> str | None:
    """A library of other sources may load and still take other arguments."""
    for name, fake in FAKES.items():
        if not hasattr(torch.ops.elsa, name):
            return f"the compiled library does not define elsa::{name}; {REBUILD}"
        found = str(getattr(torch.ops.elsa, name).default._schema).removeprefix(f"elsa::{name}")
        # An int of Python's is a SymInt to torch, an int to the stable ABI.
        if found != torch.library.infer_schema(fake, mutates_args=()).replace("SymInt", "int"):
            return f"the compiled library is of another version of the sources: {name} takes {found}; {REBUILD}"
    return None


def _load_all() -> dict[str, str | None]:
    cpu = load("_C")
    if cpu is None:
        cpu = _wrong_schema()
    if cpu is not None:
        return {"cpu": cpu, "cuda": f"needs the library with the operator's schema, but {cpu}"}
    if torch.version.cuda is None:
        return {"cpu": None, "cuda": f"torch {torch.__version__} is a build without CUDA"}
    return {"cpu": None, "cuda": load("_cuda")}


def cpu_instruction_set(name: str | None = None) -> str:
    """The instruction set that the CPU kernels use, after choosing ``name`` if it is given.

    Names: plain, avx2, avx512, avx512_bf16 (the same with the instructions for bfloat16).

    Raises:
        ValueError: no such instruction set.
        RuntimeError: this processor does not have it, or the kernels are not compiled.
    """
    names = ("plain", "avx2", "avx512", "avx512_bf16")
    if name is not None and name not in names:
        raise ValueError(f"instruction set {name!r} does not exist; choose one of {', '.join(names)}")
    if OBSTACLES["cpu"] is not None:
        raise RuntimeError(OBSTACLES["cpu"])
    return names[torch.ops.elsa._cpu_isa(-1 if name is None else names.index(name))]


# ---- what torch needs to know ------------------------------------------------------------------------------------


def _fake_forward(
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
) -> Tensor:
    return value.new_empty(value.shape)


def _fake_backward(
    grad_out: Tensor,
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    accumulate = torch.float64 if value.dtype == torch.float64 else torch.float32
    mul, add = (
        value.new_empty((0, 0) if ghost is None else ghost.shape, dtype=accumulate) for ghost in (ghost_mul, ghost_add)
    )
    return value.new_empty(value.shape), value.new_empty(logits.shape), mul, add


def _setup_context(ctx, inputs, output) -> None:
    value, logits, ghost_mul, ghost_add, *sizes = inputs
    ctx.save_for_backward(value, logits, ghost_mul, ghost_add)
    ctx.sizes = sizes


def _backward(ctx, grad_out: Tensor):
    value, logits, ghost_mul, ghost_add = ctx.saved_tensors
    grad_value, grad_logits, grad_mul, grad_add = torch.ops.elsa.attention_backward(
        grad_out, value, logits, ghost_mul, ghost_add, *ctx.sizes
    )
    if ghost_mul is None:
        grad_mul = None
    if ghost_add is None:
        grad_add = None
    return grad_value, grad_logits, grad_mul, grad_add, None, None, None


def _no_double_backward(ctx, *grads):
    raise RuntimeError(
        "the compiled operators have no second derivative; pass backend='reference' or set ELSA_BACKEND=reference"
    )


def autocast_inputs(device: str, *tensors: Tensor | None) -> tuple[Any, ...]:
    """The autocast rule: these inputs in the autocast type of their device; float64 and what is absent stay."""
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return tensors
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(dtype)

    return tuple(map(cast, tensors))


def _autocast_forward(value, logits, *rest):
    value, logits = autocast_inputs(value.device.type, value, logits)
    with torch.autocast(value.device.type, enabled=False):
        return torch.ops.elsa.attention_forward(value, logits, *rest)


# ---- the Hadamard convolution ------------------------------------------------------------------------------------


def hadamard(packed: Tensor, weight: Tensor, bias: Tensor | None, scale: float, dilation: int) -> tuple[Tensor, Tensor]:
    """The compiled operator on checked arguments → (local, rest), see ``functional.hadamard_convolution``."""
    inputs = (packed, weight) if bias is None else (packed, weight, bias)
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    if learns and not torch.compiler.is_compiling():
        local, rest, _ = _Hadamard.apply(packed, weight, bias, scale, dilation)
        return local, rest
    local, _ = torch.ops.elsa.hadamard_forward(packed, weight, bias, scale, dilation, learns)
    return local, _rest(packed, weight)


def _rest(packed: Tensor, weight: Tensor) -> Tensor:
    return packed[..., 2 * weight.shape[0] :]


class _Hadamard(torch.autograd.Function):
    """The operator with the values' gradient, so that packed gets one gradient and not the sum of two.

    Compilers see the operator alone, and fuse that sum.
    """

    @staticmethod
    def forward(ctx, packed, weight, bias, scale, dilation):
        local, before = torch.ops.elsa.hadamard_forward(packed, weight, bias, scale, dilation, True)
        ctx.save_for_backward(packed, weight, before)
        ctx.has_bias, ctx.scale, ctx.dilation = bias is not None, scale, dilation
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(before)
        return local, _rest(packed, weight), before

    @staticmethod
    def backward(ctx, grad_local, grad_rest, _):
        packed, weight, before = ctx.saved_tensors
        if grad_local is None:
            grad_local = torch.zeros_like(before)
        grads = torch.ops.elsa.hadamard_backward(grad_local, grad_rest, packed, weight, before, ctx.scale, ctx.dilation)
        return grads[0], grads[1], grads[2] if ctx.has_bias else None, None, None


def _fake_hadamard_forward(
    packed: Tensor, weight: Tensor, bias: Tensor | None, scale: float, dilation: int, save: bool
) -> tuple[Tensor, Tensor]:
    shape = (*packed.shape[:3], weight.shape[0])
    return packed.new_empty(shape), packed.new_empty(shape if save else (0,))


def _fake_hadamard_backward(
    grad_local: Tensor,
    grad_rest: Tensor | None,
    packed: Tensor,
    weight: Tensor,
    before: Tensor,
    scale: float,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return packed.new_empty(packed.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape[:1])


def _setup_hadamard(ctx, inputs, output) -> None:
    packed, weight, bias, ctx.scale, ctx.dilation, save = inputs
    if not save and any(ctx.needs_input_grad[:3]):
        raise RuntimeError("elsa::hadamard_forward needs save=True where a gradient is asked for")
    ctx.save_for_backward(packed, weight, output[1])
    ctx.has_bias = bias is not None


def _backward_hadamard(ctx, grad_local: Tensor, _):
    packed, weight, before = ctx.saved_tensors
    grad_packed, grad_weight, grad_bias = torch.ops.elsa.hadamard_backward(
        grad_local, None, packed, weight, before, ctx.scale, ctx.dilation
    )
    return grad_packed, grad_weight, grad_bias if ctx.has_bias else None, None, None, None


def _autocast_hadamard(packed, weight, bias, *rest):
    device = packed.device.type
    inputs = autocast_inputs(device, packed, weight, bias)
    with torch.autocast(device, enabled=False):
        return torch.ops.elsa.hadamard_forward(*inputs, *rest)


# ---- GELU, of the CPU alone -----------------------------------------------------------------------------------------


def _fake_gelu_forward(before: Tensor) -> Tensor:
    return before.new_empty(before.shape)


def _fake_gelu_backward(grad_local: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    return before.new_empty(before.shape), before.new_empty(before.shape)


def _setup_gelu(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward_gelu(ctx, grad_local: Tensor) -> Tensor:
    return torch.ops.elsa.gelu_backward(grad_local, *ctx.saved_tensors)[0]


# ---- registration ------------------------------------------------------------------------------------------------


def _register() -> None:
    library = torch.library
    for key in ("AutocastCPU", "AutocastCUDA"):
        library.impl("elsa::attention_forward", key, _autocast_forward)
        library.impl("elsa::hadamard_forward", key, _autocast_hadamard)
    for name, fake in FAKES.items():
        library.register_fake(f"elsa::{name}", fake)
    library.register_autograd("elsa::attention_forward", _backward, setup_context=_setup_context)
    library.register_autograd("elsa::hadamard_forward", _backward_hadamard, setup_context=_setup_hadamard)
    library.register_autograd("elsa::gelu_forward", _backward_gelu, setup_context=_setup_gelu)
    for name in ("attention_backward", "hadamard_backward", "gelu_backward"):
        library.register_autograd(f"elsa::{name}", _no_double_backward)

    # Two operations per multiply-add, as PyTorch counts a convolution. The backward pass of the aggregation is two sums
    # of its size (the gradients of value and of the weights), and one more for each ghost.
    @register_flop_formula(torch.ops.elsa.attention_forward)
    def _(value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, *, out_shape=None, **kwargs) -> int:
        return 2 * _taps(value, kernel_size)

    @register_flop_formula(torch.ops.elsa.attention_backward)
    def _(grad, value, logits, ghost_mul, ghost_add, num_heads, kernel_size, dilation, *, out_shape=None, **kw) -> int:
        sums = 2 + (ghost_mul is not None) + (ghost_add is not None)
        return 2 * sums * _taps(value, kernel_size)

    @register_flop_formula(torch.ops.elsa.hadamard_forward)
    def _(packed, weight, *rest, out_shape=None, **kwargs) -> int:
        return 2 * math.prod(packed[:3]) * math.prod(weight)

    @register_flop_formula(torch.ops.elsa.hadamard_backward)
    def _(grad_local, grad_rest, packed, weight, *rest, out_shape=None, **kwargs) -> int:
        return 4 * math.prod(packed[:3]) * math.prod(weight)


def _taps(value_shape, kernel_size: int) -> int:
    batch, height, width, channels = value_shape
    return batch * height * width * channels * kernel_size**2


FAKES: dict[str, Callable[..., Any]] = {
    "attention_forward": _fake_forward,
    "attention_backward": _fake_backward,
    "hadamard_forward": _fake_hadamard_forward,
    "hadamard_backward": _fake_hadamard_backward,
    "gelu_forward": _fake_gelu_forward,
    "gelu_backward": _fake_gelu_backward,
}
OBSTACLES = _load_all()
if OBSTACLES["cpu"] is None:
    _register()
