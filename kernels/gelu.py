"""Exact GELU and its gradient: the library's kernels, or PyTorch's where nothing is compiled. Not differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import library


def apply_gelu(before: Tensor) -> Tensor:
    if library.OBSTACLES["cpu"] is None:
        return torch.ops.elsa.gelu_forward(before)
    return F.gelu(before)


def gelu_gradient(grad: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of ``before``, and its GELU, which the gradient of a weight behind it takes."""
    if library.OBSTACLES["cpu"] is None:
        return torch.ops.elsa.gelu_backward(grad, before)
    return torch.ops.aten.gelu_backward(grad, before), F.gelu(before)
