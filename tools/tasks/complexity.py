"""Parameters and multiply-adds of models that are not computed, beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from elsa.data import image_size
from elsa.engine import load_config

from .conclusion import parameters
from .networks import create_network
from .zoo import read_figures


def multiply_adds(network: nn.Module, shape: Sequence[int]) -> int:
    """Of one image (C, H, W): half the floating-point operations of convolutions, matrix products and our operators.

    Args:
        network: on the meta device.
    """
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() // 2


def count_classifier(config: Any) -> dict[str, Any]:
    """Height and width of an image, parameters, and multiply-adds, of a recipe of classification."""
    size = image_size(config)
    with torch.device("meta"):
        network = create_network(config)
    return {
        "input": list(size),
        "parameters": parameters(network),
        "multiply_adds": multiply_adds(network, (config.MODEL.IN_CHANS, *size)),
    }


def count(path: Path, overrides: list[str]) -> dict[str, Any]:
    """One row of the table."""
    config = load_config(path, overrides)
    counted = count_classifier(config)
    known = {} if overrides else read_figures().get(path.stem, {}).get("published", {})
    return {
        "configuration": path.stem,
        "model": config.MODEL.NAME,
        "image_size": config.DATA.IMG_SIZE,
        "parameters": counted["parameters"],
        "multiply_adds": counted["multiply_adds"],
        "published": (known.get("parameters_m"), known.get("multiply_adds_g")),
    }


def line(row: dict[str, Any]) -> str:
    """A row for people."""
    published = [f"{'–' if value is None else value:>9}" for value in row["published"]]
    size = row["image_size"]
    side = size if isinstance(size, int) else "×".join(map(str, size))
    return (
        f"{row['configuration']:<22} {side:>4} {row['parameters'] / 1e6:>10.2f} {published[0]}"
        f" {row['multiply_adds'] / 1e9:>8.2f} {published[1]}"
    )
