"""Small scenes of real handwritten digits in cluttered surroundings, with the exact mask of every digit.

The pictures behind digits-coco and digits-ade. A scene shows 3 to 10 of the digits of ``data/digits.py``, those of the
training split in training scenes, those of the validation split in validation scenes: unseen digits in unseen scenes.
The 8×8 grey digit is enlarged, rotated and sheared in one bicubic resampling and cut at half of its intensity; **the
stroke pixels are the object**, the hole of a 0 is background. Later digits cover earlier ones, and masks are of what is
visible. Around them are gradients, stains, long strokes, and one patterned region.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from .digits import split_digits

SCENE_CLASSES = tuple("0123456789")
SPLITS = ("train", "val")
SIDES = (192, 256)  # pixels of width and height, each drawn for itself
DIGITS_PER_SCENE = (3, 10)
DIGIT_SIDES = (24, 72)  # pixels to which the 8 of the original are enlarged
MIN_VISIBLE = 0.65  # share of its stroke below which no digit is placed or covered
MIN_CONTRAST = 45  # of 255, between a digit and what lies under and around it
TINT = 25
_PLACEMENTS = 40
_FINE = 2  # the background is drawn at this multiple, for smooth edges


@dataclass
class Scene:
    """A picture and what is on it.

    Attributes:
        image: (H, W, 3) uint8.
        labels: the digit shown by each instance, in the order of drawing.
        sources: the number of the handwritten digit that it was made of.
        owner: (H, W) int16, the instance that is visible at a pixel; −1 is background.
        texture: (H, W) bool, pixels of the patterned region that are visible.
    """

    image: np.ndarray
    texture: np.ndarray
    owner: np.ndarray
    labels: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)

    def mask(self, instance: int) -> np.ndarray:
        """(H, W) bool: the visible stroke of an instance."""
        return self.owner == instance


class Scenes:
    """The scenes of one split: scene ``number`` depends on split, seed and number alone."""

    def __init__(self, split: str, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be train or val, got {split!r}")
        self.split, self.seed = split, seed
        self.by_label: list[list[tuple[int, np.ndarray]]] = [[] for _ in SCENE_CLASSES]
        for number, label, pixels in split_digits()[split]:
            self.by_label[label].append((number, pixels))

    def draw(self, number: int) -> Scene:
        random = np.random.default_rng([self.seed, SPLITS.index(self.split), number])
        width, height = (int(side) for side in random.integers(SIDES[0], SIDES[1] + 1, 2))
        canvas, texture = _background(random, width, height)
        easel = _Easel(canvas, random)
        scene = Scene(canvas, texture, easel.owner)
        wanted = random.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1)
        for _ in range(_PLACEMENTS):
            label = int(random.integers(len(SCENE_CLASSES)))
            source, pixels = self.by_label[label][random.integers(len(self.by_label[label]))]
            if easel.place(pixels):
                scene.labels.append(label)
                scene.sources.append(source)
            if len(scene.labels) == wanted:
                break
        scene.texture &= scene.owner < 0
        noise = random.normal(0, random.uniform(1, 5), (height, width, 1))
        scene.image = (canvas + noise).round().clip(0, 255).astype(np.uint8)
        return scene


# ---- digits --------------------------------------------------------------------------------------------------------


class _Easel:
    """A canvas (H, W, 3) float32 on which digits are put one over the other."""

    def __init__(self, canvas: np.ndarray, random: np.random.Generator) -> None:
        self.canvas, self.random = canvas, random
        self.owner = np.full(canvas.shape[:2], -1, np.int16)
        self.strokes: list[int] = []  # pixels of each digit, those outside and under others included
        self.visible: list[int] = []

    def place(self, pixels: np.ndarray) -> bool:
        """Puts the digit somewhere unless it, or one that it covers, would be hardly visible."""
        cover = _enlarge(self.random, pixels)
        stroke = cover >= 0.5
        side = len(cover)
        left, top = (int(self.random.integers(-side // 6, length - side * 5 // 6)) for length in self.owner.shape[::-1])
        rows = slice(max(top, 0), min(top + side, self.owner.shape[0]))
        columns = slice(max(left, 0), min(left + side, self.owner.shape[1]))
        inside = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        shown = stroke[inside]
        if shown.sum() < MIN_VISIBLE * stroke.sum():
            return False
        under = self.owner[rows, columns]
        lost = np.bincount(under[shown] + 1, minlength=len(self.visible) + 1)[1:]
        remaining = np.array(self.visible, int) - lost
        if (remaining < MIN_VISIBLE * np.array(self.strokes)).any():
            return False

        region = self.canvas[rows, columns]
        level = self._level(region[_thicker(shown)].mean(-1))
        if level is None:
            return False
        opacity = cover[inside][..., None]
        region += opacity * (_tinted(self.random, level) - region)
        under[shown] = len(self.visible)
        self.visible = [*remaining.tolist(), int(shown.sum())]
        self.strokes.append(int(stroke.sum()))
        return True

    def _level(self, around: np.ndarray) -> float | None:
        """A grey level that stands out from those under and around the stroke, lighter or darker."""
        present = np.percentile(around, (5, 35, 65, 95))
        for level in self.random.uniform(5, 250, 20):
            if np.abs(present - level).min() >= MIN_CONTRAST:
                return level
        return None


def _enlarge(random: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Opacity (S, S) of a digit, 8×8, made larger, rotated by up to 25° and slightly sheared; 0.5 is its outline."""
    size = math.exp(random.uniform(*map(math.log, DIGIT_SIDES)))
    angle = math.radians(random.uniform(-25, 25))
    narrow, shear = random.uniform(0.85, 1.15), random.uniform(-0.15, 0.15)
    scale = 8 / size
    across = np.array([[scale / narrow, scale * shear], [0, scale]])
    turned = across @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    side = math.ceil(size * 1.5)
    margin = 4
    shift = 4 + margin - turned @ np.full(2, side / 2)  # centre to centre
    matrix = (*turned[0], shift[0], *turned[1], shift[1])
    padded = Image.fromarray(np.pad(pixels, margin).astype(np.float32) / 255)
    value = np.asarray(padded.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC))
    return (0.5 + (value - 0.5) / scale).clip(0, 1)  # an edge of some 1.5 pixels at any size


