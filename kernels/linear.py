"""The one door to linear layers: ``activation(x @ weightᵀ + bias) + residual``."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = (None, "gelu")


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """A linear layer: x (…, K), weight (N, K), bias (N,) → (…, N), then exact GELU if asked for, then ``+ residual``.

    Args:
        weight: of a linear layer; a 1×1 convolution's as ``weight.flatten(1)``.
        activation: None or "gelu".
        residual: (…, N), added at the end.

    Raises:
        ValueError: no such activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be None or 'gelu', got {activation!r}")
    out = F.linear(x, weight, bias)
    if activation:
        out = F.gelu(out)
    return out if residual is None else out + residual


def linear_info() -> str:
    """Which linear layers run here, and why."""
    return "torch: PyTorch's own"
