"""oneDNN's matrix product, which PyTorch has as a private operator: where it is used, and linear layers made of it.

PyTorch's float32 ``linear`` calls MKL, which computes with AVX2 on processors that are not Intel's, AVX-512 or not: at
40 % of the peak. ``mkldnn::_linear_pointwise`` reaches 90 %, with a plain weight 2 to 4 % less than with a packed one.
So nothing is packed, nothing is kept, and no weight can be stale.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import library

TYPES = (torch.float32, torch.bfloat16)
OTHERS_VENDORS = ("AuthenticAMD", "HygonGenuine")  # of processors with AVX-512 that MKL does not use
# What the private operator must be. torch names it, and how it is called, in its own compiler.
SCHEMA = "(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
# Numbers of an MLP's hidden map at a time: in the caches, and just below 2 MiB, where PyTorch's huge pages begin.
HIDDEN = 500 * 1024
RECOMPUTED = 128  # channels up to which computing the hidden map again costs next to nothing: 5 % of the MLP at 96
FEWEST_ROWS = 784  # of a map at a time; fewer would read the weights too often

# ---- where it is used


@functools.cache
def obstacle() -> str | None:
    """Why oneDNN's product cannot be called here; None where it can."""
    if not torch.backends.mkldnn.is_available():
        return f"torch {torch.__version__} is a build without oneDNN"
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None or str(operator.default._schema).partition("_linear_pointwise")[2] != SCHEMA:
        return f"torch {torch.__version__} has no mkldnn::_linear_pointwise as expected"
    return _trial()


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


@functools.cache
def processor() -> tuple[bool, str]:
    """Whether oneDNN's product is the faster one on this processor, and by which rule."""
    capability, vendor = torch.backends.cpu.get_cpu_capability(), _vendor()
    if "AVX512" not in capability:
        return False, f"{capability} on {vendor}: without AVX-512 both are equally fast"
    if vendor not in OTHERS_VENDORS:
        return False, f"{capability} on {vendor}: MKL uses it"
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
    out = torch.ops.mkldnn._linear_pointwise.default(_rows(x), weight, bias, activation, [], algorithm)
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


def apply_gelu(before: Tensor) -> Tensor:
    """Exact GELU. No gradient."""
    if library.OBSTACLES["cpu"] is None:
        return torch.ops.elsa.gelu_forward(before)
    return F.gelu(before)


def gelu_gradient(grad: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of ``before``, and its GELU, which the gradient of a weight behind it takes."""
    if library.OBSTACLES["cpu"] is None:
        return torch.ops.elsa.gelu_backward(grad, before)
    return torch.ops.aten.gelu_backward(grad, before), F.gelu(before)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _again(formula: Callable[..., Tensor], inputs: Sequence[Any], needed: Sequence[bool], grad: Tensor) -> list[Any]:
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
            return *_again(formula, (x, weight, bias), needed, grad), None
        return *linear_gradients(x, weight, before, needed, grad), None


def linear_gradients(
    x: Tensor, weight: Tensor, before: Tensor | None, needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Those of x, weight, bias; None where it is not ``needed``. ``before``: the result before GELU, if any."""
    grad = grad.contiguous()
    if before is not None:
        grad, _ = gelu_gradient(grad, before)
    rows = _rows(grad)
    return [
        product(grad, weight.t()) if needed[0] else None,
        weight_gradient(rows, _rows(x)) if needed[1] else None,
        rows.sum(0) if needed[2] else None,
    ]


# ---- MLP


def plain_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, residual: Tensor | None
) -> Tensor:
    """PyTorch's own."""
    out = F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
    return out if residual is None else out + residual


