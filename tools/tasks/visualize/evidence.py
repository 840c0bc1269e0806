"""Where a network finds what it says: Grad-CAM (Selvaraju et al., arXiv 1610.02391), by the package grad-cam."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from elsa.core import ConfigError, did_you_mean

PACKAGE = "Grad-CAM needs the package grad-cam: pip install 'grad-cam>=1.5.5,<2'"


@dataclass(frozen=True)
class Evidence:
    """A map over a picture.

    Attributes:
        heat: (H, W) of the network's input, 0 … 1; None where there is nothing to explain.
        text: what it is the evidence of, and by which method.
        box: left, top, right, bottom of what it is the evidence of, where that is an object.
    """

    heat: np.ndarray | None
    text: str
    box: tuple[float, float, float, float] | None = None


def is_installed() -> bool:
    return importlib.util.find_spec("pytorch_grad_cam") is not None


def find_class(names: Sequence[str], target: str) -> int:
    """The number of a class that a name or a number names.

    Raises:
        ConfigError: there is no such class.
    """
    if target in names:
        return list(names).index(target)
    if target.isdecimal() and int(target) < len(names):
        return int(target)
    hint = did_you_mean(target, names) or f"; there are {', '.join(names[:10])}" + ", …" * (len(names) > 10)
    raise ConfigError(f"--target {target} is none of the {len(names)} classes{hint}")


def grad_cam(
    model: nn.Module, layers: Sequence[nn.Module], images: Tensor, as_map: Callable[[Tensor], Tensor] | None = None
) -> np.ndarray:
    """Evidence (H, W) for the score that the model gives for images (1, C, H, W), a tensor of one number.

    Args:
        layers: modules whose outputs (1, C, h, w) are weighed by their mean gradients; of several the mean is taken.
        as_map: makes (1, C, h, w) of an output that is none.
    """
    from pytorch_grad_cam import GradCAM

    return _computed(GradCAM, model, layers, images, as_map)


def eigen_cam(model: nn.Module, layers: Sequence[nn.Module], images: Tensor) -> np.ndarray:
    """The first principal component of the layers' maps, without a score (Muhammad and Yeasin, arXiv 2008.00299)."""
    from pytorch_grad_cam import EigenCAM

    return _computed(EigenCAM, model, layers, images, None)


def _computed(
    method: type, model: nn.Module, layers: Sequence[nn.Module], images: Tensor,
    as_map: Callable[[Tensor], Tensor] | None,
) -> np.ndarray:  # fmt: skip
    cam = method(model, list(layers), as_map)
    try:
        with torch.enable_grad():
            return cam(images.detach().clone().requires_grad_(), [lambda score: score])[0]
    finally:
        cam.activations_and_grads.release()
