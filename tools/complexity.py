#!/usr/bin/env python
"""Parameters and multiply-adds of the models of configurations, beside the published ones.

python tools/complexity.py [CONFIG …], without CONFIG all ImageNet recipes. Nothing is computed but shapes. Counted are
convolutions, matrix products, attention and the ELSA operator; multiply-adds are half the floating-point operations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _classification import create_network, parameters
from _cli import run
from torch.utils.flop_counter import FlopCounterMode

from elsa.engine import load_config, write_json

RECIPES = Path(__file__).resolve().parents[1] / "configs/classification"

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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("configs", type=Path, nargs="*", metavar="CONFIG", help="default: all ImageNet recipes")
    arguments.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[])
    arguments.add_argument("--output", type=Path, metavar="FILE", help="write the table as JSON, too")
    args = arguments.parse_args()
    configs = args.configs or sorted(path for path in RECIPES.glob("*.yaml") if not path.name.startswith("digits"))
    rows = []
    print(f"{'configuration':<22} {'size':>4} {'params (M)':>10} {'published':>9} {'GMACs':>8} {'published':>9}")
    for path in configs:
        rows += [row := count(path, args.overrides)]
        published = [f"{'–' if value is None else value:>9}" for value in row["published"]]
        print(
            f"{row['configuration']:<22} {row['image_size']:>4} {row['parameters'] / 1e6:>10.2f} {published[0]}"
            f" {row['multiply_adds'] / 1e9:>8.2f} {published[1]}",
            flush=True,
        )
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, rows)


def count(path: Path, overrides: list[str]) -> dict:
    """One row of the table."""
    config = load_config(path, overrides)
    size = config.DATA.IMG_SIZE
    with torch.device("meta"):
        network, image = create_network(config).eval(), torch.empty(1, config.MODEL.IN_CHANS, size, size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return {
        "configuration": path.stem,
        "model": config.MODEL.NAME,
        "image_size": size,
        "parameters": parameters(network),
        "multiply_adds": counter.get_total_flops() // 2,
        "published": PUBLISHED.get(path.stem, (None, None)) if not overrides else (None, None),
    }


if __name__ == "__main__":
    run(main)
