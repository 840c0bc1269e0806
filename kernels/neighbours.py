"""Products with, and sums over, the K×K neighbours of each position, in plain PyTorch, for the counterparts of ELSA.

Dot-product attention over a neighbourhood and decoupled dynamic filters (models/counterparts.py) need both. They are
operators of torch with gradients of their own, since autograd would keep K² maps. Taps count row by row from the
top-left neighbour; what lies outside the map is zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .portable import is_portable


def neighbour_products(query: Tensor, key: Tensor, *, num_heads: int, kernel_size: int, dilation: int = 1) -> Tensor:
    """Dot products of each query with the keys of its neighbourhood: ``Σ_c query[b, p, c] · key[b, p + off(t), c]``.

    Args:
        query, key: (B, H, W, C).
        num_heads: G, a divisor of C: each sums over its C / G channels.
        kernel_size: K, odd.
        dilation: distance between taps, in positions.

    Returns:
        (B, H, W, G·K²), head-major, in query's dtype, accumulated in float32 at least.

    Raises:
        ValueError: shapes that differ, or sizes that do not fit.
    """
    if query.shape != key.shape or query.ndim != 4:
        raise ValueError(f"query and key must be (B, H, W, C), got {tuple(query.shape)} and {tuple(key.shape)}")
    _check(query.shape[-1], num_heads, kernel_size, dilation)
    run = _products if is_portable() else products
    return run(query, key, num_heads, kernel_size, dilation)


def neighbour_sums(
    weights: Tensor,
    value: Tensor,
    filters: Tensor | None = None,
    *,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
) -> Tensor:
    """Weighted sums over the neighbourhood: ``Σ_t weights[b, p, g(c), t] · filters[b, c, t] · value[b, p + off(t), c]``

    Unlike ``elsa_attention`` it takes the weights as they are, without a softmax.

    Args:
        weights: (B, H, W, G·K²), head-major.
        value: (B, H, W, C).
        filters: of each image and channel, (B, C, K²); None for 1.
        num_heads, kernel_size, dilation: as of ``neighbour_products``.

    Returns:
        (B, H, W, C) in value's dtype, accumulated in float32 at least.

    Raises:
        ValueError: shapes or sizes that do not fit.
    """
    if value.ndim != 4:
        raise ValueError(f"value must be (B, H, W, C), got {tuple(value.shape)}")
    _check(value.shape[-1], num_heads, kernel_size, dilation)
    batch, channels, taps = value.shape[0], value.shape[-1], kernel_size**2
    if weights.shape != (*value.shape[:3], num_heads * taps):
        raise ValueError(
            f"weights must be (B, H, W, G·K²) = {(*value.shape[:3], num_heads * taps)}, got {tuple(weights.shape)}"
        )
    if filters is not None and filters.shape != (batch, channels, taps):
        raise ValueError(f"filters must be (B, C, K²) = {(batch, channels, taps)}, got {tuple(filters.shape)}")
    run = _sums if is_portable() else sums
    return run(weights, value, filters, num_heads, kernel_size, dilation)


def _check(channels: int, num_heads: int, kernel_size: int, dilation: int) -> None:
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"num_heads must divide the channels: {channels} channels, {num_heads} heads")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")


# ---- the formulas


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _padded(x: Tensor, kernel_size: int, dilation: int) -> Tensor:
    reach = dilation * (kernel_size // 2)
    return F.pad(_wide(x), (0, 0, reach, reach, reach, reach))


def _windows(padded: Tensor, like: Tensor, kernel_size: int, dilation: int) -> Iterator[Tensor]:
    """For each tap what its neighbour is at every position: views (B, H, W, C) of a padded map."""
    height, width = like.shape[1:3]
    for t in range(kernel_size**2):
        row, column = t // kernel_size * dilation, t % kernel_size * dilation
        yield padded[:, row : row + height, column : column + width]


def _products(query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int) -> Tensor:
    wide = _wide(query)
    parts = [
        (wide * window).unflatten(-1, (num_heads, -1)).sum(-1)
        for window in _windows(_padded(key, kernel_size, dilation), query, kernel_size, dilation)
    ]
    return torch.stack(parts, -1).flatten(-2).to(query.dtype)


def _by_channel(weight: Tensor, filters: Tensor | None, tap: int, channels: int) -> Tensor:
    """A tap's weights of the heads, (B, H, W, G), for every channel: (B, H, W, C)."""
    spread = weight.repeat_interleave(channels // weight.shape[-1], dim=-1)
    return spread if filters is None else spread * filters[:, None, None, :, tap]


def _sums(
    weights: Tensor, value: Tensor, filters: Tensor | None, num_heads: int, kernel_size: int, dilation: int
) -> Tensor:
    taps = _wide(weights).unflatten(-1, (num_heads, -1)).unbind(-1)
    filters = None if filters is None else _wide(filters)
    out = torch.zeros((), dtype=taps[0].dtype, device=value.device)
    for t, window in enumerate(_windows(_padded(value, kernel_size, dilation), value, kernel_size, dilation)):
        out = out + _by_channel(taps[t], filters, t, value.shape[-1]) * window
    return out.to(value.dtype)


def _spread(
    weights: Tensor, source: Tensor, filters: Tensor | None, num_heads: int, kernel_size: int, dilation: int
) -> Tensor:
    """The transpose of ``_sums``: what every position gives to its neighbours, added up at them."""
    taps = _wide(weights).unflatten(-1, (num_heads, -1)).unbind(-1)
    filters, wide = None if filters is None else _wide(filters), _wide(source)
    padded = torch.zeros_like(_padded(source, kernel_size, dilation))
    for t, window in enumerate(_windows(padded, source, kernel_size, dilation)):
        window += _by_channel(taps[t], filters, t, source.shape[-1]) * wide
    reach = dilation * (kernel_size // 2)
    height, width = source.shape[1:3]
    return padded[:, reach : reach + height, reach : reach + width].to(source.dtype)


# ---- as operators of torch


@torch.library.custom_op("elsa::neighbour_products", mutates_args=())
def products(query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int) -> Tensor:
    return _products(query, key, num_heads, kernel_size, dilation)


@products.register_fake
def _(query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int) -> Tensor:
    return query.new_empty(*query.shape[:3], num_heads * kernel_size**2)


@torch.library.custom_op("elsa::neighbour_products_backward", mutates_args=())
def products_backward(
    grad: Tensor, query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int
) -> tuple[Tensor, Tensor]:
    of = (num_heads, kernel_size, dilation)
    return _sums(grad, key, None, *of), _spread(grad, query, None, *of)


@products_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, num_heads: int, kernel_size: int, dilation: int):
    return torch.empty_like(query), torch.empty_like(key)


@torch.library.custom_op("elsa::neighbour_sums", mutates_args=())
def sums(
    weights: Tensor, value: Tensor, filters: Tensor | None, num_heads: int, kernel_size: int, dilation: int
) -> Tensor:
    return _sums(weights, value, filters, num_heads, kernel_size, dilation)


@sums.register_fake
def _(
    weights: Tensor, value: Tensor, filters: Tensor | None, num_heads: int, kernel_size: int, dilation: int
) -> Tensor:
    return value.new_empty(value.shape)


@torch.library.custom_op("elsa::neighbour_sums_backward", mutates_args=())
def sums_backward(
    grad: Tensor,
    weights: Tensor,
    value: Tensor,
    filters: Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weights, value and filters; the last is empty without filters."""
    of = (num_heads, kernel_size, dilation)
    of_value = _spread(weights, grad, filters, *of)
    taps, wide = _wide(weights).unflatten(-1, (num_heads, -1)).unbind(-1), _wide(grad)
    of_weights, of_filters = [], []
    for t, window in enumerate(_windows(_padded(value, kernel_size, dilation), value, kernel_size, dilation)):
        product = wide * window
        if filters is not None:
            of_filters.append((_by_channel(taps[t], None, t, value.shape[-1]) * product).sum((1, 2)))
            product = product * _wide(filters)[:, None, None, :, t]
        of_weights.append(product.unflatten(-1, (num_heads, -1)).sum(-1))
    of_weights_ = torch.stack(of_weights, -1).flatten(-2).to(weights.dtype)
    if filters is None:
        return of_weights_, of_value, value.new_empty(0)
    return of_weights_, of_value, torch.stack(of_filters, -1).to(filters.dtype)


@sums_backward.register_fake
def _(
    grad: Tensor,
    weights: Tensor,
    value: Tensor,
    filters: Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
):
    none = value.new_empty(0) if filters is None else torch.empty_like(filters)
    return torch.empty_like(weights), torch.empty_like(value), none


def _keep_products(ctx, inputs, output) -> None:
    query, key, *ctx.sizes = inputs
    ctx.save_for_backward(query, key)


def _products_gradients(ctx, grad: Tensor):
    return *products_backward(grad, *ctx.saved_tensors, *ctx.sizes), None, None, None


def _keep_sums(ctx, inputs, output) -> None:
    weights, value, filters, *ctx.sizes = inputs
    ctx.save_for_backward(weights, value, filters)


def _sums_gradients(ctx, grad: Tensor):
    weights, value, filters = ctx.saved_tensors
    *both, of_filters = sums_backward(grad, weights, value, filters, *ctx.sizes)
    return *both, None if filters is None else of_filters, None, None, None


products.register_autograd(_products_gradients, setup_context=_keep_products)
sums.register_autograd(_sums_gradients, setup_context=_keep_sums)


@register_flop_formula(torch.ops.elsa.neighbour_products)
def _products_flops(query, key, num_heads, kernel_size, dilation, *, out_shape=None) -> int:
    return 2 * math.prod(query) * kernel_size**2  # of shapes; two operations per multiply-add


@register_flop_formula(torch.ops.elsa.neighbour_sums)
def _sums_flops(weights, value, filters, num_heads, kernel_size, dilation, *, out_shape=None) -> int:
    return 2 * math.prod(value) * kernel_size**2
