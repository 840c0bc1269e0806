"""What is exported: a network, what it gives, and the images that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Call = Callable[[Tensor], tuple[Tensor, ...]]
Shape = tuple[int, int, int]
"""Images, height, width"""


def whole(network: nn.Module) -> nn.Module:
    return network


@dataclass(frozen=True)
class Subject:
    """A network as a file holds it.

    Attributes:
        network: whose weights they are; in eval mode, without gradients.
        name: of the model.
        outputs: names of what it gives.
        channels: C. size: height and width that it was trained with.
        about: what is told of it in the file and beside it.
        shapes: of the images that are compared, of the size first; where a graph holds one size, these alone.
        others: of further images, where it holds any.
        top1: how the network as a function → the top-1 accuracy in per cent, where that is asked for.
        part: the network → what of it is called: images (B, C, H, W) → a tensor, or several as a tuple.
    """

    network: nn.Module
    name: str
    outputs: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    about: dict[str, Any]
    shapes: Sequence[Shape]
    others: Sequence[Shape] = ()
    top1: Callable[[Call], float] | None = None
    part: Callable[[nn.Module], nn.Module] = whole

    def images(self, shape: Shape) -> Tensor:
        """Numbers as normalised images have them, the same for the same shape."""
        count, height, width = shape
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(count, self.channels, height, width, generator=generator)

    @property
    def called(self) -> nn.Module:
        return self.part(self.network)

    def call(self, images: Tensor) -> tuple[Tensor, ...]:
        return as_tuple(self.called(images))


def as_tuple(found: Any) -> tuple[Tensor, ...]:
    return tuple(found) if isinstance(found, (tuple, list)) else (found,)


def why_one_size(subject: Subject) -> str | None:
    """Why the network takes images of its own size alone; None where it takes any."""
    if not subject.others:
        return "nothing is known of other sizes"
    try:
        with torch.no_grad():
            subject.call(subject.images(subject.others[0]))
    except Exception as error:  # networks raise whatever a size makes them stumble over
        return first_line(error)
    return None


def first_line(error: BaseException) -> str:
    """Of the error that others were made of."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
