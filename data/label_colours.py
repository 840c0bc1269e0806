"""Label maps in which colours stand for classes: what a recipe's ``label_map`` names, and colours as numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from elsa.core import ConfigError

WRITTEN = re.compile(r"\(?\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*\)?")  # (128, 0, 0), or 128,0,0
OPAQUE = 255
Colour = tuple[int, int, int]


def read_label_map(written: Mapping[Any, Any] | None) -> tuple[dict[Any, Any], bool]:
    """A recipe's ``label_map`` with numbers for its keys, and whether they stand for colours, (red, green, blue).

    A recipe that a checkpoint holds has words for keys. What is no key stays as it is.

    Raises:
        ConfigError: numbers beside colours.
    """
    found, colours = dict[Any, Any](), 0
    for key, label in dict(written or {}).items():
        colour = _colour(key)
        colours += colour is not None
        number = int(key) if isinstance(key, str) and key.isdecimal() else key
        found[number if colour is None else as_number(colour)] = label
    if colours not in (0, len(found)):
        raise ConfigError(f"label_map must have numbers alone or colours alone, got {dict(written or {})!r:.200}")
    return found, bool(colours)


def _colour(key: Any) -> Colour | None:
    if isinstance(key, str):
        match = WRITTEN.fullmatch(key)
        key = tuple(map(int, match.groups())) if match else ()
    is_colour = isinstance(key, (tuple, list)) and len(key) == 3
    return tuple(key) if is_colour and all(type(part) is int and 0 <= part <= 255 for part in key) else None


def as_number(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def as_colour(number: int) -> Colour:
    return number >> 16, number >> 8 & 255, number & 255


def packed(values: np.ndarray, mode: str) -> np.ndarray | None:
    """(H, W) colours as numbers, int32, of (H, W, 3 or 4) values; None of what is transparent in part, or has other
    channels.

    Args:
        mode: Pillow's name.
    """
    if mode not in ("RGB", "RGBA") or (mode == "RGBA" and not (values[..., 3] == OPAQUE).all()):
        return None
    red, green, blue = np.moveaxis(values[..., :3].astype(np.int32), 2, 0)
    return red << 16 | green << 8 | blue


def named(numbers: Iterable[int], most: int = 8) -> str:
    """ "(0, 0, 0), (128, 0, 0)" of the numbers."""
    colours = [str(as_colour(number)) for number in sorted(numbers)]
    return ", ".join(colours[:most]) + (f" and {len(colours) - most} more" if len(colours) > most else "") or "none"
