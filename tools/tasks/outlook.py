"""The plan of a recipe on GPUs that need not be here."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from elsa.core import ConfigError, did_you_mean
from elsa.engine.memory import GIB, USABLE, Memory

from .planning import Wish, settle

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
WORDS = {"precision": tuple(PRECISIONS), "parallel": ("ddp", "fsdp")}
NUMBERS: dict[str, tuple[type, float]] = {
    "nodes": (int, 10**5), "gpus": (int, 10**3), "memory": (float, 10**4), "images": (int, 10**12),
}  # fmt: skip


def check_machine(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with numbers as numbers.

    Raises:
        ConfigError: one that is unknown or out of range.
    """
    args, rest = arguments.parse_known_intermixed_args()
    if rest:
        known = [flag for flag in arguments._option_string_actions if flag.startswith("--")]
        raise ConfigError(f"unknown argument {rest[0]!r}{did_you_mean(rest[0], known)}")
    for name, (kind, most) in NUMBERS.items():
        if (text := getattr(args, name)) is None:
            continue
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not 0 < value <= most:
            what = "an integer" if kind is int else "a number"
            raise ConfigError(f"--{name} must be {what} above 0 and at most {most}, got {text!r:.80}")
        setattr(args, name, value)
    for name, allowed in WORDS.items():
        if (text := getattr(args, name)) is not None and text not in allowed:
            near = did_you_mean(text, allowed)
            raise ConfigError(f"--{name} must be one of {', '.join(allowed)}, got {text!r:.80}{near}")
    return args


@dataclass(frozen=True)
class Outlook:
    """What a task can say of a training that does not take place.

    Attributes:
        model: its name; parameters: how many.
        rates: learning rates by name, as the recipe has them.
        images: of the training split where they are known; epochs or steps: the length.
        measured: makes the estimate for so many processes.
    """

    wish: Wish
    model: str
    parameters: int
    rates: Mapping[str, float]
    images: int | None
    epochs: int | None
    steps: int | None
    measured: Callable[[int], Memory]


def foresee(outlook: Outlook, args: argparse.Namespace) -> dict[str, Any]:
    """The plan of a recipe on ``args.nodes`` nodes of ``args.gpus`` GPUs with ``args.memory`` GiB each."""
    processes, usable = args.nodes * args.gpus, USABLE * args.memory * GIB
    settled = settle(outlook.wish, processes, usable, lambda: outlook.measured(processes))
    batch, images = settled.batch, args.images or outlook.images
    if images is not None and images < batch.size:
        which = f"--images {images}" if args.images else f"the {images} images of the recipe's data"
        raise ConfigError(f"{which} are fewer than a batch of {batch.size}")
    per_epoch = None if images is None else images // batch.size
    steps = outlook.steps or (None if per_epoch is None else per_epoch * outlook.epochs)
    memory = settled.memory
    return {
        "model": outlook.model,
        "parameters": outlook.parameters,
        "nodes": args.nodes,
        "gpus": args.gpus,
        "global_batch": batch.size,
        "accumulate": batch.accumulate,
        "micro_batch": batch.micro,
        "learning_rates": {name: rate * batch.lr_factor for name, rate in outlook.rates.items()},
        "images": images,
        "steps_per_epoch": per_epoch,
        "epochs": outlook.epochs,
        "total_steps": steps,
        "adapted": list(settled.adapted),
        "memory": settled.as_dict(),
        "table": None if memory is None else memory.table(batch.micro),
        "fits": None if memory is None else memory.total(batch.micro) <= usable,
        "most_images": None if memory is None else memory.most(usable),
        "why_no_memory": settled.told if memory is None else "",
    }


def told(plan: Mapping[str, Any]) -> Iterator[str]:
    """``foresee`` for people."""
    yield f"{plan['model']}: {plan['parameters'] / 1e6:.2f} M parameters, {plan['nodes']} × {plan['gpus']} GPUs"
    yield from plan["adapted"]
    processes = plan["nodes"] * plan["gpus"]
    yield (
        f"global batch {plan['global_batch']} = {processes} processes × {plan['accumulate']} accumulated × "
        f"{plan['micro_batch']} images"
    )
    yield "learning rates " + ", ".join(f"{name} {rate:g}" for name, rate in plan["learning_rates"].items())
    if plan["steps_per_epoch"] is not None:
        yield f"{plan['images']} images: {plan['steps_per_epoch']} steps an epoch"
    if plan["total_steps"] is not None:
        yield f"{plan['total_steps']} steps" + (f" in {plan['epochs']} epochs" if plan["epochs"] else "")
    else:
        yield f"{plan['epochs']} epochs; --images N tells how many steps"
    if plan["memory"] is None:
        yield plan["why_no_memory"]
        return
    memory = plan["memory"]
    yield f"memory of each GPU in GiB, estimated for {plan['micro_batch']} images at a time:"
    for name, size in plan["table"].items():
        yield f"  {name:<24} {size / GIB:9.3f}"
    yield f"  {'total':<24} {memory['total'] / GIB:9.3f}"
    yield f"  {'usable':<24} {memory['usable'] / GIB:9.3f}"
    yield f"  an image {(memory['image'] + memory['work']) / 2**20:.1f} MiB; room for {plan['most_images']} at a time"
    for note in memory["notes"]:
        yield f"  {note}"
    yield "fits" if plan["fits"] else "does not fit"
