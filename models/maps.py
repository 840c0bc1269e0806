"""What timm and dense tasks ask of every network of stages: maps by number, and stages that do not learn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .layers import select_stages

FORMATS = ("NCHW", "NHWC")


def last_map(maps: Iterator[Tensor]) -> Tensor:
    """The last one; none of the others is kept."""
    return functools.reduce(lambda _, last: last, maps)


class Intermediates(nn.Module):
    """timm's ``forward_intermediates`` of a network that has these:

    Attributes:
        embed: the images (B, C_in, H, W) → the first map (B, H', W', C).
        maps: the embedded images → the maps (B, H_i, W_i, C_i), one after the other.
        stage_ends: per stage, the number of its map among those.
        norm, norm_from: the final norm, and the first of the maps that have its width.
        finish: the last map → what ``forward_features`` returns.
    """

    embed: Callable[[Tensor], Tensor]
    maps: Callable[[Tensor], Iterator[Tensor]]
    stage_ends: list[int]
    norm: nn.Module
    norm_from: int
    finish: Callable[[Tensor], Tensor]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of the stages, of an image of any size.

        Args:
            x: (B, C_in, H, W).
            indices: the last n stages (int), the stages named (sequence, negative from the end), or all (None).
            norm: applies the final LayerNorm to the maps that have its width.
            stop_early: runs no stage after the last one asked for.
            output_fmt: "NCHW" or "NHWC".
            intermediates_only: returns the list alone, without what ``forward_features`` returns (or, where not all
                stages ran, the last map).
        """
        if output_fmt not in FORMATS:
            raise ValueError(f"output_fmt must be {' or '.join(FORMATS)}, got {output_fmt!r}")
        wanted = [self.stage_ends[stage] for stage in select_stages(indices, len(self.stage_ends))]
        intermediates = []
        for index, level in enumerate(self.maps(self.embed(x))):
            if index in wanted:
                shown = self.norm(level) if norm and index >= self.norm_from else level
                intermediates.append(shown.permute(0, 3, 1, 2) if output_fmt == "NCHW" else shown)
            if stop_early and index == max(wanted):
                break
        if intermediates_only:
            return intermediates
        return (self.finish(level) if index == self.stage_ends[-1] else level), intermediates


class Frozen(nn.Module):
    """A backbone of which some maps are returned, and the first stages may be frozen (eval mode, no gradients)."""

    out_indices: tuple[int, ...]
    frozen_stages: int

    def choose(self, out_indices: Sequence[int], levels: int, frozen_stages: int, stages: int) -> None:
        """Takes the arguments.

        Raises:
            ValueError: a map that is none of ``levels``, or more frozen stages than there are.
        """
        if not out_indices or any(index not in range(levels) for index in out_indices):
            raise ValueError(f"out_indices must name maps 0 … {levels - 1}, got {tuple(out_indices)}")
        if frozen_stages not in range(-1, stages + 1):
            raise ValueError(f"frozen_stages must be -1 … {stages}, got {frozen_stages}")
        self.out_indices, self.frozen_stages = tuple(out_indices), frozen_stages

    def frozen_modules(self) -> list[nn.Module]:
        """Those that stay in eval mode."""
        raise AssertionError("a subclass knows its modules")

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for module in self.frozen_modules():
            module.eval()
        return self
