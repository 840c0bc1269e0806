"""oneDNN's matrix product, which PyTorch has as a private operator: where it is used, and linear layers made of it.

PyTorch's float32 ``linear`` calls MKL, which computes with AVX2 on processors that are not Intel's, AVX-512 or not: at
40 % of the peak. ``mkldnn::_linear_pointwise`` reaches 90 %, with a plain weight 2 to 4 % less than with a packed one.
So nothing is packed, nothing is kept, and no weight can be stale.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .gelu import apply_gelu, gelu_gradient

TYPES = (torch.float32, torch.bfloat16)
OTHERS_VENDORS = ("AuthenticAMD", "HygonGenuine")  # of processors with AVX-512 that MKL does not use
# What the private operator must be. torch names it, and how it is called, in its own compiler.
SCHEMA = "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"

# ---- where it is used


@functools.cache
def obstacle() -> str | None:
    """Why oneDNN's product cannot be called here; None where it can."""
    if not torch.backends.mkldnn.is_available():
        return f"torch {torch.__version__} is a build without oneDNN"
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or str(operator.default._schema).partition("_linear_pointwise")[2] != SCHEMA:
        return f"torch {torch.__version__} has no mkldnn::_linear_pointwise as expected"
    with ThreadPoolExecutor(1) as aside:  # a trace or a mode that looks at operators is its own thread's
        return aside.submit(_trial).result()


def _trial() -> str | None:
    """The operator is private: it is asked once for what is expected of it."""
    x, weight, bias = torch.linspace(-1, 1, 96).view(6, 16), torch.linspace(-1, 2, 48).view(16, 3), torch.ones(3)
    try:
        with torch.inference_mode(False), torch.no_grad():
            found = product(x, weight.t(), bias, gelu=True)
            right = torch.allclose(found, F.gelu(x @ weight + bias), rtol=1e-4, atol=1e-4)
    except (RuntimeError, TypeError) as error:
        return f"torch {torch.__version__}'s mkldnn::_linear_pointwise fails: {str(error).strip().splitlines()[0]}"
    return None if right else f"torch {torch.__version__}'s mkldnn::_linear_pointwise computes something else"


def has_avx512() -> bool:
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


@functools.cache
def processor() -> tuple[bool, str]:
    """Whether oneDNN's product is the faster one on this processor, and by which rule."""
    capability, vendor = torch.backends.cpu.get_cpu_capability(), _vendor()
    if not has_avx512():
        return False, f"{capability} on {vendor}: without AVX-512 both are equally fast"
    if vendor not in OTHERS_VENDORS:
        return False, f"{capability} on {vendor}: MKL uses it; MLPs are computed some rows at a time"
    return True, f"{capability} on {vendor}, where MKL computes with AVX2"


def _vendor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(named, platform.machine() or "an unknown processor")


@functools.cache
def has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; otherwise oneDNN imitates it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


# ---- products


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    """x (…, K), weight (N, K) of any strides → (…, N), exact GELU applied if asked for. No gradient."""
    activation, algorithm = ("gelu", "none") if gelu else ("none", "")
    out = torch.ops.mkldnn._linear_pointwise.default(rows_of(x), weight, bias, activation, [], algorithm)
    # Of more dimensions the operator gives a view, which could not be written to where it is a function's result.
    return out if x.ndim == 2 else torch.ops.aten._unsafe_view.default(out, [*x.shape[:-1], out.shape[-1]])


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad (M, N), x (M, K) → (N, K)."""
    if grad.dtype == torch.bfloat16:
        return grad.t() @ x  # PyTorch calls oneDNN itself
    (rows, wide), narrow = grad.shape, x.shape[1]
    # The first factor is copied to be transposed: the narrow one, where that saves more than the result's copy costs.
    if rows * (wide - narrow) > 2 * wide * narrow:
        return product(x.t(), grad.t()).t()
    return product(grad.t(), x.t())


def rows_of(x: Tensor) -> Tensor:
    """(…, K) → (M, K)."""
    return x.reshape(-1, x.shape[-1])


def again(formula: Callable[..., Tensor], inputs: Sequence[Any], needed: Sequence[bool], grad: Tensor) -> list[Any]:
    """The gradients as functions of their own, for second derivatives: those of PyTorch's operators."""
    with torch.enable_grad():
        # Views, so that the way from one input to another is none of the formula's.
        own = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
        out = formula(*own)
    wanted = [tensor for tensor, need in zip(own, needed, strict=True) if need and tensor is not None]
    found = iter(torch.autograd.grad([out], wanted, [grad], create_graph=True))
    return [next(found) if need else None for need in needed]


# ---- linear layer


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """PyTorch's own."""
    out = F.linear(x, weight, bias)
    return F.gelu(out) if gelu else out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """The same by oneDNN's product. No gradient."""
    return product(x, weight, bias, gelu=gelu)


class Linear(torch.autograd.Function):
    """(x, weight, bias or None, gelu) → what ``plain_linear`` gives."""

    @staticmethod
    def forward(ctx, x, weight, bias, gelu):
        out = product(x, weight, bias)
        ctx.gelu = gelu
        ctx.save_for_backward(x, weight, bias, out if gelu else None)
        return apply_gelu(out) if gelu else out

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias, before = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            formula = functools.partial(plain_linear, gelu=ctx.gelu)
            return *again(formula, (x, weight, bias), needed, grad), None
        return *linear_gradients(x, weight, before, needed, grad), None


def linear_gradients(
    x: Tensor, weight: Tensor, before: Tensor | None, needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Those of x, weight, bias; None where it is not ``needed``. ``before``: the result before GELU, if any."""
    grad = grad.contiguous()
    if before is not None:
        grad, _ = gelu_gradient(grad, before)
    rows = rows_of(grad)
    return [
        product(grad, weight.t()) if needed[0] else None,
        weight_gradient(rows, rows_of(x)) if needed[1] else None,
        rows.sum(0) if needed[2] else None,
    ]
