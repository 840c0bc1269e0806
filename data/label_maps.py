"""Label maps: what their numbers mean, and the one list of what may be wrong with them.

Training, evaluation and the check of a data set all look here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from elsa.core import ConfigError, DataError

from . import label_colours
from .decode import STORED, TURNED, Header, UnreadableImage, decode_labels, read_header

UNLABELLED, IGNORED = 0, 255
OPAQUE = 255
HIGHEST = 65535  # of 16 bits
UNREADABLE, NO_MAP = "annotation unreadable", "annotation is no label map"
OTHER_SIZE, OUT_OF_RANGE = "annotation of another size", "label out of range"
GREY_AS_COLOUR = ("RGB", "RGBA", "LA")  # modes in which grey may be stored
CURE = "save the numbers of the classes as a PNG of grey or palette mode"


@dataclass(frozen=True)
class Labelling:
    """What the numbers in label maps mean. 255 is ignored.

    Attributes:
        classes: n, the number of classes.
        reduced: 0 is unlabelled and 1 … n are the classes, as in ADE20K; else they are 0 … n − 1.
        replaced: numbers in the files → those that they stand for, before anything else.
        colours: whether the files have colours, each as a number (see ``label_colours``), all of which are replaced.
        chosen: class → class, or IGNORED, where a data set uses some of the classes that its files have.

    Raises:
        ConfigError: more classes than 8 bits hold, or replacements that make no labels.
    """

    classes: int
    reduced: bool = True
    replaced: Mapping[int, int] = field(default_factory=dict)
    chosen: Mapping[int, int] = field(default_factory=dict)
    colours: bool = False

    def __post_init__(self) -> None:
        most = IGNORED - self.first
        if self.classes > most:
            raise ConfigError(f"label maps have at most {most} classes, for {IGNORED} is ignored; got {self.classes}")
        whole = all(type(number) is int for pair in self.replaced.items() for number in pair)
        if not whole or (not self.colours and any(not 0 <= old <= HIGHEST for old in self.replaced)):
            raise ConfigError(
                f"label_map must be a dict of numbers in the files, 0 … {HIGHEST}, or colours in 0 … 255, and the "
                f"labels that they stand for, like {{255: 1}} or {{(128, 0, 0): 1}}, got {dict(self.replaced)}"
            )
        if odd := [new for new in self.replaced.values() if new not in self.allowed]:
            raise ConfigError(f"label_map has the label {odd[0]}; there are {self}")

    @property
    def first(self) -> int:
        """The number of the first class."""
        return int(self.reduced)

    @property
    def last(self) -> int:
        return self.classes - 1 + self.first

    @cached_property
    def allowed(self) -> frozenset[int]:
        return frozenset((*range(self.last + 1), IGNORED))

    def __str__(self) -> str:
        numbers = f"{UNLABELLED} for unlabelled and 1 … {self.last}" if self.reduced else f"0 … {self.last}"
        return f"{numbers}, and {IGNORED} for ignored"

    def label(self, number: int) -> int:
        """0 … n − 1, or IGNORED, for a number of a file."""
        number = self.replaced.get(number, number)
        label = IGNORED if number == IGNORED or number < self.first else number - self.first
        return self.chosen.get(label, label)

    def outside(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers that mean nothing."""
        if self.colours:
            return [number for number in numbers if number not in self.replaced]
        return [number for number in numbers if self.replaced.get(number, number) not in self.allowed]

    def labels(self, values: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
        """(H, W) values of a file and the numbers that occur in it, all of which mean something → uint8 labels,
        0 … n − 1 or IGNORED."""
        labels = [self.label(number) for number in numbers]
        if self.colours:
            return np.array(labels, np.uint8)[np.searchsorted(numbers, values)]
        table = np.zeros(max(numbers) + 1, np.uint8)
        table[list(numbers)] = labels
        return table[values]

    def named(self, numbers: Iterable[int]) -> str:
        """Numbers as people read them: "0-149, 255", or colours."""
        return label_colours.named(numbers) if self.colours else in_ranges(numbers)


@dataclass(frozen=True)
class MapLook:
    """What a label map is.

    Attributes:
        numbers: that occur in it.
        faults: (kind, what is wrong), in words that follow the file's name.
        grey: whether its labels are stored three times, as grey in colours.
    """

    numbers: tuple[int, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()
    grey: bool = False
    values: np.ndarray | None = field(default=None, compare=False, repr=False)


def look_at_map(
    path: str | Path, labelling: Labelling, image: Header | None = None, orientation: str = TURNED
) -> MapLook:
    """The rules that a label map has to meet: it can be read, has one channel, or colours where the recipe names them,
    the size of its image, and numbers that mean something.

    Args:
        image: what its image is; None where that is unknown.
        orientation: that the image is given in.
    """
    try:
        values, mode = decode_labels(path, labelling.colours)
    except UnreadableImage as error:
        return MapLook(faults=((UNREADABLE, f"cannot be read: {error.reason}"),))
    faults = []
    if image is not None and (wrong := other_size(values.shape[1::-1], image, orientation)):
        faults.append((OTHER_SIZE, wrong))
    channel = (label_colours.packed if labelling.colours else _one_channel)(values, mode)
    if channel is None or channel.dtype.kind == "f":
        faults.append((NO_MAP, _no_map(values, mode, labelling)))
        return MapLook(faults=tuple(faults))
    numbers = numbers_in(channel)
    if outside := labelling.outside(numbers):
        if labelling.colours:
            what = f"has {labelling.named(outside)}; of colours label_map names {labelling.named(labelling.replaced)}"
        else:
            what = f"has label {in_ranges(outside)}; there are {labelling}{_hint(outside, labelling)}"
        faults.append((OUT_OF_RANGE, what))
    return MapLook(numbers, tuple(faults), values.ndim == 3 and not labelling.colours, channel)


def _no_map(values: np.ndarray, mode: str, labelling: Labelling) -> str:
    if labelling.colours:
        return f"has no colours of 8 bits ({mode}), opaque ones, as label_map names them"
    if values.ndim == 2:
        return f"has fractions ({mode}): it must hold one label per pixel, no colours; {CURE}"
    return (
        f"has {values.shape[2]} channels ({mode}): it must hold one label per pixel, no colours; {CURE}, or name them, "
        "label_map={(128, 0, 0): 1, …}"
    )


def _one_channel(values: np.ndarray, mode: str) -> np.ndarray | None:
    """(H, W) of values that have one channel, or three that are equal; None of colours, and of what is transparent."""
    if values.ndim == 2:
        return values
    channels = list(np.moveaxis(values, 2, 0))
    if mode not in GREY_AS_COLOUR or (mode.endswith("A") and not (channels.pop() == OPAQUE).all()):
        return None
    return channels[0] if all((channel == channels[0]).all() for channel in channels) else None


def other_size(found: tuple[int, ...], image: Header, orientation: str) -> str:
    """What is wrong with a map of that (width, height), and what mends it where it fits the image in the other
    orientation; nothing where it has the size of the image."""
    known = {TURNED: image.size, STORED: image.stored}
    size = known.pop(orientation)
    if found == size:
        return ""
    text = f"is {found[0]}×{found[1]}, its image {size[0]}×{size[1]}"
    [(other, turned)] = known.items()
    if found != turned:
        return text
    return (
        f"{text} because of its camera's note (EXIF): image_orientation = {other!r} in the recipe says that maps "
        f"belong to images as they are {other}"
    )


def _hint(outside: Sequence[int], labelling: Labelling) -> str:
    if not labelling.reduced and list(outside) == [labelling.classes]:
        return f"; reduce_zero_label=True where {UNLABELLED} is unlabelled and 1 … {labelling.classes} are the classes"
    return ""


def numbers_of_map(values: np.ndarray, mode: str, colours: bool) -> tuple[int, ...] | None:
    """The numbers of a map as ``decode_labels`` gives it, or its colours as numbers; None where it has neither."""
    channel = (label_colours.packed if colours else _one_channel)(values, mode)
    return None if channel is None or channel.dtype.kind == "f" else numbers_in(channel)


def numbers_in(values: np.ndarray) -> tuple[int, ...]:
    """The numbers that occur, in order."""
    if values.dtype.kind == "u":
        return tuple(np.flatnonzero(np.bincount(values.ravel())).tolist())
    return tuple(np.unique(values).tolist())


def unlabelled(numbers: Iterable[int], labelling: Labelling) -> str:
    """What is wrong with maps whose numbers, all together, label no pixel; nothing where one is labelled."""
    found = sorted(numbers)
    if any(labelling.label(number) != IGNORED for number in found):
        return ""
    text = f"not one pixel has a label: the maps hold {labelling.named(found)}, and there are {labelling}"
    marks = [number for number in found if number != UNLABELLED]
    if len(found) == 2 and len(marks) == 1 and not labelling.colours:
        two = "two classes, background and object, reduce_zero_label=False and "
        text += (
            f"; for masks of 0 and {marks[0]}, where 0 is the background, set "
            f"{two if labelling.reduced else ''}metainfo=dict(classes=…, label_map={{{marks[0]}: 1}})"
        )
    return text


def reduced_already(numbers: Iterable[int], labelling: Labelling) -> str:
    """Why labels look like 0 … n − 1 where 1 … n are expected; nothing where they do not."""
    found, n = {labelling.replaced.get(number, number) for number in numbers}, labelling.classes
    looks_so = labelling.reduced and n not in found and n > 1 and (IGNORED in found or found >= set(range(n)))
    if not looks_so or found <= {UNLABELLED, IGNORED}:
        return ""
    return (
        f"values {in_ranges(found)}, none is {n}: reduce_zero_label=True ignores 0 and takes 1 … {n} for the classes; "
        "where 0 is the first class, set reduce_zero_label=False"
    )


def never_seen(numbers: Iterable[int], labelling: Labelling) -> list[int]:
    """Numbers, as the files have them, of the classes that do not occur."""
    found = {labelling.replaced.get(number, number) for number in numbers}
    wanted = range(labelling.first, labelling.last + 1)
    return [n for n in wanted if n not in found and labelling.chosen.get(n - labelling.first) != IGNORED]


def look_over(
    pairs: Sequence[tuple[str, str]], labelling: Labelling, classes: Sequence[str], orientation: str, most: int
) -> list[str]:
    """Looks at ``most`` (image, map), spread over a set, before anything is done with it.

    Returns:
        what people ought to know, in lines.

    Raises:
        DataError: a map that breaks a rule of ``look_at_map``, none that can be read, or not one labelled pixel in the
            whole set.
    """
    numbers: set[int] = set()
    grey, turned, unreadable = 0, 0, []
    chosen = range(0, len(pairs), -(-len(pairs) // most))
    for image, path in (pairs[index] for index in chosen):
        header = header_of(image)
        turned += header is not None and header.orientation != 1
        look = _sound(path, look_at_map(path, labelling, header, orientation))
        numbers.update(look.numbers)
        grey += look.grey
        unreadable += [f"{path} {what}" for _, what in look.faults]
    for index in sorted(set(range(len(pairs))) - set(chosen)):
        if not unlabelled(numbers, labelling):
            break  # the usual case: at once
        numbers.update(_sound(pairs[index][1], look_at_map(pairs[index][1], labelling)).numbers)
    if not numbers:
        raise DataError(f"label map {unreadable[0]}, and so are all {len(chosen)} looked at")
    if wrong := unlabelled(numbers, labelling):
        raise DataError(f"{Path(pairs[0][1]).parent}: {wrong}")
    told = f"{len(chosen)} of {len(pairs)} label maps looked at"
    notes = []
    if unreadable:
        notes.append(f"{told}, {len(unreadable)} cannot be read: {', '.join(unreadable[:3])}")
    if grey:
        notes.append(f"{told}, {grey} hold their labels in three equal channels, taken for one")
    if turned and orientation == TURNED:
        notes.append(
            f"{told}, {turned} belong to images that the camera's note (EXIF) turns: maps are taken to show them as "
            "people see them; image_orientation = 'stored' takes both as they are stored"
        )
    if looks_reduced := reduced_already(numbers, labelling):
        notes.append(f"{told}: {looks_reduced}")
    if absent := sorted(set(labelling.replaced) - numbers):
        notes.append(f"{told}: label_map replaces {labelling.named(absent)}, which does not occur")
    enough = len(chosen) == len(pairs) or len(chosen) >= 10 * labelling.classes
    if enough and not looks_reduced and (missing := never_seen(numbers, labelling)):
        names = ", ".join(str(classes[number - labelling.first]) for number in missing[:5])
        notes.append(f"{told}: {len(missing)} of {labelling.classes} classes never occur: {names}")
    return notes


def header_of(image: str | Path) -> Header | None:
    try:
        return read_header(image)
    except UnreadableImage:
        return None


def _sound(path: str, look: MapLook) -> MapLook:
    """Raises DataError where a map breaks another rule than that it can be read."""
    for kind, what in look.faults:
        if kind != UNREADABLE:
            raise DataError(f"label map {path} {what}")
    return look


def in_ranges(values: Iterable[int]) -> str:
    """ "0-149, 255" of the numbers."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    listed = [str(low) if low == high else f"{low}-{high}" for low, high in runs]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "") or "none"
