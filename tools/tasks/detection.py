"""Detection and instance segmentation (mmdet): what its verbs have of their own."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from mmengine.config import Config
from torch import nn

from elsa.core import ConfigError
from elsa.engine import Recipe, Runtime

from .mm import samples
from .mm.evaluation import Metric, evaluate_checkpoint
from .mm.exporting import Maps, export_dense
from .mm.pictures import ObjectDrawing, ObjectPredictions
from .mm.planning import compared_backbone, count_dense, dense_outlook
from .mm.prediction import predict
from .mm.recipe import read_recipe, restore_recipe
from .mm.training import build_training
from .mm.visualizing import ExplainedObject, look_at_dense
from .outlook import Outlook
from .parts import Training
from .training import train

COCO_COLUMNS = ["mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l",
                "AR@100", "AR@300", "AR@1000", "AR_s@1000", "AR_m@1000", "AR_l@1000"]  # fmt: skip


class Detection:
    """Detectors of mmdet on our backbones; recipes are mmengine configurations."""

    name = "detection"
    options: ClassVar = {
        "evaluate": [("--per-class", dict(action="store_true", help="the AP of each class too"))],
        "predict": [
            ("--threshold", dict(type=float, default=0.3, metavar="SCORE", help="objects drawn; the JSON has all"))
        ],
    }

    def read(self, path: Path, overrides: list[str]) -> Recipe:
        return read_recipe(path, overrides)

    def restore(self, content: Mapping[str, Any], origin: str, overrides: list[str], ours: bool) -> Recipe:
        return restore_recipe(content, origin, overrides, ours)

    def print_config(self, recipe: Recipe) -> str:
        return recipe.text

    def build(self, recipe: Recipe, *rest: Any) -> Training:
        metric = Metric(curves=("mAP", "mAP_50"), known=known_numbers)
        return build_training(recipe, *rest, task=self.name, metric=metric, drawing=ObjectDrawing)

    def train(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        train(self.build, recipe, args, runtime)

    def evaluate(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        evaluate_checkpoint(recipe, args, runtime, all_columns, name_numbers, ObjectDrawing)

    def predict(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        if not 0 <= args.threshold <= 1:
            raise ConfigError(f"--threshold must be between 0 and 1, got {args.threshold}")
        predict(recipe.config, args, runtime, partial(ObjectPredictions, threshold=args.threshold))

    def visualize(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        look_at_dense(recipe.config, args, runtime, ExplainedObject)

    def show_data(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        samples.show_samples(recipe.config, args, runtime, samples.ObjectDrawing)

    def export(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        export_dense(recipe, args, runtime, Maps)

    def outlook(self, recipe: Recipe, args: argparse.Namespace) -> Outlook:
        return dense_outlook(recipe, args)

    def count(self, recipe: Recipe) -> dict[str, Any]:
        return count_dense(recipe.config)

    def network(self, recipe: Recipe) -> tuple[nn.Module, tuple[int, int, int]]:
        return compared_backbone(recipe.config)


def known_numbers(settings: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Names of the numbers of a CocoMetric."""
    if settings["type"] != "CocoMetric":
        return []
    metric = settings.get("metric", "bbox")
    kinds = metric if isinstance(metric, (list, tuple)) else [metric]
    columns = settings.get("metric_items") or COCO_COLUMNS[:6]
    return [f"{settings.get('prefix') or 'coco'}/{kind}_{column}" for kind in kinds for column in columns]


def all_columns(config: Config, args: argparse.Namespace) -> list[tuple[Config, bool]]:
    """One pass, with boxes and masks evaluated each by a metric of its own: mmdet names the classes of both alike."""
    config, parts = copy.deepcopy(config), []
    given = config.test_evaluator
    for metric in [given] if isinstance(given, Mapping) else given:
        if metric["type"] == "CocoMetric":
            wanted = metric.get("metric", "bbox")
            kinds = wanted if isinstance(wanted, (list, tuple)) else [wanted]
            columns = dict(metric_items=COCO_COLUMNS, classwise=args.per_class)
            parts += [{**metric, **columns, "metric": kind, "prefix": kind} for kind in kinds]
        else:
            parts.append(metric)
    config.test_evaluator = parts
    return [(config, False)]


def name_numbers(metrics: Mapping[str, float], config: Config) -> dict[str, float | None]:
    """{"bbox/bbox_mAP": …, "bbox/cat_precision": …} → {"coco/bbox_mAP": …, "coco/bbox_AP/cat": …}; None for NaN.

    mmdet gives no numbers at all where nothing was found: these are zeros.
    """
    kinds = [part["prefix"] for part in config.test_evaluator if part["type"] == "CocoMetric"]
    named: dict[str, float | None] = {f"coco/{kind}_{column}": 0.0 for kind in kinds for column in COCO_COLUMNS}
    for key, value in metrics.items():
        kind, _, name = key.partition("/")
        if kind in ("bbox", "segm"):
            is_class = name.endswith("_precision")
            key = f"coco/{kind}_AP/{name.removesuffix('_precision')}" if is_class else f"coco/{name}"
        named[key] = value if math.isfinite(value) else None
    return named
