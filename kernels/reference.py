"""The specification of the native operators, in plain PyTorch.

Every other implementation is tested against this file, and it is what runs where nothing is compiled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def elsa_attention_reference(
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    attn_drop: float = 0.0,
) -> Tensor:
    """Softmax over the taps, ghost head, and aggregation of the neighbourhood.

    With ``a = softmax_t(logits[b, p, g, t])`` over all K² taps, those outside the map included::

        f[b, p, c, t] = a[b, p, g(c), t] · ghost_mul[c, t] + ghost_add[c, t]
        out[b, p, c] = Σ_t f[b, p, c, t] · value[b, p + dilation · offset(t), c]

    where ``value`` is zero outside the map and tap t counts row by row from the top-left neighbour.

    Args:
        value: (B, H, W, C).
        logits: (B, H, W, G·K²), head-major.
        ghost_mul, ghost_add: (C, K²) or None for 1 and 0.
        num_heads: G; channel c belongs to head c // (C / G).
        kernel_size: K, odd.
        dilation: distance between taps, in positions.
        attn_drop: dropout probability applied to ``a``; the caller passes 0 outside training.

    Returns:
        (B, H, W, C) in value's dtype; half-precision inputs are computed in float32.
    """
    batch, height, width, channels = value.shape
    reach = dilation * (kernel_size // 2)
    compute = value.dtype if value.dtype == torch.float64 else torch.float32

    attn = logits.to(compute).reshape(batch, height, width, num_heads, kernel_size**2).softmax(-1)
    attn = F.dropout(attn, attn_drop)
    padded = F.pad(value.to(compute), (0, 0, reach, reach, reach, reach))
    padded = padded.reshape(batch, height + 2 * reach, width + 2 * reach, num_heads, channels // num_heads)
    mul, add = (
        None if ghost is None else ghost.to(compute).t().reshape(kernel_size**2, num_heads, channels // num_heads)
        for ghost in (ghost_mul, ghost_add)
    )

    out = torch.zeros((), dtype=compute, device=value.device)
    for t in range(kernel_size**2):
        row, column = t // kernel_size * dilation, t % kernel_size * dilation
        weight = attn[..., t, None]
        if mul is not None:
            weight = weight * mul[t]
        if add is not None:
            weight = weight + add[t]
        out = out + weight * padded[:, row : row + height, column : column + width]
    return out.reshape(value.shape).to(value.dtype)


def hadamard_convolution_reference(
    packed: Tensor, weight: Tensor, bias: Tensor | None, scale: float, dilation: int
) -> tuple[Tensor, Tensor]:
    """Hadamard product, grouped K×K convolution, exact GELU: ``GELU(weight ∗ (query · key · scale) + bias)``.

    Args:
        packed: (B, H, W, D): C_q channels of queries, C_q of keys, others.
        weight: (C_q, width, K, K); bias: (C_q,) or None.
        scale: factor on query · key.
        dilation: distance between taps, in positions; the product is zero outside the map.

    Returns:
        (B, H, W, C_q), and the other channels as a view (B, H, W, D − 2·C_q).
    """
    channels, width, kernel_size = weight.shape[:3]
    query, key, rest = packed.split((channels, channels, packed.shape[-1] - 2 * channels), dim=-1)
    hadamard = (query * key * scale).permute(0, 3, 1, 2)  # a channels-last NCHW view
    reach = dilation * (kernel_size // 2)
    before = F.conv2d(hadamard, weight, bias, padding=reach, dilation=dilation, groups=channels // width)
    return F.gelu(before).permute(0, 2, 3, 1), rest
