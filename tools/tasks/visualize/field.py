"""Effective receptive fields (Luo et al., arXiv 1701.04128): which pixels move the centre of a map, and how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from elsa.models import ELSAVOLO
from elsa.models.swin import SwinStages

SHARES = (0.5, 0.95)  # of the whole, whose extent is told
MOST = 6  # stages; of a network with more maps these are spread over it


@dataclass(frozen=True)
class Field:
    """The receptive field of the position of a stage's map that has the picture's middle.

    Attributes:
        stage: counted from 1. grid: rows and columns of the map.
        values: (H, W), the largest is 1; row, column: of the pixel in the middle of the centre's patch.
    """

    stage: int
    grid: tuple[int, int]
    values: np.ndarray
    row: int
    column: int

    def side(self, share: float) -> int:
        """Pixels of the side of the square around the centre that has that share of the whole."""
        rows, columns = (np.arange(size) for size in self.values.shape)
        distance = np.maximum(abs(rows - self.row)[:, None], abs(columns - self.column))
        within = np.cumsum(np.bincount(distance.ravel(), self.values.ravel()))
        return 2 * int(np.searchsorted(within, share * within[-1] * (1 - 1e-6))) + 1


def stage_maps(network: nn.Module) -> Callable[[Tensor], dict[int, Tensor]] | None:
    """What gives the maps (B, C, H, W) of a network's stages, by their numbers from 1; before any final norm where that
    is ours or timm's. None: the network tells no maps."""
    if isinstance(network, (SwinStages, ELSAVOLO)):
        ends = network.stage_ends if isinstance(network, ELSAVOLO) else range(len(network.layers))
        return lambda x: _numbered(
            [level.permute(0, 3, 1, 2) for index, level in enumerate(network.maps(network.embed(x))) if index in ends]
        )
    if hasattr(network, "forward_intermediates"):
        return lambda x: _numbered(network.forward_intermediates(x, intermediates_only=True))
    if not hasattr(network, "get_classifier"):  # a backbone of mm's, which gives maps
        return lambda x: _numbered(list(network(x)))
    return None


def _numbered(levels: Sequence[Tensor]) -> dict[int, Tensor]:
    chosen = np.unique(np.linspace(1, len(levels), min(MOST, len(levels))).round().astype(int))
    return {int(number): levels[number - 1] for number in chosen}


def receptive_fields(
    maps: Callable[[Tensor], dict[int, Tensor]], images: Sequence[tuple[Tensor, tuple[int, int]]]
) -> list[Field]:
    """The field of each stage: |∂ Σ_c s_c · map[c, centre] / ∂ image|, summed over colours, averaged over the images.

    The signs s_c are drawn for each image, as a plain sum over channels is a constant behind a LayerNorm.

    Args:
        images: (1, C, H', W'), and height and width without what was padded; of images of unequal sizes the field is
            that of the largest part around the centre which all have.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[int, list[tuple[np.ndarray, int, int]]] = {}
    grids: dict[int, tuple[int, int]] = {}
    for image, (height, width) in tqdm(images, desc="receptive fields", unit="image", disable=None, leave=False):
        pixels = image.detach().clone().requires_grad_()
        levels = maps(pixels)
        for number, level in levels.items():
            stride = _stride(image.shape[-2:], level.shape[-2:])
            row, column = (int(size // 2 / pitch) for size, pitch in zip((height, width), stride, strict=True))
            signs = (torch.randint(0, 2, level.shape[1:2], generator=generator) * 2.0 - 1).to(level)
            score = (level[0, :, row, column] * signs).sum()
            [gradient] = torch.autograd.grad(score, pixels, retain_graph=number != max(levels))
            values = gradient[0].float().abs().sum(0)[:height, :width].cpu().numpy()
            middle = min(int((row + 0.5) * stride[0]), height - 1), min(int((column + 0.5) * stride[1]), width - 1)
            grids[number] = tuple(level.shape[-2:])
            found.setdefault(number, []).append((values, *middle))
    return [_mean(number, grids[number], some) for number, some in found.items()]


def _stride(image: Sequence[int], level: Sequence[int]) -> tuple[float, float]:
    """Pixels between positions: a power of two where one fits, as networks pad what is no multiple of theirs."""
    for power in range(8):
        if all(-(-pixels // 2**power) == size for pixels, size in zip(image, level, strict=True)):
            return 2**power, 2**power
    return image[0] / level[0], image[1] / level[1]


def _mean(stage: int, grid: tuple[int, int], found: Sequence[tuple[np.ndarray, int, int]]) -> Field:
    above, left = min(row for _, row, _ in found), min(column for *_, column in found)
    below = min(values.shape[0] - row for values, row, _ in found)
    right = min(values.shape[1] - column for values, _, column in found)
    parts = [values[row - above : row + below, column - left : column + right] for values, row, column in found]
    mean = np.mean(parts, axis=0)
    return Field(stage, grid, mean / max(mean.max(), np.finfo(np.float32).tiny), above, left)
