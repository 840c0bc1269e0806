#!/usr/bin/env python
"""Predict for images of one's own: python tools/predict.py CONFIG CHECKPOINT IMAGE|FOLDER --output DIR.

Classes with their confidence; for a configuration of detection, boxes and masks drawn and in COCO's format.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from _classification import build_model
from _cli import check_writable, find_images, make_folder, parser, read, run
from _pictures import draw_grid
from PIL import Image
from torch import nn
from tqdm import tqdm
from yacs.config import CfgNode

from elsa.data import UNREADABLE, eval_transform
from elsa.engine import ConfigError, choose_precision, distributed, logger, setup_logging, write_json
from elsa.models import load_pretrained, read_checkpoint

MOST_DRAWN = 100


def main() -> None:
    arguments = parser(__doc__, checkpoint=True)
    arguments.add_argument("images", type=Path, metavar="IMAGE|FOLDER")
    arguments.add_argument("--output", type=Path, default=Path("runs/predict"), metavar="DIR")
    arguments.add_argument("--top", type=int, metavar="K", help="classification: classes listed per image; default 5")
    arguments.add_argument(
        "--threshold", type=float, default=0.3, metavar="SCORE", help="detection: objects drawn; the JSON has all"
    )
    args, config = read(arguments)
    if config is None:
        from _dense_verbs import predict

        predict(args)
    else:
        classify_images(args, config)


def classify_images(args: argparse.Namespace, config: CfgNode) -> None:
    """The classes of each image, as JSON and as a picture."""
    classes = config.MODEL.NUM_CLASSES
    top = min(5, classes) if args.top is None else args.top
    if not 1 <= top <= classes:
        raise ConfigError(f"--top must be between 1 and MODEL.NUM_CLASSES {classes}, got {top}")
    check_writable(args.output)
    paths = find_images(args.images)
    with distributed(args.device) as runtime:
        setup_logging(runtime)
        content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
        model = build_model(config, pretrained=False)
        logger.info("%s: %s", args.checkpoint, load_pretrained(model, content, weights=config.EVAL.WEIGHTS))
        names = content.get("classes") or [str(number) for number in range(classes)]
        rows = list(classify(model.to(runtime.device).eval(), config, paths, runtime.device, top))
    results = [
        {"image": str(path), "top": [{"class": names[index], "confidence": share} for index, share in top]}
        for path, top in rows
    ]
    make_folder(args.output)
    write_json(args.output / "predictions.json", results)
    cells = ((Image.open(path), f"{names[top[0][0]]} ({top[0][1]:.0%})", "black") for path, top in rows[:MOST_DRAWN])
    draw_grid(list(cells), args.output / "predictions.png", f"{config.MODEL.NAME}: {args.checkpoint.name}")
    for result in results[:10]:
        listed = ", ".join(f"{entry['class']} {entry['confidence']:.1%}" for entry in result["top"])
        logger.info("%s: %s", result["image"], listed)
    logger.info("%d of %d images classified: predictions.json and predictions.png in %s",
                len(rows), len(paths), args.output)  # fmt: skip


@torch.inference_mode()
def classify(
    model: nn.Module, config: CfgNode, paths: list[Path], device: torch.device, top: int
) -> Iterator[tuple[Path, list[tuple[int, float]]]]:
    """(path, [(class index, confidence), …]) of each readable image; the others are named and left out."""
    transform, precision = eval_transform(config), choose_precision(config, device)
    mode = "RGB" if config.MODEL.IN_CHANS == 3 else "L"
    remaining = iter(tqdm(paths, desc="classifying", unit="image", disable=None, leave=False))
    while part := list(itertools.islice(remaining, config.DATA.EVAL_BATCH)):
        readable, images = [], []
        for path in part:
            try:
                images.append(transform(Image.open(path).convert(mode)))
                readable.append(path)
            except UNREADABLE as error:
                logger.warning("skipping %s: it cannot be read (%s)", path, error)
        if not images:
            continue
        with precision.autocast():
            logits = model(torch.stack(images).to(device))
        shares, indices = logits.float().softmax(1).topk(top)
        for path, index, share in zip(readable, indices.tolist(), shares.tolist(), strict=True):
            yield path, list(zip(index, share, strict=True))


if __name__ == "__main__":
    run(main)
