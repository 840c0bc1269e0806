"""Small image folders and configurations for the tests of the data package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elsa.data import write_digits
from elsa.engine import load_config


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """The embedded digits, written once."""
    return write_digits(tmp_path_factory.mktemp("digits") / "digits")


@pytest.fixture
def write_images(tmp_path):
    """``write_images({"train": {"cat": 3}}, name="images")`` writes random pictures and returns their root."""

    def write(splits, name="images", size=(20, 16), suffix=".png"):
        generator = np.random.default_rng(0)
        for split, classes in splits.items():
            for label, count in classes.items():
                folder = tmp_path / name / split / label
                folder.mkdir(parents=True)
                for number in range(count):
                    pixels = generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{number:03d}{suffix}")
        return tmp_path / name

    return write


@pytest.fixture
def make_config(root):
    """A configuration for small images in a folder with two classes, changed by ``KEY=VALUE`` strings."""

    def make(folder, *overrides):
        base = ["DATA.DATASET=folder", f"DATA.ROOT={folder}", "MODEL.NUM_CLASSES=2", "DATA.IMG_SIZE=8", "DATA.BATCH=4"]
        return load_config(root / "configs/classification/digits_elsa_swin_nano.yaml", [*base, *overrides])

    return make
