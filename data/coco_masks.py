"""What can be wrong with a mask in a COCO file: polygons, and run-length codes in both of their forms."""

from __future__ import annotations

from typing import Any

import numpy as np

MISSING, EMPTY, DEGENERATE = "mask missing", "mask empty", "mask degenerate"
OTHER_SIZE, FAR = "mask of another size", "mask far outside its image"
PARTLY_DEGENERATE, WITHOUT_AREA = "mask with a degenerate part", "mask without area"
USABLE = (PARTLY_DEGENERATE, WITHOUT_AREA)  # the others cannot be drawn
Size = tuple[int, int]


def fault_of_mask(segmentation: Any, size: Size) -> tuple[str, str] | None:
    """(kind, detail) of what is wrong, or None; ``size`` is (width, height) of the image."""
    if segmentation is None:
        return MISSING, ""
    if isinstance(segmentation, list):
        return _fault_of_polygons(segmentation, size)
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        if repr(segmentation["size"]) != repr([size[1], size[0]]):  # 48.0 is another number to pycocotools
            return OTHER_SIZE, f"{segmentation['size']}, the image [{size[1]}, {size[0]}]"
        counts = segmentation["counts"]
        try:
            return _fault_of_runs(run_lengths_of_code(counts) if isinstance(counts, str) else counts, size[0] * size[1])
        except ValueError as error:
            return DEGENERATE, str(error)
    return DEGENERATE, "neither a list of polygons nor a run-length code with size and counts"


def far_outside(values: Any, size: Size) -> bool:
    """Whether x, y, x, y, … leave the image by more than its own width or height: nothing but a mistake does, and
    drawing such a polygon takes memory for its whole outline."""
    points = np.asarray(values, np.float64).reshape(-1, 2)
    return bool((points < -np.array(size)).any() or (points > 2 * np.array(size)).any())


def sound_polygons(segmentation: list[Any]) -> list[Any]:
    """The polygons of three points or more: detectors leave out the others."""
    return [polygon for polygon in segmentation if len(polygon) >= 6 and not len(polygon) % 2]


def area_of_mask(segmentation: Any) -> float:
    """Pixels of a mask without fault, parts that overlap counted twice."""
    if isinstance(segmentation, list):
        return sum(map(_polygon_area, sound_polygons(segmentation)))
    counts = segmentation["counts"]
    return float(sum((run_lengths_of_code(counts) if isinstance(counts, str) else counts)[1::2]))


def _fault_of_polygons(polygons: list[Any], size: Size) -> tuple[str, str] | None:
    if not polygons:
        return EMPTY, "no polygon"
    for polygon in polygons:
        values = numbers(polygon)
        if values is None:
            return DEGENERATE, "a polygon is not a list of finite numbers x, y, x, y, …"
        if not len(values) % 2 and far_outside(values, size):
            return FAR, f"{values.min():g} … {values.max():g} in {size[0]}×{size[1]}"
    sound = sound_polygons(polygons)
    if len(sound) < len(polygons):
        odd = next(polygon for polygon in polygons if polygon not in sound)
        detail = f"a polygon of {len(odd)} numbers; at least 3 points of 2 are needed"
        return (PARTLY_DEGENERATE if sound else DEGENERATE), detail
    return None if sum(map(_polygon_area, sound)) > 0 else (WITHOUT_AREA, f"{len(polygons)} polygons")


def numbers(values: Any) -> np.ndarray | None:
    """A list of finite numbers as an array, None where it is something else."""
    if not isinstance(values, list):
        return None
    try:
        found = np.array(values)
    except ValueError:  # lists of several lengths
        return None
    return found if not values or (found.ndim == 1 and found.dtype.kind in "iuf" and np.isfinite(found).all()) else None


def _polygon_area(polygon: list[float]) -> float:
    """Half of the sum of cross products of neighbouring corners, seen from the first one."""
    x, y = (np.array(polygon[axis::2], np.float64) - polygon[axis] for axis in (0, 1))
    return abs(float((np.roll(x, 1) * y - x * np.roll(y, 1)).sum())) / 2


def _fault_of_runs(counts: Any, pixels: int) -> tuple[str, str] | None:
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        return DEGENERATE, "run lengths are no list of whole numbers of at least 0"
    if sum(counts) != pixels:
        return DEGENERATE, f"runs of {sum(counts)} pixels in all; the image has {pixels}"
    return None if sum(counts[1::2]) else (WITHOUT_AREA, "")


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
