"""scikit-learn's handwritten digits as an ImageNet-style folder: real images for a first run, nothing to download."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from PIL import Image

DIGITS_COUNT = {"train": 1437, "val": 360}


def write_digits(root: str | Path) -> Path:
    """Writes ``root/{train,val}/{0…9}/*.png``, 8×8 grey, unless it is there.

    1,797 digits written by 43 people (UCI, E. Alpaydin and C. Kaynak, 1998), split 80/20 with the class shares kept,
    the same on every machine. The folder appears whole or not at all.
    """
    root = Path(root)
    if all(len(list((root / split).glob("*/*.png"))) == count for split, count in DIGITS_COUNT.items()):
        return root
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"{root} exists and does not hold the digits; remove it or choose another DATA.ROOT")

    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    numbers = range(len(digits.target))
    train, val = train_test_split(numbers, test_size=0.2, random_state=0, stratify=digits.target)
    root.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}."))
    try:
        for split, members in (("train", train), ("val", val)):
            for number in members:
                path = beside / split / str(digits.target[number]) / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((digits.images[number] * (255 / 16)).round().astype("uint8")).save(path)
        beside.chmod(0o755)
        beside.replace(root)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return root
