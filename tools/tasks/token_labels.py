"""Token labels of a training split: for every image a map of a classifier's best classes and their scores."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from elsa.core import ConfigError, DataError, Progress, logger, make_folder, sha256, write_json, write_then_rename
from elsa.data import ABOUT_LABELS, BadImages, Source, image_size, label_path, whole_image_transform, write_label_map
from elsa.data.images.loaders import EvalImages, collate
from elsa.data.workers import Loader
from elsa.engine import Recipe, Runtime, choose_precision
from elsa.models import load_pretrained, read_checkpoint

from .checkpoints import check_belongs
from .networks import build_model, open_data
from .position_logits import best_classes, position_logits


def make_labels(recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
    """Labels what this process's share of the training split still lacks."""
    config = recipe.config
    part, parts = read_shard(args.shard)
    precision = choose_precision(config, runtime.device)
    model = build_model(config)
    content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
    report = load_pretrained(model, content, weights=config.EVAL.WEIGHTS)
    logger.info("%s: %s", args.checkpoint, report)
    model = model.to(runtime.device).eval()
    (source,) = open_data(config, runtime, "train")
    if isinstance(source, IterableDataset):
        raise DataError(f"token labels need random access, which DATA.DATASET {config.DATA.DATASET} has not")
    check_belongs(args.checkpoint, content, source)
    prepare_folder(recipe, args, source, runtime)

    share = range(len(source))[part::parts][runtime.rank :: runtime.world_size]
    todo = [index for index in share if not (args.output / label_path(source, index)).exists()]
    logger.info("%d images, %d of them in this share, %d to label", len(source), len(share), len(todo))
    bad = BadImages(config.DATA.MAX_BAD, "DATA.MAX_BAD")
    progress = Progress(len(todo), "labelling", "image", runtime.is_main, tells_end=True)
    for batch in batches(config, source, todo):
        bad.add(batch.bad)
        if bad.too_many():
            break
        if len(batch.indices):
            images = batch.images.to(runtime.device, non_blocking=True)
            with torch.inference_mode(), precision.autocast():
                logits = position_logits(model, images, args.grid)
            write_batch(args.output, source, batch.indices.tolist(), *best_classes(logits, args.top))
        progress.advance(len(batch.indices) + len(batch.bad))
    progress.close()
    bad.merge(runtime.gather(bad.names))
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


def prepare_folder(recipe: Recipe, args: argparse.Namespace, source: Source, runtime: Runtime) -> None:
    """Writes what the label maps come from, or checks that those in the folder come from the same."""
    config = recipe.config
    about: dict[str, Any] = {
        "classifier": config.MODEL.NAME,
        "checkpoint": sha256(args.checkpoint),
        "classes": source.classes or config.MODEL.NUM_CLASSES,
        "image_size": recipe.values["DATA.IMG_SIZE"],
        "grid": args.grid,
        "top": args.top,
    }
    path = args.output / ABOUT_LABELS
    with runtime.main_first():
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            if changed := [name for name in about if before.get(name) != about[name]]:
                told = "; ".join(
                    f"{name}: {before.get(name)!s:.200} there, {about[name]!s:.200} now" for name in changed
                )
                raise ConfigError(f"{args.output} holds other label maps ({told}); choose another --output")
        elif runtime.is_main:
            make_folder(args.output)
            write_json(path, {**about, "config": dict(recipe.values)})


def batches(config: CfgNode, source: Source, indices: list[int]) -> Loader:
    """The whole images, squeezed to the classifier's input, without crop: the grid covers all of an image."""
    images, data = EvalImages(source, whole_image_transform(config)), config.DATA
    batch_bytes = 4 * data.EVAL_BATCH * config.MODEL.IN_CHANS * math.prod(image_size(config))
    return Loader(
        images,
        data.EVAL_BATCH,
        sampler=indices,
        num_workers=data.WORKERS,
        collate_fn=collate,
        batch_bytes=batch_bytes,
        setting="DATA.WORKERS",
    )


def write_batch(folder: Path, source: Source, indices: list[int], scores: torch.Tensor, classes: torch.Tensor) -> None:
    for index, *map_of_image in zip(indices, scores.cpu(), classes.cpu(), strict=True):
        path = folder / label_path(source, index)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_then_rename(path, lambda beside, m=map_of_image: write_label_map(beside, *m))
