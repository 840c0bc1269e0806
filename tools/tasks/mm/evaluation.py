"""Evaluation of detectors and segmentors: a loop over ``test_step`` and mmengine's evaluators."""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from torch import nn
from torch.utils.data import DataLoader

from elsa.core import ConfigError, Progress, did_you_mean, logger, make_folder, sha256, write_json
from elsa.data.mm.loaders import eval_loader
from elsa.engine import Evaluation, Recipe, Runtime
from elsa.models import load_pretrained, read_checkpoint

from ..checkpoints import about
from ..checkpoints import check_classes as check_names
from ..training import environment, parameters
from .pictures import PicturesOfTest
from .session import build_model, check_classes, mistakes_named, prepare, write_embedded

Seen = Callable[[int, Sequence[Any]], None]
"""Called with the number of a batch and its predictions."""


@dataclass(frozen=True)
class Metric:
    """The metrics of a task.

    Attributes:
        curves: ends of the names that a run's picture draws.
        known: evaluator's configuration, class names → the names of its numbers; empty where that is not known.
    """

    curves: tuple[str, ...]
    known: Callable[[Mapping[str, Any], Sequence[str]], list[str]]


def measure(
    model: nn.Module, loader: DataLoader, settings: Any, runtime: Runtime, seen: Seen = lambda number, found: None
) -> dict[str, float]:
    """The numbers of ``val_evaluator`` or ``test_evaluator`` over the whole split, the same in every process; none
    where a detector found nothing (mmdet gives none then)."""
    was_training = model.training
    model.eval()
    with redirect_stdout(io.StringIO()):  # pycocotools prints the numbers that the log has
        evaluator = Evaluator(settings)
        evaluator.dataset_meta = loader.dataset.metainfo
        progress = Progress(len(loader), "evaluating", "batch", runtime.is_main)
        with torch.no_grad():
            for number, batch in enumerate(loader):
                found = model.test_step(batch)
                evaluator.process(data_samples=found, data_batch=batch)
                seen(number, found)
                progress.advance(1)
        progress.close()
        numbers = evaluator.evaluate(len(loader.dataset))
    model.train(was_training)
    return {name: float(value) for name, value in numbers.items()}


def evaluate(
    model: nn.Module, loader: DataLoader, settings: Any, runtime: Runtime, metric: Metric, wanted: str
) -> Evaluation:
    """An evaluation during a training. ``wanted``, what the best checkpoint has most of, is 0 where nothing was found.

    Raises:
        ConfigError: the evaluator gives no such number.
    """
    numbers = measure(model, loader, settings, runtime)
    if not numbers:
        logger.warning("the evaluation found nothing: %s counts as 0", wanted)
        numbers = {wanted: 0.0}
    if wanted not in numbers:
        raise ConfigError(f"run.metric: the evaluation has no {wanted!r}; it has {', '.join(numbers)}")
    short = {name.partition("/")[2]: value for name, value in numbers.items()}
    listed = " ".join(f"{name} {value:.3f}" for name, value in short.items() if "/" not in name)
    return Evaluation(numbers, len(loader.dataset), listed)


def check_metric(settings: Any, wanted: str, metric: Metric, classes: Sequence[str]) -> None:
    """Raises ConfigError where it is known beforehand that the evaluator will not give the wanted number."""
    parts = settings if isinstance(settings, (list, tuple)) else [settings]
    known = [metric.known(part, classes) for part in parts]
    names = [name for some in known for name in some]
    if all(known) and wanted not in names:
        raise ConfigError(f"run.metric {wanted!r} is no number of the evaluation{did_you_mean(wanted, names)}")


def evaluate_checkpoint(
    recipe: Recipe,
    args: argparse.Namespace,
    runtime: Runtime,
    passes: Callable[[Config, argparse.Namespace], list[tuple[Config, bool]]],
    rename: Callable[[Mapping[str, float], Config], dict[str, float | None]],
    drawing: Callable[[Mapping[str, Any]], Any],
) -> None:
    """All numbers of the data set's metric, of a checkpoint of ours or of mmdet's and mmseg's.

    Args:
        passes: recipe and options → (configuration, whether with test-time augmentation) of each pass over the data.
        rename: an evaluator's numbers → the names that people read.
        drawing: facts of the data set → what draws a picture.
    """
    config = recipe.config
    prepare(config)
    write_embedded(config, runtime)
    planned = passes(config, args)
    model, _ = build_model(config, runtime)
    metrics: dict[str, float | None] = {}
    content, pictures, count, began = None, None, 0, time.perf_counter()
    for settings, augmented in planned:
        with mistakes_named():
            loader = eval_loader(settings.test_dataloader, runtime.rank, runtime.world_size)
        check_classes(config, loader.dataset.metainfo["classes"])
        if content is None:
            content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
            check_names(args.checkpoint, content, loader.dataset.metainfo["classes"])
            logger.info("%s: %s", args.checkpoint, load_pretrained(model, content))
            model.to(runtime.device)
            pictures = PicturesOfTest(args.pictures, len(loader), drawing(loader.dataset.metainfo))
            count, began = len(loader.dataset), time.perf_counter()
        tested = augment(model, settings) if augmented else model
        seen = pictures.note if settings is planned[0][0] else (lambda number, found: None)
        with mistakes_named():
            metrics.update(rename(measure(tested, loader, settings.test_evaluator, runtime, seen), settings))
    seconds = time.perf_counter() - began
    if not runtime.is_main:
        return
    make_folder(args.output)
    write_json(args.output / "results.json", {
        "metrics": metrics,
        "count": count,
        "model": config.model.type,
        "parameters": parameters(model),
        "checkpoint": {"path": str(args.checkpoint), "sha256": sha256(args.checkpoint), "meta": about(content)},
        "images_per_s": round(count / seconds, 2),
        "config": dict(recipe.values),
        "environment": environment(runtime),
    })  # fmt: skip
    pictures.save(args.output / "predictions.png", f"{config.model.type}: ground truth and prediction")
    for name, value in metrics.items():
        logger.info("%-24s %s", name.removeprefix("coco/"), "none in the data" if value is None else f"{value:.3f}")
    logger.info("%-24s %d in %.1f s", "images", count, seconds)
    logger.info("%-24s %s", "results", args.output / "results.json")


def augment(model: nn.Module, config: Config) -> nn.Module:
    """The model with the test-time augmentation of ``tta_model``."""
    from mmengine.registry import MODELS

    with mistakes_named():
        return MODELS.build({**config.tta_model, "module": model})
