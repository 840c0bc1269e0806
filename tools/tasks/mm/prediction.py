"""Prediction with detectors and segmentors for images of one's own."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn
from tqdm import tqdm

from elsa.core import DataError, check_writable, logger, write_json
from elsa.engine import Runtime
from elsa.models import load_pretrained, read_checkpoint

from ..checkpoints import check_classes as check_names
from ..checkpoints import class_names
from ..command import find_images
from .session import build_model, check_classes, mistakes_named, prepare


def predict(config: Config, args: argparse.Namespace, runtime: Runtime, kind: Callable[..., Any]) -> None:
    """Objects or label maps: a picture of each image, and all of it as JSON.

    Args:
        kind: ObjectPredictions or MapPredictions, of the recipe, class names, a folder, and ``facts_of_data``.

    Raises:
        ConfigError: the checkpoint, the recipe and its model differ in their classes.
        DataError: not one image can be predicted.
    """
    check_writable(args.output)
    paths = find_images(args.images)
    model, classes, content = load_model(config, args, runtime)
    model.to(runtime.device).eval()
    with mistakes_named("test_dataloader.dataset"):
        found = kind(config, classes, args.output, facts_of_data(content))
    for path in tqdm(paths, desc="predicting", unit="image", disable=None, leave=False):
        with mistakes_named(str(path)):
            found.add(model, path)
    if not found.images:
        places = ", ".join(map(str, args.images))
        raise DataError(f"none of the images of {places} can be predicted: {found.skipped[0]['reason']}")
    write_json(args.output / "predictions.json", found.as_json())
    logger.info("%d of %d images: %s; pictures and predictions.json in %s",
                len(found.images), len(paths), found.summary(), args.output)  # fmt: skip


def load_model(
    config: Config, args: argparse.Namespace, runtime: Runtime
) -> tuple[nn.Module, list[str], Mapping[str, Any]]:
    """The model with a checkpoint's weights, the names of its classes, and what the checkpoint holds.

    Raises:
        ConfigError: the checkpoint, the recipe and its model differ in their classes.
    """
    prepare(config)
    content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
    model, _ = build_model(config, runtime)
    logger.info("%s: %s", args.checkpoint, load_pretrained(model, content))
    check_names(args.checkpoint, content, known_classes(config))
    classes = class_names(content) or known_classes(config)
    check_classes(config, classes)
    return model, classes, content


def facts_of_data(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint tells of the data set that it was trained on, as mm's packages store it."""
    meta = content.get("meta")
    facts = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    return facts if isinstance(facts, Mapping) else {}


def known_classes(config: Config) -> list[str]:
    """The recipe's class names, else those of its data set's type; empty where there are none."""
    dataset = config.test_dataloader.dataset
    with mistakes_named("test_dataloader.dataset"):
        names = (dataset.get("metainfo") or {}).get("classes") or DATASETS.get(dataset.type).METAINFO.get("classes")
        return list(names or ())
