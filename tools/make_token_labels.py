#!/usr/bin/env python
"""Write the token labels of a training split: for every image a map of a classifier's best classes and their scores.

One process: python tools/make_token_labels.py CONFIG CHECKPOINT --output DIR. Several, on one machine or more with a
shared disk: torchrun --nproc_per_node=N tools/make_token_labels.py …; or start it again and again with --shard I/N.
CONFIG and CHECKPOINT are those of the classifier, any timm or ELSA model. What is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from _classification import build_model, open_data
from _cli import check_writable, make_folder, parser, read, run
from _token_labels import best_classes, position_logits
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from yacs.config import CfgNode

from elsa.data import DataError, Source, label_path, whole_image_transform, write_label_map
from elsa.data.loaders import BadImages, EvalImages, collate
from elsa.engine import (
    ConfigError,
    Runtime,
    choose_precision,
    distributed,
    logger,
    plain,
    setup_logging,
    sha256,
    write_json,
    write_then_rename,
)
from elsa.models import load_pretrained

ABOUT = "labels.json"
LOG_SECONDS = 10.0


def main() -> None:
    arguments = parser(__doc__, checkpoint=True)
    arguments.add_argument("--output", type=Path, metavar="DIR", help="folder for the label maps, TOKENS.LABELS")
    arguments.add_argument("--grid", type=int, default=18, metavar="N", help="cells per side (default 18)")
    arguments.add_argument("--top", type=int, default=5, metavar="K", help="classes per cell (default 5)")
    arguments.add_argument(
        "--shard", default="1/1", metavar="I/N", help="the I-th of N parts, for jobs without torchrun"
    )
    args, config = read(arguments)
    if config is None:
        raise ConfigError(f"{args.config} is no classifier; label maps need one of configs/classification")
    if args.output is None:
        raise ConfigError("--output DIR is needed: where the label maps go")
    for name, value in (("--grid", args.grid), ("--top", args.top)):
        if not 1 <= value <= 1024:
            raise ConfigError(f"{name} must be between 1 and 1024, got {value}")
    with distributed(args.device) as runtime:
        setup_logging(runtime)
        make_labels(config, args, runtime)


def make_labels(config: CfgNode, args: argparse.Namespace, runtime: Runtime) -> None:
    """Labels what this process's share of the training split still lacks."""
    check_writable(args.output)
    part, parts = read_shard(args.shard)
    precision = choose_precision(config, runtime.device)
    model = build_model(config, pretrained=False)
    report = load_pretrained(model, args.checkpoint, weights=config.EVAL.WEIGHTS, trust=args.trust_checkpoint)
    logger.info("%s: %s", args.checkpoint, report)
    model = model.to(runtime.device).eval()
    (source,) = open_data(config, runtime, "train")
    if isinstance(source, IterableDataset):
        raise DataError(f"token labels need random access, which DATA.DATASET {config.DATA.DATASET} has not")
    prepare_folder(config, args, runtime)

    share = range(len(source))[part::parts][runtime.rank :: runtime.world_size]
    todo = [index for index in share if not (args.output / label_path(source, index)).exists()]
    logger.info("%d images, %d of them in this share, %d to label", len(source), len(share), len(todo))
    bad = BadImages(config.DATA.MAX_BAD)
    progress = Progress(len(todo), runtime.is_main)
    for batch in batches(config, source, todo):
        bad.add(batch.bad)
        if len(batch.indices):
            images = batch.images.to(runtime.device, non_blocking=True)
            with torch.inference_mode(), precision.autocast():
                logits = position_logits(model, images, args.grid)
            write_batch(args.output, source, batch.indices.tolist(), *best_classes(logits, args.top))
        progress.advance(len(batch.indices) + len(batch.bad))
    progress.close()
    for index in todo:
        path = args.output / label_path(source, index)
        if not path.exists():  # an unreadable image, which training skips as well: any map will do
            nothing = torch.zeros(1, args.top, args.grid, args.grid)
            write_batch(args.output, source, [index], nothing, nothing)
    runtime.barrier()
    logger.info("%s/ has the label maps of this share; train with TOKENS.LABELS=%s", args.output, args.output)


def read_shard(text: str) -> tuple[int, int]:
    """ "2/4" → (1, 4)."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise ConfigError(f"--shard must be I/N with 1 ≤ I ≤ N, got {text!r}")
    return int(part) - 1, int(parts)


def prepare_folder(config: CfgNode, args: argparse.Namespace, runtime: Runtime) -> None:
    """Writes what the label maps come from, or checks that those in the folder come from the same."""
    about: dict[str, Any] = {
        "classifier": config.MODEL.NAME,
        "checkpoint": sha256(args.checkpoint),
        "classes": config.MODEL.NUM_CLASSES,
        "image_size": config.DATA.IMG_SIZE,
        "grid": args.grid,
        "top": args.top,
    }
    path = args.output / ABOUT
    with runtime.main_first():
        if path.exists():
            before = json.loads(path.read_text())
            if changed := [name for name in about if before.get(name) != about[name]]:
                told = "; ".join(f"{name}: {before.get(name)} there, {about[name]} now" for name in changed)
                raise ConfigError(f"{args.output} holds other label maps ({told}); choose another --output")
        elif runtime.is_main:
            make_folder(args.output)
            write_json(path, {**about, "config": plain(config)})


def batches(config: CfgNode, source: Source, indices: list[int]) -> DataLoader:
    """The whole images, squeezed to the classifier's input, without crop: the grid covers all of an image."""
    images = EvalImages(source, whole_image_transform(config))
    return DataLoader(
        images, config.DATA.EVAL_BATCH, sampler=indices, num_workers=config.DATA.WORKERS, collate_fn=collate
    )


def write_batch(folder: Path, source: Source, indices: list[int], scores: torch.Tensor, classes: torch.Tensor) -> None:
    for index, *map_of_image in zip(indices, scores.cpu(), classes.cpu(), strict=True):
        path = folder / label_path(source, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_then_rename(path, lambda beside, m=map_of_image: write_label_map(beside, *m))


class Progress:
    """A bar on a terminal, else a line with the time that is left every ``LOG_SECONDS``."""

    def __init__(self, total: int, shown: bool) -> None:
        self.total, self.shown, self.done = total, shown, 0
        self.start = self.told = time.perf_counter()
        self.bar = tqdm(total=total, unit="image", disable=None if shown else True, leave=False)

    def advance(self, count: int) -> None:
        self.done += count
        self.bar.update(count)
        now = time.perf_counter()
        if self.shown and self.bar.disable and (now - self.told > LOG_SECONDS or self.done == self.total):
            self.told = now
            left = (now - self.start) / self.done * (self.total - self.done)
            rate = self.done / (now - self.start)
            logger.info("%d of %d images, %.0f img/s, ETA %s", self.done, self.total, rate, tqdm.format_interval(left))

    def close(self) -> None:
        self.bar.close()


if __name__ == "__main__":
    run(main)
