"""Attention as it is computed, and as portable graphs hold it: of ELSA, of windows, of VOLO's transformers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from elsa.kernels import elsa_attention, is_portable
from elsa.kernels.portable import gathered_attention


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, drop: float = 0.0) -> Tensor:
    """softmax(query · keyᵀ / √d + bias) · value, each (N, heads, tokens, d), of which a ``drop`` share is left out.

    Portable graphs hold the formula: the strides of PyTorch's fused operator depend on the machine, and other runtimes
    do not know it.
    """
    if is_portable():
        weights = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
        weights = (weights if bias is None else weights + bias).softmax(-1)
        return F.dropout(weights, drop) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=drop)


def attend_locally(
    value: Tensor,
    logits: Tensor,
    ghost_mul: Tensor | None,
    ghost_add: Tensor | None,
    *,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    attn_drop: float = 0.0,
) -> Tensor:
    """``elsa.kernels.elsa_attention``. Portable graphs hold it without a node per tap, of which K² would be many."""
    tensors = (value, logits, ghost_mul, ghost_add)
    if is_portable():
        return gathered_attention(*tensors, num_heads, kernel_size, dilation, attn_drop)
    return elsa_attention(
        *tensors, num_heads=num_heads, kernel_size=kernel_size, dilation=dilation, attn_drop=attn_drop
    )
