"""scikit-learn's handwritten digits as an ImageNet-style folder: real images for a first run, nothing to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from elsa.core import write_folder

from ..listing import files_below

DIGITS_COUNT = {"train": 1437, "val": 360}


def write_digits(root: str | Path) -> Path:
    """Writes ``root/{train,val}/{0…9}/*.png``, 8×8 grey, unless it is there. The folder appears whole or not at all."""
    return write_folder(root, _is_complete, _fill)


def split_digits() -> dict[str, list[tuple[int, int, np.ndarray]]]:
    """(number, label, pixels) of each digit of "train" and "val"; pixels (8, 8) uint8, the stroke bright.

    1,797 digits written by 43 people (UCI, E. Alpaydin and C. Kaynak, 1998), split 80/20 with the class shares kept,
    the same on every machine.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype("uint8")
    splits = train_test_split(range(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target)
    return {
        split: [(number, int(digits.target[number]), pixels[number]) for number in members]
        for split, members in zip(DIGITS_COUNT, splits, strict=True)
    }


def _fill(root: Path) -> None:
    for split, members in split_digits().items():
        for number, label, pixels in members:
            path = root / split / str(label) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def _is_complete(root: Path) -> bool:
    """Whether the digits are there, and nothing else that would be taken for data."""
    counts = {split: len(list((root / split).glob("[0-9]/*.png"))) for split in DIGITS_COUNT}
    return counts == DIGITS_COUNT and sum(1 for _ in files_below(root)) == sum(counts.values())
