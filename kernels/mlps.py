"""MLPs some rows at a time, with their gradients: so the hidden map, wider than all others, stays in the caches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import onednn
from .gelu import apply_gelu, gelu_gradient
from .onednn import again, rows_of

# Numbers of an MLP's hidden map at a time: in the caches, and just below 2 MiB, where PyTorch's huge pages begin.
HIDDEN = 500 * 1024
RECOMPUTED = 128  # channels up to which computing the hidden map again costs next to nothing: 5 % of the MLP at 96
FEWEST_ROWS = 784  # of a map at a time; fewer would read the weights too often


class Products(NamedTuple):
    """Whose matrix products: ``product`` and ``weight_gradient`` as in ``onednn``."""

    product: Callable[..., Tensor]
    weight_gradient: Callable[[Tensor, Tensor], Tensor]


def products(by_onednn: bool) -> Products:
    """oneDNN's, or PyTorch's."""
    return Products(onednn.product, onednn.weight_gradient) if by_onednn else Products(_product, _weight_gradient)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: bool = False) -> Tensor:
    out = F.linear(x, weight, bias)
    return apply_gelu(out) if gelu else out


def _weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    return grad.t() @ x


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
    by: Products, x: Tensor, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    residual: Tensor | None, *, kept: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``plain_mlp`` some rows at a time: the hidden map is never written to memory as a whole.

    Args:
        kept: (rows, hidden), is filled with the hidden map before GELU, for backward.
    """
    rows = rows_of(x)
    dtype = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    out = x.new_empty(*x.shape[:-1], len(weight2), dtype=dtype)
    count = _parts(len(rows), len(weight1))
    others = rows_of(out).split(count) if residual is None else rows_of(residual).split(count)
    for number, (part, target, other) in enumerate(
        zip(rows.split(count), rows_of(out).split(count), others, strict=True)
    ):
        hidden = by.product(part, weight1, bias1, gelu=kept is None)
        if kept is not None:
            kept[number * count : (number + 1) * count] = hidden
            hidden = apply_gelu(hidden)
        result = by.product(hidden, weight2, bias2)
        if residual is None:
            target.copy_(result)
        else:
            torch.add(result, other, out=target)
    return out


def kept_of_mlp(x: Tensor, weight1: Tensor) -> Tensor | None:
    """Room for what ``mlp`` keeps for backward; None for narrow maps, whose hidden map is computed again."""
    return None if x.shape[-1] <= RECOMPUTED else x.new_empty(x.numel() // x.shape[-1], len(weight1))


class MLP(torch.autograd.Function):
    """(products, x, weight1, bias1, weight2, bias2, residual) → what ``plain_mlp`` gives; GELU is computed twice."""

    @staticmethod
    def forward(ctx, by, *inputs):
        kept = kept_of_mlp(inputs[0], inputs[1])
        out = mlp(by, *inputs, kept=kept)
        ctx.by = by
        ctx.save_for_backward(*inputs[:5], kept)
        ctx.residual = None if inputs[5] is None else inputs[5].dtype
        return out

    @staticmethod
    def backward(ctx, grad):
        *inputs, kept = ctx.saved_tensors  # to be asked for once: where blocks are recomputed, this recomputes them
        of_residual = grad.to(ctx.residual) if ctx.needs_input_grad[6] else None
        grad = grad.to(inputs[0].dtype).contiguous()
        needed = ctx.needs_input_grad[1:6]
        if torch.is_grad_enabled():
            formula = functools.partial(plain_mlp, residual=None)
            return None, *again(formula, inputs, needed, grad), of_residual
        return None, *mlp_gradients(ctx.by, inputs, kept, needed, grad), of_residual


def mlp_gradients(
    by: Products, inputs: Sequence[Any], kept: Tensor | None, needed: Sequence[bool], grad: Tensor
) -> list[Tensor | None]:
    """Those of x, weight1, bias1, weight2, bias2; None where it is not ``needed``."""
    x, weight1, bias1, weight2, _ = inputs
    of_x = x.new_empty(x.shape) if needed[0] else None
    count = _parts(len(rows_of(x)), len(weight1))
    parts, grads = rows_of(x).split(count), rows_of(grad).split(count)
    sums: list[Tensor | None] = [None] * 4
    for number, (part, g) in enumerate(zip(parts, grads, strict=True)):
        before = by.product(part, weight1, bias1) if kept is None else kept[number * count : (number + 1) * count]
        of_first: tuple[Tensor | None, Tensor | None] = (None, None)
        if not any(needed[:3]):
            hidden = apply_gelu(before)
        else:
            of_hidden, hidden = gelu_gradient(by.product(g, weight2.t()), before)
            of_first = (
                by.weight_gradient(of_hidden, part) if needed[1] else None,
                of_hidden.sum(0) if needed[2] else None,
            )
            if of_x is not None:
                rows_of(of_x)[number * count : (number + 1) * count] = by.product(of_hidden, weight1.t())
        of_second = (by.weight_gradient(g, hidden) if needed[3] else None, g.sum(0) if needed[4] else None)
        sums = [_added(total, more) for total, more in zip(sums, (*of_first, *of_second), strict=True)]
    return [of_x, *(None if total is None else total.to(x.dtype) for total in sums)]


def _added(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """Sums of many parts are kept in float32."""
    if more is None:
        return None
    return more.float() if total is None else total.add_(more)
