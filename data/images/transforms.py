"""timm's transforms of training and evaluation images as DATA, AUG and EVAL say."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import RandomResizedCropAndInterpolation, create_transform
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, FiveCrop, functional
from yacs.config import CfgNode

from elsa.core import ConfigError

STRIP = 16  # times its width that an image is long, to be cut before it is resized


class View(NamedTuple):
    """What random crop and flips took of an image.

    Attributes:
        box: (left, top, right, bottom) of the crop, as shares of the image's width and height.
        flips: whether the crop was then mirrored (left to right, upside down).
    """

    box: tuple[float, float, float, float]
    flips: tuple[bool, bool]


class RecordedCrop(RandomResizedCropAndInterpolation):
    """timm's random crop; ``box`` is the last one's (top, left, height, width) in pixels."""

    def get_params(self, img: Image.Image, scale: tuple, ratio: tuple) -> tuple[int, int, int, int]:
        self.box = super().get_params(img, scale, ratio)
        return self.box


class TrackedTransform:
    """Random crop and flips, then the other transforms: PIL image → (C, H, W) and the View that it shows."""

    def __init__(self, crop: RecordedCrop, flip_probabilities: tuple[float, float], further: Callable) -> None:
        self.crop, self.flip_probabilities, self.further = crop, flip_probabilities, further

    def __call__(self, image: Image.Image) -> tuple[Tensor, View]:
        width, height = image.size
        image = self.crop(image)
        top, left, rows, columns = self.crop.box
        box = (left / width, top / height, (left + columns) / width, (top + rows) / height)
        flips = tuple((torch.rand(2) < torch.tensor(self.flip_probabilities)).tolist())
        for flipped, flip in zip(flips, (functional.hflip, functional.vflip), strict=True):
            if flipped:
                image = flip(image)
        return self.further(image), View(box, flips)


def image_size(config: CfgNode) -> tuple[int, int]:
    """Height and width of what the model sees, in pixels: DATA.IMG_SIZE."""
    size = config.DATA.IMG_SIZE
    return size if isinstance(size, tuple) else (size, size)


def augmentation(config: CfgNode) -> dict[str, Any]:
    """Size and augmentation of training images, as timm's ``create_transform`` and ``create_loader`` take them."""
    aug, data = config.AUG, config.DATA
    return dict(
        input_size=(config.MODEL.IN_CHANS, *image_size(config)),
        is_training=True,
        scale=aug.SCALE,
        ratio=aug.RATIO,
        hflip=aug.HFLIP,
        vflip=aug.VFLIP,
        color_jitter=aug.COLOR_JITTER or None,
        auto_augment=aug.AUTO_AUGMENT or None,
        interpolation=aug.INTERPOLATION,
        re_prob=aug.ERASE,
        re_mode=aug.ERASE_MODE,
        mean=data.MEAN,
        std=data.STD,
        use_prefetcher=False,  # which would leave normalisation, and so a part of the work, to the training process
    )


def train_transform(config: CfgNode, tracked: bool = False) -> Callable:
    """PIL image → (C, H, W), augmented; with ``tracked`` also the View, see TrackedTransform."""
    transform = create_transform(**augmentation(config), separate=tracked)
    if not tracked:
        return transform
    aug = config.AUG
    crop = RecordedCrop(image_size(config), aug.SCALE, aug.RATIO, aug.INTERPOLATION)
    return TrackedTransform(crop, (aug.HFLIP, aug.VFLIP), Compose(transform[1:]))


def eval_transform(config: CfgNode) -> Callable:
    """Resize, centre crop, normalise: PIL image → (C, H, W). The crop is EVAL.CROP times the largest of the input's
    shape that the image has."""
    return Compose([_cut(config), _plain_transform(config, "center", config.EVAL.CROP)])


def _cut(config: CfgNode) -> Callable:
    """``middle_of_strip`` for the input's shape."""
    short, long = sorted(image_size(config))
    return functools.partial(middle_of_strip, most=STRIP * long / short)


CROPS = 5


class FiveCrops:
    """As ``eval_transform``, but the four corners as well as the centre: PIL image → (5, C, H, W).

    Raises:
        ConfigError: EVAL.CROP leaves no margin, so that the crops would be one and the same.
    """

    def __init__(self, config: CfgNode) -> None:
        size, share = image_size(config), config.EVAL.CROP
        if all(math.floor(side / share) <= side for side in size):
            raise ConfigError(
                f"five crops need a margin, but with EVAL.CROP {share} the crop is as large as the image: choose less, "
                "EVAL.CROP=0.875 for one"
            )
        resize, centre, *further = _plain_transform(config, "center", share).transforms
        assert isinstance(centre, CenterCrop)
        self.before, self.crop, self.after = Compose([_cut(config), resize]), FiveCrop(size), Compose(further)

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.stack([self.after(crop) for crop in self.crop(self.before(image))])


def middle_of_strip(image: Image.Image, most: float = STRIP) -> Image.Image:
    """The middle of an image that is more than ``most`` times as long as wide: all that the centre crop will see of it.
    Resized as a whole to the input size by its short side, a strip of 1 × 20,000 pixels would take gigabytes."""
    short, long = sorted(image.size)
    if long <= most * short:
        return image
    margin = (long - int(most * short)) // 2
    box = (margin, 0, long - margin, short)
    return image.crop(box if image.width > image.height else (box[1], box[0], box[3], box[2]))


def whole_image_transform(config: CfgNode) -> Callable:
    """As ``eval_transform``, but of the whole image, whatever its shape, squeezed to the input's."""
    return _plain_transform(config, "squash", 1.0)


def _plain_transform(config: CfgNode, crop_mode: str, crop_share: float) -> Callable:
    return create_transform(
        (config.MODEL.IN_CHANS, *image_size(config)),
        is_training=False,
        crop_mode=crop_mode,
        crop_pct=crop_share,
        interpolation=config.EVAL.INTERPOLATION,
        mean=config.DATA.MEAN,
        std=config.DATA.STD,
        use_prefetcher=False,
    )
