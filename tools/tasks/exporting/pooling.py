"""Adaptive average pooling as two matrix products: other runtimes have it for maps of known sizes alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ProductPool(nn.Module):
    """``nn.AdaptiveAvgPool2d``: (…, H, W) → (…, *size)."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (shares(*sizes).to(x) for sizes in zip(x.shape[-2:], self.size, strict=True))
        return rows @ x @ columns.T


def shares(size: int, parts: int) -> Tensor:
    """(parts, size): the share of each position in the mean of each part, which begins at ⌊p · size / parts⌋ and ends
    before ⌈(p + 1) · size / parts⌉."""
    part, position = torch.arange(parts), torch.arange(size)
    first, end = part * size // parts, ((part + 1) * size + parts - 1) // parts
    inside = (position >= first[:, None]) & (position < end[:, None])
    return inside / (end - first)[:, None]


def pool_by_products(network: nn.Module) -> nn.Module:
    """The network, or where it pools adaptively to more than one number a copy that does so by products."""

    def wanted(module: nn.Module) -> bool:
        return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size not in (1, (1, 1))

    if not any(wanted(module) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if wanted(child):
                size = child.output_size
                setattr(module, name, ProductPool((size, size) if isinstance(size, int) else tuple(size)))
    return network.eval()
