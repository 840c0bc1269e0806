"""Detectors and segmentors for other runtimes: which part of them a graph holds, and how images become its input."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn

from elsa.core import logger
from elsa.engine import Recipe, Runtime
from elsa.models import load_pretrained, read_checkpoint

from ..checkpoints import class_names
from ..command import SCOPES
from ..exporting import HUB, Subject, export_network
from ..exporting.classifier import origin
from ..exporting.hub import write_folder_of_recipe
from ..exporting.options import check_options
from ..exporting.subject import as_tuple
from .prediction import known_classes
from .recipe import stored
from .session import build_model, mistakes_named, prepare

NOMINAL = (256, 256)  # of the images that are compared
SHAPES, OTHERS = ((1, *NOMINAL), (2, *NOMINAL)), ((2, 205, 307), (1, 320, 97))


class Maps(nn.Module):
    """A detector's backbone and neck: images (B, 3, H, W) → one map (B, C, ⌈H/s⌉, ⌈W/s⌉) per level."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else nn.Identity()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.neck(self.backbone(images)))


class Logits(nn.Module):
    """A segmentor: images (B, 3, H, W) → logits (B, classes, H, W), as it computes them of whole images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else nn.Identity()
        self.head = model.decode_head

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.neck(self.backbone(images)))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=self.head.align_corners)


def export_dense(
    recipe: Recipe, args: argparse.Namespace, runtime: Runtime, part: Callable[[nn.Module], nn.Module]
) -> None:
    """Writes the part of a detector or segmentor that a graph can hold; as weights or as a folder, all of it.

    Args:
        part: Maps or Logits.

    Raises:
        ConfigError: a format or file that cannot be; a model without such a part.
        TrainingError: what was written computes something else than PyTorch; nothing is left.
    """
    form, config = check_options(args), recipe.config
    prepare(config)
    content = read_checkpoint(args.checkpoint, args.trust_checkpoint)
    model, _ = build_model(config, runtime)
    logger.info("%s: %s", args.checkpoint, load_pretrained(model, content))
    model.eval().requires_grad_(False)
    with mistakes_named("model"), torch.no_grad():
        outputs = describe_outputs(as_tuple(part(model)(torch.zeros(1, 3, *NOMINAL))))
    about = describe(config, content, args.checkpoint) | {"outputs": outputs}
    names = tuple(one["name"] for one in outputs)
    subject = Subject(model, config.model.type, names, 3, NOMINAL, about, SHAPES, OTHERS, part=part)
    if form == HUB:
        write_folder_of_recipe(recipe, subject, content, args, stored(config))
    else:
        export_network(subject, args, form)


def describe(config: Config, content: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """How images become the network's input, as the recipe's data preprocessor and test pipeline say."""
    settings, pipeline = config.model.get("data_preprocessor") or {}, config.test_dataloader.dataset.pipeline
    swapped = settings.get("bgr_to_rgb") or settings.get("rgb_to_bgr")
    resize = next((step for step in pipeline if step["type"].rpartition(".")[2] == "Resize"), {})
    return {
        "task": SCOPES[config.default_scope],
        "model": config.model.type,
        "backbone": config.model.backbone.get("variant") or config.model.backbone.type,
        "input": {
            "name": "images",
            "color": "RGB" if swapped else "BGR",
            "values": "0 … 255, then minus mean, divided by std",
            "resize": {
                "scale": list(resize["scale"]) if "scale" in resize else None,
                "keep_ratio": resize.get("keep_ratio", False),
                "interpolation": resize.get("interpolation", "bilinear"),
            },
            "mean": list(settings.get("mean") or [0, 0, 0]),
            "std": list(settings.get("std") or [1, 1, 1]),
            "pad": {"multiple": settings.get("pad_size_divisor", 1), "value": settings.get("pad_value", 0)},
        },
        "test": _plain(config.model.get("test_cfg") or {}),
        "classes": class_names(content) or known_classes(config) or None,
        **origin(checkpoint),
    }


def describe_outputs(found: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Names and shapes: of maps by their strides, of a segmentor's logits."""
    outputs = []
    for one in found:
        stride = round(NOMINAL[0] / one.shape[2])
        name = f"map{stride}" if stride > 1 else "logits"
        sides = [f"height / {stride}", f"width / {stride}"] if stride > 1 else ["height", "width"]
        outputs.append({"name": name, "shape": ["batch", one.shape[1], *sides], "stride": stride})
    return outputs


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(name): _plain(value) for name, value in node.items()}
    return [_plain(value) for value in node] if isinstance(node, (list, tuple)) else node