def _thicker(mask: np.ndarray) -> np.ndarray:
    """The mask and its surroundings of 2 pixels."""
    wide = np.pad(mask, 2)
    rows = np.logical_or.reduce([np.roll(wide, step, 0) for step in (-2, -1, 0, 1, 2)])
    return np.logical_or.reduce([np.roll(rows, step, 1) for step in (-2, -1, 0, 1, 2)])[2:-2, 2:-2]


def _tinted(random: np.random.Generator, level: float) -> np.ndarray:
    return level + random.uniform(-TINT, TINT, 3)


# ---- background ----------------------------------------------------------------------------------------------------


def _background(random: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Canvas (H, W, 3) float32 and the patterned region (H, W) bool, without digits."""
    fine = (width * _FINE, height * _FINE)
    level = random.uniform(40, 215)
    picture = Image.fromarray(np.full((*fine[::-1], 3), _tinted(random, level).clip(0, 255), np.uint8))
    region = Image.new("L", fine)
    paint, mark = ImageDraw.Draw(picture), ImageDraw.Draw(region)

    for _ in range(random.integers(3, 9)):
        shade = _shade(random, level, 60)
        paint.polygon(_stain(random, fine, random.uniform(0.02, 0.12)), fill=shade)
    outline = _stain(random, fine, random.uniform(0.25, 0.45))
    mark.polygon(outline, fill=255)
    picture.paste(_pattern(random, fine, level), mask=region)
    for _ in range(random.integers(3, 9)):
        points, thickness = _long_stroke(random, fine), int(random.integers(2, 9))
        paint.line(points, fill=_shade(random, level, 90), width=thickness, joint="curve")
        mark.line(points, fill=0, width=thickness, joint="curve")

    canvas = np.asarray(picture.reduce(_FINE), np.float32) + _lighting(random, width, height)[..., None]
    return canvas.clip(0, 255), np.asarray(region.reduce(_FINE)) >= 128


def _shade(random: np.random.Generator, level: float, range_: float) -> tuple[int, ...]:
    colour = _tinted(random, level + random.uniform(-range_, range_))
    return tuple(int(value) for value in colour.clip(0, 255))


def _stain(random: np.random.Generator, size: tuple[int, int], radius: float) -> list[tuple[float, float]]:
    """A round irregular outline somewhere in the picture; its radius is a share of the shorter side."""
    angles = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    radii = np.ones(48)
    for wave in (2, 3, 4, 5):
        radii += random.uniform(0, 0.5 / wave) * np.cos(wave * angles + random.uniform(0, 2 * math.pi))
    radii *= radius * min(size)
    centre = random.uniform(0.1, 0.9, 2) * size
    return list(zip(centre[0] + radii * np.cos(angles), centre[1] + radii * np.sin(angles), strict=True))


def _long_stroke(random: np.random.Generator, size: tuple[int, int]) -> list[tuple[float, float]]:
    """A curve longer than any digit is high, so that it is no 1."""
    longest = DIGIT_SIDES[1] * _FINE
    while True:
        start, bend, end = random.uniform(-0.1, 1.1, (3, 2)) * size
        if math.dist(start, end) > 1.5 * longest:
            break
    time = np.linspace(0, 1, 24)[:, None]
    curve = (1 - time) ** 2 * start + 2 * time * (1 - time) * bend + time**2 * end
    return [tuple(point) for point in curve.tolist()]


def _pattern(random: np.random.Generator, size: tuple[int, int], level: float) -> Image.Image:
    """A whole picture of stripes, squares or dots in two shades."""
    angle, period = random.uniform(0, math.pi), random.uniform(5, 12) * _FINE
    sine, cosine = (2 * math.pi / period * function(angle) for function in (math.sin, math.cos))
    x, y = np.arange(size[0], dtype=np.float32), np.arange(size[1], dtype=np.float32)[:, None]
    wave = np.sin(x * cosine + y * sine)
    kind = random.choice(["stripes", "squares", "dots"])
    if kind != "stripes":
        combine = np.multiply if kind == "squares" else np.minimum
        wave = combine(wave, np.sin(y * cosine - x * sine))
    dark, light = -random.uniform(15, 35), random.uniform(15, 35)
    colours = np.array([_tinted(random, level + dark), _tinted(random, level + light)]).clip(0, 255)
    return Image.fromarray(colours.astype(np.uint8)[(wave > 0).astype(np.intp)])


def _lighting(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Slow changes of brightness, (H, W) float32."""
    coarse = Image.fromarray(random.normal(0, 14, (5, 5)).astype(np.float32))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
