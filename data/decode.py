"""The one way from a file to pixels: training, evaluation, prediction, pictures and checks all see the same."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# What Pillow raises for files that are damaged or no images.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


def decode(file: str | Path | io.IOBase | Image.Image, mode: str = "RGB") -> Image.Image:
    """An image file as people see it.

    The orientation that a camera notes (EXIF) is applied, and 16 bits are scaled to 8.

    Args:
        file: path, open file, or an image of Pillow's that may not be loaded yet.
        mode: "RGB" or "L".

    Raises:
        one of UNREADABLE: it cannot be decoded.
    """
    image = file if isinstance(file, Image.Image) else Image.open(file)  # type: ignore[arg-type]  # any binary stream
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8), "L")
    ImageOps.exif_transpose(image, in_place=True)
    return image.convert(mode)


def decode_labels(file: str | Path) -> np.ndarray:
    """A label map as it is stored: (H, W), or (H, W, channels) of what is no label map.

    Raises:
        one of UNREADABLE: it cannot be decoded.
    """
    with Image.open(file) as image:
        return np.asarray(image)


def is_readable(file: str | Path) -> bool:
    """Whether ``decode`` gets an image of it."""
    try:
        decode(file)
    except UNREADABLE:
        return False
    return True
