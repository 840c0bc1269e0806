"""Samples of a detector's or segmentor's training, as the model gets them."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image
from torch import Tensor, nn

from elsa.core import seed_everything
from elsa.data.decode import TURNED
from elsa.data.mm.loaders import train_loader
from elsa.engine import Runtime

from ..pictures import DPI, NAME, as_image, denormalised, fitted, grid, literal, plain
from ..visualize.sheet import write_sheet
from .pictures import colours, within_reason
from .session import draw_embedded, mistakes_named, prepare

SIDE = 3.5  # inches of a sample


def show_samples(
    config: Config, args: argparse.Namespace, runtime: Runtime, drawing: Callable[[Mapping[str, Any]], Any]
) -> None:
    """The first samples of a training's first epoch, with boxes and masks or label maps.

    Args:
        drawing: facts of the data set → what draws a picture.

    Raises:
        ConfigError: a mistake in the recipe.
        DataError: see ``train_loader``.
    """
    prepare(config)
    draw_embedded(config, runtime)
    seed, orientation = config.randomness.seed, config.get("image_orientation", TURNED)
    with mistakes_named("train_dataloader"):
        settings = {**config.train_dataloader, "num_workers": 0, "persistent_workers": False}
        max_bad = config.run.get("max_bad", 0)
        batches = train_loader(settings, (config.global_batch, 1), seed, 0, 1, max_bad, orientation)
    with mistakes_named("model.data_preprocessor"):
        preprocessor = MODELS.build(copy.deepcopy(config.model.data_preprocessor))
    draw, cells = drawing(batches.loader.dataset.metainfo), []
    seed_everything(seed, 0, 0)  # as a training's first step
    for [batch] in batches.epoch(0):
        with mistakes_named("model.data_preprocessor"):
            seen = preprocessor(batch, True)
        for image, sample in zip(seen["inputs"], seen["data_samples"], strict=True):
            cells.append((draw(_pixels_seen(image, preprocessor), sample, with_truth=True), "", "black"))
        if len(cells) >= args.count:
            break
    cells = cells[: args.count]
    ratio = float(np.median([picture.height / picture.width for picture, _, _ in cells]))
    columns = 4 if ratio > 0.7 else 2
    width = 14.4 / columns
    fit = (width, width * within_reason(ratio) + 0.1)
    cells = [(fitted(picture, *fit), text, colour) for picture, text, colour in cells]
    write_sheet(grid(cells, f"{config.model.type}: training samples", columns=columns, cell=fit), args, len(cells))


class ObjectDrawing:
    """A sample with its boxes, masks and class names, without what was padded for the batch."""

    def __init__(self, metainfo: Mapping[str, Any]) -> None:
        self.classes = list(metainfo["classes"])
        self.colours = colours(len(self.classes)) / 255

    def __call__(self, image: np.ndarray, sample: Any, with_truth: bool) -> Image.Image:
        figure = self.figure(image, sample)
        return as_image(figure)

    def figure(self, image: np.ndarray, sample: Any) -> Figure:
        height, width = sample.img_shape[:2]
        figure = Figure(figsize=(SIDE, SIDE * within_reason(height / width)), dpi=DPI)
        axis = figure.add_axes((0, 0, 1, 1))
        axis.set_axis_off()
        truth = sample.gt_instances
        boxes, labels = getattr(truth.bboxes, "tensor", truth.bboxes).tolist(), truth.labels.tolist()
        axis.imshow(_under_masks(image, truth, self.colours)[:height, :width], extent=(0, width, height, 0))
        for (left, top, right, bottom), label in zip(boxes, labels, strict=True):
            colour = self.colours[label]
            style: dict[str, Any] = dict(fill=False, edgecolor=colour, linewidth=1.5)
            axis.add_patch(Rectangle((left, top), right - left, bottom - top, **style))
            backing = dict(facecolor=colour, edgecolor="none", pad=0.8)
            dark = "white" if colour @ (0.3, 0.59, 0.11) < 0.55 else "black"
            place: dict[str, Any] = dict(fontsize=8, color=dark, va="top", bbox=backing, clip_on=True)
            literal(axis.text(left, top, " ", **place), plain(self.classes[label], NAME))
        axis.set(xlim=(0, width), ylim=(height, 0))
        return figure


def _under_masks(image: np.ndarray, truth: Any, tones: np.ndarray) -> np.ndarray:
    """The picture with the colours of its objects' classes where their masks are."""
    if "masks" not in truth:
        return image
    shown = image.astype(np.float32)
    for mask, label in zip(truth.masks.to_ndarray().astype(bool), truth.labels.tolist(), strict=True):
        mask = mask[: image.shape[0], : image.shape[1]]
        shown[: mask.shape[0], : mask.shape[1]][mask] *= 0.5
        shown[: mask.shape[0], : mask.shape[1]][mask] += 127.5 * tones[label]
    return shown.round().astype(np.uint8)


def _pixels_seen(image: Tensor, preprocessor: nn.Module) -> np.ndarray:
    """(3, H, W) as the model gets it → (H, W, 3) in 0 … 255, in the order red, green, blue."""
    if not getattr(preprocessor, "_channel_conversion", True):
        image = image.flip(0)
    scales = [getattr(preprocessor, name, None) for name in ("mean", "std")]
    mean, std = (np.full(3, other) if one is None else one.flatten().cpu().numpy()
                 for one, other in zip(scales, (0.0, 1.0), strict=True))  # fmt: skip
    return np.array(denormalised(image, (mean / 255).tolist(), (std / 255).tolist()))
