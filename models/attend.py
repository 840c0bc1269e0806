"""Scaled dot products of queries and keys over values, for window attention and VOLO's transformers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from elsa.kernels import is_portable


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
