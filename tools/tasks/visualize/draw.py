"""The pictures of ``look``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ..pictures import literal, plain
from .attention import Layer
from .evidence import Evidence
from .field import SHARES, Field

ORDER, SIGNED, LOGARITHM, HEAT = "YlOrBr", "RdBu_r", "magma", "inferno"
CHANNELS = 16  # of a head, that are shown with the ghost head
PER_LINE = 32  # filters
DECADES = 4
FRAME = "#39ff14"


@dataclass(frozen=True)
class Attention:
    """Attention of a position.

    Attributes:
        pixels: (H, W, 3) of the picture; cell: row and column in the map.
        shares: of the heads, (G, K²); of_channels: with the ghost head, (C_v, K²).
    """

    name: str
    pixels: np.ndarray
    cell: tuple[int, int]
    shares: Tensor
    of_channels: Tensor


def attention(rows: Sequence[Attention], layer: Layer, head: int, network: str) -> Figure:
    """A line for each picture: the attention over it, enlarged, and what the ghost head makes of it."""
    tall = sum(3.7 * min(max(row.pixels.shape[0] / row.pixels.shape[1], 0.9), 1.6) for row in rows)
    figure = Figure(figsize=(12.4, tall + 0.9), layout="constrained")
    place = f"stage {layer.stage}, block {layer.block}, head {head + 1} ({layer.name})"
    literal(figure.suptitle(" ", fontsize=12), f"{plain(network, 40)}: Hadamard attention of {place}")
    axes = figure.subplots(len(rows), 3, squeeze=False, width_ratios=(1.05, 1, 1.1))
    for line, row in zip(axes, rows, strict=True):
        side = layer.module.kernel_size
        taps = row.shares[head].reshape(side, side).numpy()
        _over(line[0], row, layer, taps)
        _enlarged(line[1], taps)
        _channels(line[2], row, layer, head)
    return figure


def _over(axis: Axes, row: Attention, layer: Layer, taps: np.ndarray) -> None:
    height, width = row.pixels.shape[:2]
    stride, reach = layer.stride, layer.module.kernel_size // 2
    axis.imshow(row.pixels, extent=(0, width, height, 0), interpolation="nearest")
    for (y, x), share in np.ndenumerate(taps / taps.max()):
        top, left = (centre + (place - reach) * layer.module.dilation for centre, place in zip(row.cell, (y, x),
                                                                                             strict=True))  # fmt: skip
        colour = colormaps[ORDER](0.3 + 0.7 * share)
        axis.add_patch(Rectangle((left * stride, top * stride), stride, stride, color=colour, alpha=0.8 * share, lw=0))
    for tone, thickness in (("white", 2.4), ("black", 1.2)):
        for extent, dashes in ((0, "-"), (reach * layer.module.dilation, "--" if tone == "black" else "-")):
            corner = ((row.cell[1] - extent) * stride, (row.cell[0] - extent) * stride)
            side = (2 * extent + 1) * stride
            style: dict[str, Any] = dict(fill=False, edgecolor=tone, linewidth=thickness, linestyle=dashes)
            axis.add_patch(Rectangle(corner, side, side, **style))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.tick_params(labelsize=8)
    text = f"{plain(row.name, 36)}\nrow {row.cell[0]}, column {row.cell[1]} of the map"
    literal(axis.set_title(" ", fontsize=9), text)


def _enlarged(axis: Axes, taps: np.ndarray) -> None:
    shown = axis.imshow(100 * taps, cmap=ORDER, vmin=0)
    size = 9 if len(taps) <= 7 else 6
    for (y, x), share in np.ndenumerate(taps):
        dark = share > 0.65 * taps.max()
        axis.text(
            x, y, f"{100 * share:.1f}", ha="center", va="center", fontsize=size, color="white" if dark else "black"
        )
    _offsets(axis, len(taps))
    axis.set_title("Hadamard attention, in %; sum 100 %", fontsize=9)
    axis.figure.colorbar(shown, ax=axis, shrink=0.8).ax.tick_params(labelsize=8)


def _offsets(axis: Axes, side: int) -> None:
    """Numbers of rows and columns from the position."""
    offsets = [f"{number:+d}" if number else "0" for number in range(-(side // 2), side // 2 + 1)]
    axis.set_xticks(range(side), offsets, fontsize=8)
    axis.set_yticks(range(side), offsets, fontsize=8)


def _channels(axis: Axes, row: Attention, layer: Layer, head: int) -> None:
    axis.set_axis_off()
    module = layer.module
    width = module.dim_v // module.num_heads
    if module.ghost_head is None:
        axis.text(0.5, 0.5, "no ghost head", ha="center", transform=axis.transAxes)
        return
    first = head * width
    some = row.of_channels[first : first + min(CHANNELS, width)]
    maps = some.unflatten(-1, (module.kernel_size, -1)).numpy()
    board = mosaic(100 * maps, math.ceil(math.sqrt(len(maps))))
    peak = np.nanmax(np.abs(board))
    shown = axis.imshow(board, cmap=SIGNED, vmin=-peak, vmax=peak)
    which = f"{len(maps)} of {width}" if len(maps) < width else f"all {width}"
    axis.set_title(f"with ghost head, in %: {which} channels of the head", fontsize=9)
    axis.figure.colorbar(shown, ax=axis, shrink=0.8).ax.tick_params(labelsize=8)


def mosaic(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles (N, h, w), line by line, a pixel of NaN between them."""
    count, height, width = tiles.shape
    lines = -(-count // columns)
    board = np.full((lines * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + 1), number % columns * (width + 1)
        board[top : top + height, left : left + width] = tile
    return board


def ghost_head(layer: Layer, network: str) -> Figure:
    """The filters of every channel, a head a line, what multiplies above what is added."""
    module = layer.module
    mul, add = module.ghost_maps()
    power = "" if module.lam == 1 else f"^{module.lam}"
    factor = "" if module.gamma == 1 else f"{module.gamma:g} · "
    named = [
        (f"multiplies the attention: ghost_mul{power}", mul),
        (f"is added to the attention: {factor}ghost_add", add),
    ]
    kinds = [(text, one.detach().float().cpu()) for text, one in named if one is not None]
    per_head = module.dim_v // module.num_heads
    columns = min(per_head, PER_LINE)
    lines = module.num_heads * -(-per_head // columns)
    tall = max(12 * lines / columns, 0.8) + 0.45
    figure = Figure(figsize=(13, tall * len(kinds) + 0.5), layout="constrained")
    place = f"stage {layer.stage}, block {layer.block} ({layer.name})"
    literal(figure.suptitle(" ", fontsize=12), f"{plain(network, 40)}: ghost head of {place}")
    for axis, (text, values) in zip(figure.subplots(len(kinds), 1, squeeze=False).flat, kinds, strict=True):
        tiles = values.unflatten(-1, (module.kernel_size, -1)).numpy()
        of_heads = [mosaic(tiles[start : start + per_head], columns) for start in range(0, len(tiles), per_head)]
        gap = np.full((2, of_heads[0].shape[1]), np.nan)
        board = np.concatenate([part for one in of_heads for part in (one, gap)][:-1])
        peak = np.nanmax(np.abs(board))
        shown = axis.imshow(board, cmap=SIGNED, vmin=-peak, vmax=peak, interpolation="nearest")
        step = of_heads[0].shape[0] + 2
        axis.set_yticks([number * step + (step - 3) / 2 for number in range(module.num_heads)],
                        [f"head {number + 1}" for number in range(module.num_heads)], fontsize=8)  # fmt: skip
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(f"what {text}; {per_head} channels of each head, {module.kernel_size} × "
                       f"{module.kernel_size} taps each", fontsize=10)  # fmt: skip
        figure.colorbar(shown, ax=axis, shrink=0.9, pad=0.01, aspect=12).ax.tick_params(labelsize=8)
    return figure


def fields(found: Sequence[Field], network: str, on: str) -> Figure:
    """A panel for each stage, in decades below the largest gradient."""
    ratio = min(max(found[0].values.shape[0] / found[0].values.shape[1], 0.3), 2.0)
    figure = Figure(figsize=(max(3.3 * len(found) + 0.8, 7), 2.85 * ratio + 1.15), layout="constrained")
    literal(figure.suptitle(" ", fontsize=12), f"{plain(network, 40)}: effective receptive field of the centre, {on}")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    shown = None
    for axis, field in zip(axes, found, strict=True):
        values = np.log10(np.maximum(field.values, 10.0**-DECADES))
        height, width = values.shape
        shown = axis.imshow(values, cmap=LOGARITHM, vmin=-DECADES, vmax=0, extent=(0, width, height, 0))
        sides = ", ".join(f"{share:.0%} within {field.side(share)} px" for share in SHARES)
        axis.set_title(f"stage {field.stage}: {field.grid[0]} × {field.grid[1]} map\n{sides}", fontsize=9)
        axis.tick_params(labelsize=8)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label("log10 of the gradient, largest 0", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def evidence(found: Sequence[tuple[str, np.ndarray, Evidence]], network: str) -> Figure:
    """Pictures, and beside each the evidence over it."""
    columns = 2 if len(found) > 1 else 1
    lines = -(-len(found) // columns)
    ratios = [min(max(pixels.shape[0] / pixels.shape[1], 0.4), 1.8) for _, pixels, _ in found]
    figure = Figure(figsize=(6.4 * columns, (2.85 * max(ratios) + 0.75) * lines + 0.4), layout="constrained")
    literal(figure.suptitle(" ", fontsize=12), plain(network, 60))
    parts = figure.subfigures(lines, columns, squeeze=False).flat
    for part, (name, pixels, one) in zip(parts, found, strict=False):
        literal(part.suptitle(" ", fontsize=9), f"{plain(name, 40)}\n{one.text}")
        axes = part.subplots(1, 2)
        axes[0].imshow(pixels, interpolation="nearest")
        axes[1].imshow(pixels if one.heat is None else _heated(pixels, one.heat), interpolation="nearest")
        for axis in axes:
            axis.set_axis_off()
            if one.box is not None:
                left, top, right, bottom = one.box
                style: dict[str, Any] = dict(fill=False, edgecolor=FRAME, linewidth=1.5)
                axis.add_patch(Rectangle((left, top), right - left, bottom - top, **style))
        if one.heat is not None:
            part.colorbar(ScalarMappable(Normalize(0, 1), HEAT), ax=axes[1], shrink=0.7).ax.tick_params(labelsize=8)
    return figure


def _heated(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A picture in grey under the colours of a map that may be larger at the right and at the bottom."""
    height, width = pixels.shape[:2]
    grey = np.broadcast_to(pixels.mean(-1, keepdims=True), pixels.shape)
    colours = colormaps[HEAT](heat[:height, :width])[..., :3] * 255
    return (0.45 * grey + 0.55 * colours).round().astype(np.uint8)
