"""A recipe for images and label maps: numbers or colours, whatever they are, become classes."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from elsa.core import DataError
from elsa.data.decode import UnreadableImage, decode_labels
from elsa.data.images.folders import check_root, split_names
from elsa.data.label_colours import as_colour, named
from elsa.data.label_maps import IGNORED, in_ranges, numbers_of_map
from elsa.data.pairs import Pairs, find_pairs
from elsa.data.survey import survey

from .. import command
from ..data_check import show_progress
from .dense import backbone_of, sides, warm_up, weights_line
from .proposal import (
    LOOK_AT,
    Proposal,
    batch_for,
    commented,
    epochs_for,
    has_gpu,
    held_out,
    scaled,
    sizes_of,
    spread,
    why_rate,
    workers,
)

REFERENCE = {"nano": (1e-3, 16), "": (6e-5, 16)}  # learning rate and batch of the shipped recipes
LARGEST, WITHOUT_GPU = 512, 256  # pixels of a crop's side
IMAGES = ("images", "image", "imgs", "img", "img_dir", "JPEGImages")
MAPS = ("annotations", "masks", "mask", "labels", "label", "annotation", "gt", "ann_dir", "SegmentationClass")
NAMES = ("classes.txt", "labels.txt")


@dataclass(frozen=True)
class Labels:
    """What the maps' numbers, or colours, are taken for.

    Attributes:
        classes: names; reduced: whether 0 is unlabelled and 1 … n are the classes.
        label_map: as a recipe has it; palette: of the classes, where they are colours.
        why: in words.
    """

    classes: list[str]
    reduced: bool
    label_map: Mapping[object, int]
    palette: list[list[int]]
    why: str


def propose(args: argparse.Namespace) -> Proposal:
    """
    Raises:
        ConfigError: no such backbone. DataError: data that cannot be trained on.
    """
    root = args.data
    check_root(root, "--data")
    folders, pairs = find(root)
    train, val, files, told = _splits(args, pairs)
    labels = read_labels(root, [path for part in (train, val) for _, path in part])
    sizes, notes = sizes_of([image for image, _ in train])
    variant = backbone_of(args)
    nano = "nano" if variant.endswith("nano") else ""
    rate, reference = REFERENCE[nano]
    batch = batch_for(len(train), 16 if has_gpu() else 8)
    lr = scaled(rate, reference, batch)
    short, long = sides(sizes, LARGEST if has_gpu() else WITHOUT_GPU)
    steps = epochs_for(len(train), True) * (len(train) // batch)
    base = command.CONFIGS / "segmentation" / f"upernet_{variant}.py"
    base = base if base.exists() else base.with_name("upernet_elsa_swin_tiny.py")
    rated = why_rate(lr, rate, reference, batch, base.stem)
    count = len(labels.classes)
    head = [f"{count} classes of {root}; {len(train)} training and {len(val)} validation images", labels.why,
            f"{rated}; with another global_batch another rate"]  # fmt: skip
    facts = f"classes=classes, palette={labels.palette}" if labels.palette else "classes=classes"
    facts += ", label_map=label_map" if labels.label_map else ""
    lists = [f", ann_file={str(path)!r}" for path in files] or ["", ""]
    prefixes = [dict(img_path=str(image), seg_map_path=str(maps)) for image, maps in folders]
    text = TEXT.format(
        head="\n".join(commented(head)), base=str(base), root=f"{root}/", classes=tuple(labels.classes), facts=facts,
        label_map=f"\nlabel_map = {dict(labels.label_map)}  # in the files → class" if labels.label_map else "",
        reduced=labels.reduced, short=short, long=long, workers=workers(), batch=batch, lr=lr, steps=steps,
        variant=weights_line(args, variant), warm=warm_up(steps), every=max(1, steps // 10), train_list=lists[0],
        train_prefix=prefixes[0], val_list=lists[-1], val_prefix=prefixes[-1], half=max(1, short * 2 // 3),
        sizes=[(int(long * ratio), int(short * ratio)) for ratio in (0.75, 1.0, 1.25)],
    )  # fmt: skip
    size = f"{variant}; crops of {short} px"
    return Proposal(text, files, [*told, *notes, labels.why, size, rated, f"{steps} steps"])


TEXT = """\
{head}
_base_ = {base!r}
data_root = {root!r}
image_orientation = "turned"  # "stored" where maps disregard what a camera notes (EXIF)
classes = {classes!r}  # give them their names, in this order{label_map}
embedded = None
_image = dict(type="LoadImageFromFile")
_labels = dict(type="LoadCheckedAnnotations")
train_pipeline = [
    _image,
    _labels,
    dict(type="RandomResize", scale=({long}, {short}), ratio_range=(0.75, 1.5), keep_ratio=True),
    dict(type="RandomCrop", crop_size=({short}, {short}), cat_max_ratio=0.9),
    dict(type="RandomFlip", prob=0.5),  # 0.0 where left and right matter
    dict(type="PackSegInputs"),
]
test_pipeline = [
    _image,
    dict(type="Resize", scale=({long}, {short}), keep_ratio=True),
    _labels,
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    _image,
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=size, keep_ratio=True) for size in {sizes}],
            [dict(type="RandomFlip", prob=0.0, direction="horizontal")],
            [_labels],
            [dict(type="PackSegInputs")],
        ],
    ),
]
model = dict(
    data_preprocessor=dict(size=({short}, {short})),
    backbone=dict({variant}),
    decode_head=dict(num_classes=len(classes)),
    auxiliary_head=dict(num_classes=len(classes)),
    test_cfg=dict(crop_size=({short}, {short}), stride=({half}, {half})),
)
_mine = dict(
    type="CheckedMapsDataset",
    data_root=data_root,
    metainfo=dict({facts}),
    reduce_zero_label={reduced},  # True: 0 is unlabelled and 1 … n are the classes; 255 is ignored in both
)
train_dataloader = dict(
    num_workers={workers},
    persistent_workers={workers} > 0,
    dataset=dict(dataset=dict(
        data_prefix={train_prefix}{train_list}, pipeline=train_pipeline, **_mine
    )),
)
val_dataloader = dict(
    num_workers={workers},
    persistent_workers={workers} > 0,
    dataset=dict(data_prefix={val_prefix}{val_list}, pipeline=test_pipeline, **_mine),
)
test_dataloader = val_dataloader
global_batch = {batch}
optim_wrapper = dict(optimizer=dict(lr={lr}))
train_cfg = dict(max_iters={steps}, val_interval={every}, save_steps=0)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end={warm}),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin={warm}, end={steps}),
]
run = dict(log_every=20)
"""


# ---- data


def find(root: Path) -> tuple[list[tuple[Path, Path]], list[Pairs]]:
    """Folders of images and of maps, below the root, of training and validation, or one pair of both, and their files.

    Raises:
        DataError: no such folders.
    """
    for images in IMAGES:
        for maps in MAPS:
            divided = [pair for split in ("train", "validation") if (pair := _of_split(root, images, maps, split))]
            if len(divided) == 2:
                return divided, [find_pairs(root / image, root / label) for image, label in divided]
            if (root / images).is_dir() and (root / maps).is_dir() and not divided:
                both = Path(images), Path(maps)
                return [both], [find_pairs(root / images, root / maps)]
    there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{root} has no images and label maps: expected images and masks (or annotations, labels), each with train and "
        f"val or neither, or train/images, train/masks, val/images and val/masks; it holds {there}"
    )


def _of_split(root: Path, images: str, maps: str, split: str) -> tuple[Path, Path] | None:
    for name in split_names(split):
        for pair in ((Path(images, name), Path(maps, name)), (Path(name, images), Path(name, maps))):
            if all((root / folder).is_dir() for folder in pair):
                return pair
    return None


def _splits(args: argparse.Namespace, pairs: list[Pairs]) -> tuple[list, list, dict[Path, str], list[str]]:
    """(image, map) to train on and to validate on, lists to be written, and what is said."""
    for part in pairs:
        for alone, what in ((part.images, "no label map"), (part.maps, "a label map but no image")):
            if alone:
                raise DataError(f"{args.data}: {len(alone)} with {what}: {', '.join(list(alone.values())[:3])}")
        if not part.both:
            raise DataError(
                f"{args.data} has no images by their names (.jpg, .png …) with label maps (.png, .tif, .bmp)"
            )
    if len(pairs) == 2:
        return list(pairs[0].both.values()), list(pairs[1].both.values()), {}, []
    both = pairs[0].both
    if len(both) < 2:
        raise DataError(f"{args.data} has one image, where two are needed: to train, and to validate")
    parts = held_out(list(both))
    files = {
        args.output.with_name(f"{args.output.stem}.{split}.txt"): "".join(f"{name}\n" for name in part)
        for split, part in zip(("train", "val"), parts, strict=True)
    }
    told = f"{args.data} is not divided: {len(parts[1])} of {len(both)} images are held out"
    told += f", by {' and '.join(path.name for path in files)}"
    train, val = ([both[name] for name in part] for part in parts)
    return train, val, files, [told]


# ---- labels


def read_labels(root: Path, paths: list[str]) -> Labels:
    """What the numbers or colours of the maps, spread over the set, are taken for.

    Raises:
        DataError: maps that cannot be read or are none, one class, or more than the names that lie beside them.
    """
    found = _numbers(paths, colours=False)
    colours = any(numbers is None for _, numbers in found)
    if colours:
        found = _numbers(paths, colours=True)
    counts, places = Counter[int](), dict[int, str]()
    for path, numbers in found:
        if numbers is None:
            raise DataError(f"label map {path} has neither one channel of whole numbers nor opaque colours")
        if len(numbers) > IGNORED:
            what = "colours" if colours else "numbers"
            raise DataError(f"{path} has {len(numbers)} {what}: is it a label map? A JPEG of one is none any more")
        counts.update(numbers)
        for number in numbers:
            places.setdefault(number, path)
    if len(counts) > IGNORED:
        raise DataError(
            f"the label maps of {root} have {len(counts)} numbers or colours, {IGNORED} classes are the most"
        )
    names = _class_names(root)
    return _of_colours(sorted(counts), names, root) if colours else _of_numbers(sorted(counts), names, places)


def _numbers(paths: list[str], colours: bool) -> list[tuple[str, tuple[int, ...] | None]]:
    look = partial(_look, colours=colours)
    return list(survey(look, spread(paths, LOOK_AT), workers(), show_progress, "looking at label maps"))


def _look(path: str, colours: bool) -> tuple[int, ...] | None:
    try:
        return numbers_of_map(*decode_labels(path, colours), colours=colours)
    except UnreadableImage as error:
        raise DataError(str(error)) from error


def _class_names(root: Path) -> tuple[str, list[str]]:
    """Of a text with a name a line beside the data: its name, and they."""
    for name in NAMES:
        if (path := root / name).is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except ValueError as error:
                raise DataError(f"{path} is no text in UTF-8") from error
            return name, [line.strip() for line in lines if line.strip()]
    return "", []


def _of_numbers(numbers: list[int], names: tuple[str, list[str]], places: Mapping[int, str]) -> Labels:
    text, given = names
    real = [number for number in numbers if number != IGNORED]
    held = f"the maps hold {in_ranges(numbers)}"
    if len(numbers) == 2 and real == [0]:
        own = given if len(given) == 2 else ["background", "object"]
        return Labels(
            own, False, {0: 0, IGNORED: 1}, [], f"{held}: background and object, label_map takes {IGNORED} for 1"
        )
    if len(real) < 2:
        raise DataError(f"{held}: one class leaves nothing to tell apart ({places[numbers[0]]})")
    if given:
        reduced = real[-1] == len(given)
        if real[-1] > len(given):
            raise DataError(
                f"label map {places[real[-1]]} has {real[-1]}, but {text} names {len(given)} classes: 0 … "
                f"{len(given) - 1}, or 1 … {len(given)} where 0 is unlabelled"
            )
        zero = "0 is unlabelled" if reduced else "0 is the first class"
        return Labels(given, reduced, {}, [], f"{held}; {zero}, the names are those of {text}, {IGNORED} is ignored")
    own = [f"class{number}" for number in real]
    if real == list(range(len(real))):
        why = f"{held}; 0 is taken for the first class: reduce_zero_label=True where it is unlabelled"
        return Labels(own, False, {}, [], why)
    if real == list(range(1, len(real) + 1)):
        return Labels(own, True, {}, [], f"{held}; there is no 0: 1 … {len(real)} are the classes")
    mapped = {number: place for place, number in enumerate(real)}
    mapped |= {IGNORED: IGNORED} if IGNORED in numbers else {}
    return Labels(own, False, mapped, [], f"{held}; label_map makes classes of them, {IGNORED} is ignored")


def _of_colours(numbers: list[int], names: tuple[str, list[str]], root: Path) -> Labels:
    text, given = names
    if len(numbers) < 2:
        raise DataError(f"the label maps of {root} have one colour: one class leaves nothing to tell apart")
    if given and len(given) != len(numbers):
        raise DataError(
            f"the label maps of {root} have {len(numbers)} colours, {named(numbers)}; {text} names {len(given)}"
        )
    palette = [list(as_colour(number)) for number in numbers]
    own = given or [f"colour{place}" for place in range(len(numbers))]
    mapped = {as_colour(number): place for place, number in enumerate(numbers)}
    why = f"the maps hold the colours {named(numbers)}, each a class; {IGNORED} in label_map ignores one"
    return Labels(own, False, mapped, palette, why)
