"""What can be wrong with a mask in a COCO file: polygons, and run-length codes in both of their forms."""

from __future__ import annotations

import math
from typing import Any


def fault_of_mask(segmentation: Any, size: tuple[int, int]) -> tuple[str, str] | None:
    """(kind, detail) of what is wrong, or None; ``size`` is (width, height) of the image."""
    if segmentation is None:
        return "mask missing", ""
    if isinstance(segmentation, list):
        return _fault_of_polygons(segmentation)
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        if segmentation["size"] != [size[1], size[0]]:
            return "mask of another size", f"{segmentation['size']}, the image [{size[1]}, {size[0]}]"
        counts = segmentation["counts"]
        try:
            return _fault_of_runs(run_lengths_of_code(counts) if isinstance(counts, str) else counts, size[0] * size[1])
        except ValueError as error:
            return "mask degenerate", str(error)
    return "mask degenerate", "neither a list of polygons nor a run-length code with size and counts"


def _fault_of_polygons(polygons: list[Any]) -> tuple[str, str] | None:
    if not polygons:
        return "mask empty", "no polygon"
    area = 0.0
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(
            isinstance(value, int | float) and math.isfinite(value) for value in polygon
        ):
            return "mask degenerate", "a polygon is not a list of finite numbers"
        if len(polygon) < 6 or len(polygon) % 2:
            return "mask degenerate", f"a polygon of {len(polygon)} numbers; at least 3 points of 2 are needed"
        area += _polygon_area(polygon)
    return None if area > 0 else ("mask without area", f"{len(polygons)} polygons")


def _polygon_area(polygon: list[float]) -> float:
    """Half of the sum of cross products of neighbouring corners, seen from the first one."""
    left, top = polygon[:2]
    x, y = [value - left for value in polygon[::2]], [value - top for value in polygon[1::2]]
    return abs(sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


def _fault_of_runs(counts: Any, pixels: int) -> tuple[str, str] | None:
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        return "mask degenerate", "run lengths are no list of whole numbers of at least 0"
    if sum(counts) != pixels:
        return "mask degenerate", f"runs of {sum(counts)} pixels in all; the image has {pixels}"
    return None if sum(counts[1::2]) else ("mask empty", "")


def run_lengths_of_code(code: str) -> list[int]:
    """The run lengths of COCO's compressed form, without pycocotools, which reads past the end of a broken code.

    Each number is written in digits of 5 bits, the lowest first, as characters from "0" on: bit 5 says that more
    digits follow, and bit 4 of the last one is the sign. From the fourth on, a number is the difference to the one
    before the last.

    Raises:
        ValueError: a character that does not belong, or an end within a number.
    """
    counts: list[int] = []
    value = bits = 0
    for character in code:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise ValueError(f"a compressed code with the character {character!r}")
        value |= (digit & 31) << bits
        bits += 5
        if not digit & 32:
            if digit & 16:
                value -= 1 << bits
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = bits = 0
    if bits:
        raise ValueError("a compressed code that ends within a number")
    return counts
