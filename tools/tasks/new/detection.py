"""A recipe for annotations in COCO's form: boxes, with masks where every object has one."""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elsa.core import DataError
from elsa.data.annotation_rules import REFUSED
from elsa.data.annotations import LISTS, Annotations
from elsa.data.images.folders import SPLIT_NAMES, check_root
from elsa.data.listing import endings, names_below

from .. import command
from .dense import backbone_of, milestones, sides, warm_up, weights_line
from .proposal import Proposal, batch_for, commented, epochs_for, has_gpu, held_out, middle, scaled, sizes_of, why_rate
from .proposal import workers as loader_processes

REFERENCE = {"nano": (1e-3, 4), "": (1e-4, 16)}  # learning rate and batch of the shipped recipes
LARGEST = 800  # the short side that published detectors see
WITHOUT_GPU = 320


@dataclass(frozen=True)
class Split:
    """
    Attributes:
        file: of annotations, as the recipe names it; folder: of its images.
        found: what that file holds, or the one that it is a part of.
        images, objects: entries of the split.
    """

    file: Path
    folder: Path
    found: Annotations
    images: list[dict[str, Any]]
    objects: list[dict[str, Any]]


def propose(args: argparse.Namespace) -> Proposal:
    """
    Raises:
        ConfigError: no such backbone. DataError: data that cannot be trained on.
    """
    root, train, val, files, told = find(args)
    used = Counter(entry["category_id"] for entry in train.objects)
    objects = {entry["name"]: used[entry["id"]] for entry in train.found.categories if used[entry["id"]]}
    classes = list(objects)
    for split in (train, val):
        split.found.refuse(classes)
    val.found.category_ids(classes)
    masks, why = _masks(train, val)
    paths = [str(train.folder / entry["file_name"]) for entry in train.images]
    sizes, notes = sizes_of(paths)
    images, variant = len({entry["image_id"] for entry in train.objects}), backbone_of(args)
    nano = "nano" if variant.endswith("nano") else ""
    rate, reference = REFERENCE[nano]
    batch = batch_for(images, 16 if has_gpu() else 4)
    lr, epochs = scaled(rate, reference, batch), epochs_for(images, True)
    short, long = sides(sizes, LARGEST if has_gpu() else WITHOUT_GPU)
    kind = "mask" if masks else "faster"
    base = _base(kind, variant)
    rated = why_rate(lr, rate, reference, batch, base.stem)
    counted = ", ".join(f"{name} {count}" for name, count in objects.items())
    many = f"{images} training images with objects, {len(val.images)} to validate"
    head = [f"{len(classes)} classes of {args.data}; {many}", f"objects: {counted}", why,
            f"{rated}; with another global_batch another rate"]  # fmt: skip
    steps = epochs * (images // batch)
    small = "" if middle(min(size) for size in sizes) >= 64 else ", filter_cfg=dict(min_size=1)"
    values = dict(
        base=str(base), root=f"{root}/", classes=tuple(classes), variant=weights_line(args, variant), masks=masks,
        short=short, long=long, workers=loader_processes(), batch=batch, lr=lr, epochs=epochs, small=small,
        ends=milestones(epochs), warm=warm_up(steps), **_named(root, train, "train"), **_named(root, val, "val"),
    )  # fmt: skip
    heads = "bbox_head=dict(num_classes=len(classes))"
    heads += ", mask_head=dict(num_classes=len(classes))" if masks else ""
    text = TEXT.format(head="\n".join(commented(head)), heads=heads, with_mask=", with_mask=True" * masks, **values)
    size = f"{variant}; images of about {long}×{short} px"
    told = [*told, *notes, f"{len(classes)} classes: {counted}", why, size, rated, f"{epochs} epochs"]
    return Proposal(text, files, told)


TEXT = """\
{head}
_base_ = {base!r}
data_root = {root!r}
image_orientation = "turned"  # "stored" where annotations disregard what a camera notes (EXIF)
classes = {classes!r}  # in any order; names as the annotations have them
embedded = None
_image = dict(type="LoadImageFromFile")
_labels = dict(type="LoadAnnotations", with_bbox=True{with_mask})
train_pipeline = [
    _image,
    _labels,
    dict(type="RandomFlip", prob=0.5),  # 0.0 where left and right matter
    dict(type="RandomResize", scale=({long}, {short}), ratio_range=(0.8, 1.2), keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    _image,
    dict(type="Resize", scale=({long}, {short}), keep_ratio=True),
    _labels,
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
model = dict(backbone=dict({variant}), roi_head=dict({heads}))
_mine = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    num_workers={workers},
    persistent_workers={workers} > 0,
    aspect_group=None,
    dataset=dict(dataset=dict(
        ann_file={train_file!r}, data_prefix=dict(img={train_images!r}), pipeline=train_pipeline, **_mine{small}
    )),
)
val_dataloader = dict(
    num_workers={workers},
    persistent_workers={workers} > 0,
    dataset=dict(ann_file={val_file!r}, data_prefix=dict(img={val_images!r}), pipeline=test_pipeline, **_mine),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=None)  # that of the data set
test_evaluator = val_evaluator
global_batch = {batch}
optim_wrapper = dict(optimizer=dict(lr={lr}))
train_cfg = dict(max_epochs={epochs}, val_interval=1, save_steps=0)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end={warm}),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end={epochs}, milestones={ends}, gamma=0.1),
]
run = dict(log_every=20)
"""


def _named(root: Path, split: Split, name: str) -> dict[str, str]:
    """Paths from the root where they lie below it."""
    file = split.file.relative_to(root) if split.file.is_relative_to(root) else split.file
    return {f"{name}_file": str(file), f"{name}_images": f"{os.path.relpath(split.folder, root)}/"}


def _base(kind: str, variant: str) -> Path:
    """The shipped recipe of that detector and backbone, or of another backbone, which the recipe then names."""
    folder = command.CONFIGS / "detection"
    own = [folder / f"{kind}_rcnn_{variant}{length}.py" for length in ("", "_1x")]
    return next((path for path in own if path.exists()), folder / f"{kind}_rcnn_elsa_swin_tiny_1x.py")


def _masks(train: Split, val: Split) -> tuple[bool, str]:
    """Whether every object has a mask, and what is said of it."""
    founds = {id(split.found): split.found for split in (train, val)}.values()
    objects = sum(len(found.annotations) for found in founds)
    faults = [fault for found in founds for fault in Annotations(found.file).faults if fault.key == "segmentation"]
    if not (faults := [fault for fault in faults if fault.effect == REFUSED]):
        return True, "every object has a mask: Mask R-CNN"
    return False, f"boxes alone: {len(faults)} of {objects} objects have no mask that can be used ({faults[0].place})"


# ---- data


def find(args: argparse.Namespace) -> tuple[Path, Split, Split, dict[Path, str], list[str]]:
    """The root, both splits, files to be written, and what is said.

    Raises:
        DataError: no annotations, or several that may be meant; no images.
    """
    data = args.data
    root = data.parent if data.is_file() else data
    check_root(root, "--data")
    folders, texts = {"."}, []
    for name in names_below(root):
        folders.add(os.path.dirname(name) or ".")
        if name.lower().endswith(".json"):
            texts.append(name)
    files = [data] if data.is_file() else [root / name for name in texts]
    splits = {name: _of_split(files, root, name) for name in ("train", "val")}
    if all(splits.values()):
        train, val = (_opened(root, path, folders) for path in splits.values())
        return root, train, val, {}, []
    others = [path for path in files if _is_coco(path)]
    if len(others) != 1:
        listed = ", ".join(str(path.relative_to(root)) for path in others[:5]) or "none"
        raise DataError(
            f"{data} needs annotations in COCO's form, one .json file for training and one for validation, with train "
            f"and val in their names or folders, or a single one; it has {listed}"
        )
    return root, *_divided(_opened(root, others[0], folders), args)


def _of_split(files: list[Path], root: Path, split: str) -> Path | None:
    """The annotations of a split, by a word of the path; instances where there are other kinds beside them.

    Raises:
        DataError: several.
    """
    words = next(group for group in SPLIT_NAMES if split in group)
    found = [path for path in files if any(word in str(path.relative_to(root)).lower() for word in words)]
    found = [path for path in found if _is_coco(path)]
    if instances := [path for path in found if path.name.startswith("instances")]:
        found = instances
    if len(found) > 1:
        listed = ", ".join(str(path.relative_to(root)) for path in found[:5])
        raise DataError(f"{root} has several files of annotations of {split}: {listed}; --data FILE.json names one")
    return found[0] if found else None


def _is_coco(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and all(isinstance(content.get(name), list) for name in LISTS)


def _opened(root: Path, file: Path, folders: set[str]) -> Split:
    found = Annotations(file, masks=False)
    found.refuse(())
    names = [entry["file_name"] for entry in found.images[:: max(1, len(found.images) // 20)]]
    order = sorted(folders, key=lambda folder: (root / folder != file.parent, folder))
    images = max(order, key=lambda folder: sum((root / folder / name).is_file() for name in names))
    if not (root / images / names[0]).is_file():
        there = next((name for name in names_below(root) if os.path.splitext(name)[1].lower() in endings()), "no image")
        raise DataError(f"no folder of {root} has the images of {file}: {names[0]} …; there is {there}")
    return Split(file, root / images, found, found.images, found.annotations)


def _divided(whole: Split, args: argparse.Namespace) -> tuple[Split, Split, dict[Path, str], list[str]]:
    """A fifth of the images is held out, by files beside the recipe."""
    ids = [str(number) for number in sorted({entry["image_id"] for entry in whole.objects}, key=str)]
    if len(ids) < 2:
        raise DataError(
            f"{whole.file} has {len(ids)} image with objects, where two are needed: to train, and to validate"
        )
    _, kept = held_out(ids)
    chosen, content, files, splits = set(kept), json.loads(whole.file.read_bytes()), dict[Path, str](), list[Split]()
    for name, wanted in (("train", False), ("val", True)):

        def of_split(entries: list[Any], key: str, wanted: bool = wanted) -> list[Any]:
            return [entry for entry in entries if (str(entry[key]) in chosen) == wanted]

        images, objects = of_split(whole.images, "id"), of_split(whole.objects, "image_id")
        written = {"images": images, "annotations": of_split(content["annotations"], "image_id")}
        path = args.output.with_name(f"{args.output.stem}.{name}.json")
        files[path] = json.dumps({**content, **written})
        splits.append(Split(path, whole.folder, whole.found, images, objects))
    told = f"{whole.file.name} is not divided: {len(kept)} of {len(ids)} images with objects are held out"
    return splits[0], splits[1], files, [f"{told}, by {' and '.join(path.name for path in files)}"]