def _parts(rows: int, hidden: int) -> int:
    """Rows of a map whose hidden part is computed at a time, by the sizes alone."""
    most = max(FEWEST_ROWS, HIDDEN // hidden)
    return -(-rows // -(-rows // most))


def mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None, residual: Tensor | None,
    *, kept: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``plain_mlp`` some rows at a time: the hidden map, wider than all others, is never written to memory as a whole.

    Args:
        kept: (rows, hidden), is filled with the hidden map before GELU, for backward.
    """
    rows = _rows(x)
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    out = x.new_empty(*x.shape[:-1], len(weight2), dtype=dtype)
    count = _parts(len(rows), len(weight1))
    others = _rows(out).split(count) if residual is None else _rows(residual).split(count)
    for number, (part, target, other) in enumerate(
        zip(rows.split(count), _rows(out).split(count), others, strict=True)
    ):
        hidden = product(part, weight1, bias1, gelu=kept is None)
        if kept is not None:
            kept[number * count : (number + 1) * count] = hidden
            hidden = apply_gelu(hidden)
        result = product(hidden, weight2, bias2)
        if residual is None:
            target.copy_(result)
        else:
            torch.add(result, other, out=target)
    return out


def kept_of_mlp(x: Tensor, weight1: Tensor) -> Tensor | None:
    """Room for what ``mlp`` keeps for backward; None for narrow maps, whose hidden map is computed again."""
    return None if x.shape[-1] <= RECOMPUTED else x.new_empty(x.numel() // x.shape[-1], len(weight1))


class MLP(torch.autograd.Function):
    """(x, weight1, bias1, weight2, bias2, residual) → what ``plain_mlp`` gives; backward computes GELU again."""

    @staticmethod
    def forward(ctx, *inputs):
        kept = kept_of_mlp(inputs[0], inputs[1])
        out = mlp(*inputs, kept=kept)
        ctx.save_for_backward(*inputs[:5], kept)
        ctx.residual = None if inputs[5] is None else inputs[5].dtype
        return out

    @staticmethod
    def backward(ctx, grad):
        *inputs, kept = ctx.saved_tensors  # to be asked for once: where blocks are recomputed, this recomputes them
        of_residual = grad.to(ctx.residual) if ctx.needs_input_grad[5] else None
        grad = grad.to(inputs[0].dtype).contiguous()
        needed = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():
            formula = functools.partial(plain_mlp, residual=None)
            return *_again(formula, inputs, needed, grad), of_residual
        return *mlp_gradients(inputs, kept, needed, grad), of_residual


def mlp_gradients(
    inputs: Sequence[Any], kept: Tensor | None, needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Those of x, weight1, bias1, weight2, bias2; None where it is not ``needed``."""
    x, weight1, bias1, weight2, _ = inputs
    of_x = x.new_empty(x.shape) if needed[0] else None
    count = _parts(len(_rows(x)), len(weight1))
    parts, grads = _rows(x).split(count), _rows(grad).split(count)
    sums: list[Tensor | None] = [None] * 4
    for number, (part, g) in enumerate(zip(parts, grads, strict=True)):
        before = product(part, weight1, bias1) if kept is None else kept[number * count : (number + 1) * count]
        of_first: tuple[Tensor | None, Tensor | None] = (None, None)
        if not any(needed[:3]):
            hidden = apply_gelu(before)
        else:
            of_hidden, hidden = gelu_gradient(product(g, weight2.t()), before)
            of_first = (
                weight_gradient(of_hidden, part) if needed[1] else None,
                of_hidden.sum(0) if needed[2] else None,
            )
            if of_x is not None:
                _rows(of_x)[number * count : (number + 1) * count] = product(of_hidden, weight1.t())
        of_second = (weight_gradient(g, hidden) if needed[3] else None, g.sum(0) if needed[4] else None)
        sums = [_added(total, more) for total, more in zip(sums, (*of_first, *of_second), strict=True)]
    return [of_x, *(None if total is None else total.to(x.dtype) for total in sums)]


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Sums of many parts are kept in float32."""
    if more is None:
        return None
    return more.float() if total is None else total.add_(more)
