"""How far a file is from PyTorch, and how fast it is on this machine."""

from __future__ import annotations

import argparse
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from elsa.core import TrainingError

from ..benchmark.measure import cpu_seconds, processor_seconds, shortest
from .subject import Call, Shape, Subject

TOLERANCE = 1e-4  # of the largest number of an output, in float32
TIMED = 2  # of the shapes that are compared
SECONDS = 0.5  # for each


def tolerance(args: argparse.Namespace) -> float:
    """Of the difference; whoever rounds weights wants one, and is told how large it is."""
    return math.inf if args.quantize or args.dtype != "float32" else TOLERANCE


def compare(call: Call, subject: Subject, shapes: Sequence[Shape], most: float) -> float:
    """The largest difference of an output, as a share of the largest number in it, over images of several shapes.

    Raises:
        TrainingError: it is above ``most``, or no number; or an output has another shape.
    """
    worst = 0.0
    for shape in shapes:
        images = subject.images(shape)
        with torch.no_grad():
            expected, found = subject.call(images), call(images)
        for name, one, other in zip(subject.outputs, expected, found, strict=True):
            if one.shape != other.shape:
                raise TrainingError(
                    f"the exported network gives {name} of {tuple(other.shape)} for {tuple(one.shape)}, of "
                    f"images {tuple(images.shape)}"
                )
            share = float((other.float() - one).abs().max() / one.abs().max())
            if not share <= most or math.isnan(share):
                raise TrainingError(
                    f"the exported network differs from PyTorch by {share:.1e} of the largest number of {name}, of "
                    f"images {tuple(images.shape)}"
                )
            worst = max(worst, share)
    return worst


def latencies(calls: Mapping[str, Call], subject: Subject) -> dict[str, dict[str, float]]:
    """Milliseconds of the fastest of some calls of each, by the images' shape: of the processor's time where there is
    one thread, so that other programs do not count."""
    found: dict[str, dict[str, float]] = {name: {} for name in calls}
    clock = processor_seconds if torch.get_num_threads() == 1 else cpu_seconds
    with torch.no_grad():
        for shape in subject.shapes[:TIMED]:
            images = subject.images(shape)
            bound = {name: (lambda call=call, images=images: call(images)) for name, call in calls.items()}
            for name, seconds in shortest(bound, SECONDS, clock).items():
                found[name]["×".join(map(str, shape))] = round(1e3 * seconds, 3)
    return found


def machine() -> dict[str, Any]:
    return {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads()}  # fmt: skip


def table(measured: Mapping[str, Any]) -> Iterator[str]:
    """What was measured, for people."""
    shapes = ", ".join("×".join(map(str, shape)) for shape in measured["shapes"])
    yield f"differs from PyTorch by {measured['difference']:.1e} of the largest number at most, of images {shapes}"
    times, top1 = measured.get("milliseconds", {}), measured.get("top1", {})
    columns = [*next(iter(times.values()), {})]
    rows = {name: [f"{found:.1f} ms" for found in times[name].values()] for name in times}
    rows |= {name: [*rows.get(name, []), f"{share:.2f} %"] for name, share in top1.items()}
    if rows:
        wide = max(map(len, rows))
        for name, cells in [("", columns + ["top-1"] * bool(top1)), *rows.items()]:
            yield f"{name:<{wide}}" + "".join(f"  {cell:>12}" for cell in cells)
