"""Exporting as the verb does it, and networks small enough for it to take no time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import nn

from elsa.engine import distributed
from elsa.tools.tasks.command import read
from elsa.tools.tasks.exporting import Subject


def arguments(output: Path, **options: Any) -> argparse.Namespace:
    """As the verb has them."""
    given = dict(format=None, size="auto", dtype="float32", quantize=None, overwrite=False, device="auto")
    given |= dict(trust_checkpoint=False, accuracy=False)
    return argparse.Namespace(output=output, **{**given, **options})


def export(recipe: Path, checkpoint: Path, output: Path, **options: Any) -> Path:
    """Writes ``output``; what cannot be raises, as below the verb."""
    task, found = read(recipe, [])
    with distributed("cpu") as runtime:
        task.export(found, arguments(output, checkpoint=checkpoint, **options), runtime)
    return output


class Small(nn.Module):
    """Images (B, 3, H, W) → 5 logits, of one size alone where ``side`` is given."""

    def __init__(self, side: int | None = None) -> None:
        super().__init__()
        self.side = side
        self.embed, self.hidden, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 64), nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.side is not None and x.shape[-1] != self.side:
            raise ValueError(f"the width must be {self.side}, got {x.shape[-1]}")
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(torch.relu(self.hidden(tokens))).mean(1)


def small(side: int | None = None) -> Subject:
    """Of ``Small``, for images of 16 × 16 and, unless a side is given, any other size."""
    torch.manual_seed(0)
    network = Small(side).eval().requires_grad_(False)
    shapes = ((1, 16, 16), (3, 16, 16))
    return Subject(network, "small", ("logits",), 3, (16, 16), {"input": {}}, shapes, ((2, 24, 33),))
