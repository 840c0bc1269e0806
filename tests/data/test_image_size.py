"""Inputs that are no squares: DATA.IMG_SIZE [height, width]."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from elsa.data import eval_loader, eval_transform, image_size, open_splits, train_loader, whole_image_transform

PLAIN = ["DATA.MEAN=[0,0,0]", "DATA.STD=[1,1,1]", "EVAL.CROP=1.0"]


def ramp(width, height):
    """Red rises to the right, green downwards, in steps of one pixel."""
    red, green = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([red, green, 0 * red], 2).astype("uint8"))


@pytest.mark.parametrize(("size", "expected"), [("24", (24, 24)), ("[16, 40]", (16, 40)), ("'(16, 40)'", (16, 40))])
def test_the_size_is_a_side_or_height_and_width(make_config, size, expected):
    assert image_size(make_config("nowhere", f"DATA.IMG_SIZE={size}")) == expected


def test_batches_have_that_height_and_width(write_images, make_config):
    config = make_config(write_images({"train": {"a": 3, "b": 3}, "val": {"a": 1, "b": 1}}), "DATA.IMG_SIZE=[16, 40]")
    train, val = open_splits(config, "train", "val")
    assert next(train_loader(config, train, 0, 1).epoch(0))[0].images.shape == (4, 3, 16, 40)
    assert next(iter(eval_loader(config, val, 0, 1))).images.shape == (2, 3, 16, 40)


@pytest.mark.parametrize(("height", "width", "left", "top"), [(20, 100, 0, 20), (60, 100, 0, 0), (60, 20, 40, 0)])
def test_evaluation_sees_the_largest_middle_crop_of_that_shape(make_config, height, width, left, top):
    """Of a picture of 100 × 60 pixels, whose pixels tell where they are from."""
    config = make_config("nowhere", f"DATA.IMG_SIZE=[{height}, {width}]", *PLAIN)
    seen = eval_transform(config)(ramp(100, 60)) * 255
    expected = torch.from_numpy(np.array(ramp(100, 60))).permute(2, 0, 1).float()
    assert torch.equal(seen.round(), expected[:, top : top + height, left : left + width])


def test_the_crop_of_a_long_input_is_not_cut_before(make_config):
    config = make_config("nowhere", "DATA.IMG_SIZE=[8, 240]", *PLAIN)
    seen = eval_transform(config)(ramp(240, 8))[0, 0] * 255
    assert seen.round().tolist() == list(range(240))


def test_a_whole_image_is_squeezed_to_that_shape(make_config):
    config = make_config("nowhere", "DATA.IMG_SIZE=[16, 40]", *PLAIN)
    seen = whole_image_transform(config)(ramp(100, 60)) * 255
    assert seen.shape == (3, 16, 40)
    assert seen[0, 0, 0] < 5 and seen[0, 0, -1] > 93 and seen[1, -1, 0] > 54
