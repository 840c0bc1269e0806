"""Parameters and multiply-adds of classifiers, beside the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from elsa.data import image_size
from elsa.engine import load_config

from .conclusion import parameters
from .networks import create_network

# Millions of parameters and billions of multiply-adds. Parameters: the READMEs of ELSA and VOLO, Swin's paper.
# Multiply-adds: Swin's paper, and for VOLO timm's model cards, but D5 at 512 its paper. None: not published.
PUBLISHED: dict[str, tuple[float | None, float | None]] = {
    "elsa_swin_tiny": (28, None),
    "elsa_swin_small": (53, None),
    "elsa_swin_base": (93, None),
    "swin_tiny": (29, 4.5),
    "swin_small": (50, 8.7),
    "swin_base": (88, 15.4),
    "volo_d1": (27, 6.9),
    "volo_d1_384": (27, 22.7),
    "volo_d2": (59, None),
    "volo_d2_384": (59, None),
    "volo_d3": (86, None),
    "volo_d3_448": (86, 96.3),
    "volo_d4": (193, None),
    "volo_d4_448": (193, 197.1),
    "volo_d5": (296, None),
    "volo_d5_448": (296, None),
    "volo_d5_512": (296, 412),
}


def count(path: Path, overrides: list[str]) -> dict[str, Any]:
    """One row of the table."""
    config = load_config(path, overrides)
    size = image_size(config)
    with torch.device("meta"):
        network, image = create_network(config).eval(), torch.empty(1, config.MODEL.IN_CHANS, *size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return {
        "configuration": path.stem,
        "model": config.MODEL.NAME,
        "image_size": config.DATA.IMG_SIZE,
        "parameters": parameters(network),
        "multiply_adds": counter.get_total_flops() // 2,
        "published": PUBLISHED.get(path.stem, (None, None)) if not overrides else (None, None),
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
