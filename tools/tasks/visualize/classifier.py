"""A classifier to be looked at."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from timm.models.volo import VOLO
from torch import Tensor, nn
from yacs.config import CfgNode

from elsa.core import ConfigError
from elsa.data import decode, eval_transform
from elsa.engine import Runtime

from ..networks import load_classifier
from ..pictures import NAME, denormalised, plain
from .evidence import Evidence, find_class, grad_cam
from .look import Picture, Subject, check, look, open_pictures


def look_at_classifier(config: CfgNode, args: argparse.Namespace, runtime: Runtime) -> None:
    """Every view of a classifier on images, which are resized and cropped as in its evaluation.

    Raises:
        ConfigError: an option names what there is not.
        DataError: not one image can be read.
    """
    check(args)
    pictures = open_classifier_pictures(config, args.images, runtime.device)
    model, names = load_classifier(config, args.checkpoint, args.trust_checkpoint)
    target = None if args.target is None else find_class(names, args.target)
    model.to(runtime.device).eval().requires_grad_(False)
    explained = Explained(model, names, target)
    look(Subject(config.MODEL.NAME, model, pictures, explained), args)


def open_classifier_pictures(config: CfgNode, places: Sequence[Path], device: torch.device) -> list[Picture]:
    """Images as the evaluation of a classifier prepares them.

    Raises:
        DataError: not one can be read.
    """
    transform, mode = eval_transform(config), "RGB" if config.MODEL.IN_CHANS == 3 else "L"

    def load(path: Path) -> Picture:
        image = transform(decode(path, mode))
        pixels = denormalised(image, config.DATA.MEAN, config.DATA.STD).convert("RGB")
        return Picture(path, np.asarray(pixels), image[None].to(device))

    return open_pictures(places, load)


class Explained:
    """Grad-CAM of a class's logit at the network's last map.

    Args:
        target: the class; None: the predicted one of each picture.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], target: int | None) -> None:
        self.model, self.names, self.target = model, names, target
        self.layer, self.as_map = last_map_of(model)

    def __call__(self, picture: Picture) -> Evidence:
        with torch.no_grad():
            shares = self.model(picture.images)[0].float().softmax(0)
        label = int(shares.argmax()) if self.target is None else self.target
        scored = Scored(self.model, label)
        heat = grad_cam(scored, [self.layer], picture.images, self.as_map)
        said = "predicted" if self.target is None else "asked for"
        text = f"Grad-CAM of {plain(self.names[label], NAME)}, {said}, with a probability of {shares[label]:.1%}"
        return Evidence(heat, text)


class Scored(nn.Module):
    """A classifier that gives the logit of one class."""

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        self.model, self.label = model, label

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.label]


def last_map_of(model: nn.Module) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The module that gives a network's last map, and what makes (B, C, H, W) of its output.

    Raises:
        ConfigError: the network does not tell its stages.
    """
    stages = getattr(model, "feature_info", None)
    if not stages:
        raise ConfigError(f"Grad-CAM needs a network that tells its stages; {type(model).__name__} does not")
    channels, module = stages[-1]["num_chs"], model.get_submodule(stages[-1]["module"])
    prefix = getattr(model, "num_prefix_tokens", 0)
    if prefix and hasattr(module, "norm1"):  # behind the last block the class token alone is read
        module = module.norm1
    elif isinstance(getattr(model, "norm", None), nn.LayerNorm) and not isinstance(model, VOLO):
        module = model.norm

    def as_map(output: Tensor) -> Tensor:
        if output.ndim == 3:
            tokens = output[:, prefix:]
            rows, columns = model.patch_embed.grid_size
            return tokens.transpose(1, 2).unflatten(2, (rows, columns))
        return output if output.shape[1] == channels != output.shape[-1] else output.permute(0, 3, 1, 2)

    return module, as_map
