"""A recipe for images of classes: folders, tar files, or a list of them."""

from __future__ import annotations

import argparse
import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import timm
import yaml

from elsa.core import ConfigError, DataError, did_you_mean
from elsa.data.images.folders import FolderImages, ListedFiles, TarImages, check_root, find_split, open_folders
from elsa.data.images.lists import find_list, number_lists, read_list
from elsa.data.listing import folders_in
from elsa.engine import load_config
from elsa.models import read_checkpoint

from .. import command
from ..checkpoints import class_names
from .proposal import (
    Proposal,
    batch_for,
    commented,
    epochs_for,
    has_gpu,
    held_out,
    middle,
    scaled,
    sizes_of,
    to_32,
    why_rate,
    workers,
)

UNEQUAL = 3  # times as many images of the most frequent class as of the rarest
FEW, SMALL = 100_000, 64  # images; pixels of the short side
FINE_TUNING = "_base_/finetune.yaml"


@dataclass
class Found:
    """Data as DATA names them.

    Attributes:
        data: keys of DATA.
        paths: of training images that can be opened; none in a tar file.
        counts: training images of each class, by its name; val: how many there are to validate.
        files: lists to be written.
    """

    data: dict[str, Any]
    paths: list[str]
    counts: dict[str, int]
    val: int
    told: list[str]
    files: dict[Path, str] = field(default_factory=dict)


def propose(args: argparse.Namespace) -> Proposal:
    """
    Raises:
        ConfigError: no such model. DataError: data that cannot be trained on.
    """
    found = find(args)
    if len(found.counts) < 2:
        raise DataError(f"{args.data} has one class ({next(iter(found.counts))}), where two are needed to tell apart")
    sizes, told = sizes_of(found.paths) if found.paths else ([], [])
    images, content = (
        sum(found.counts.values()),
        read_checkpoint(args.weights, args.trust_checkpoint) if args.weights else {},
    )
    name, why = _model(args, content)
    side = middle(min(size) for size in sizes) if sizes else 256
    size = _image_size(name, side)
    reference, origin = _reference(name, bool(args.weights))
    batch = batch_for(images, reference.DATA.BATCH if has_gpu() else 32)
    lr = scaled(reference.TRAIN.LR, reference.DATA.BATCH, batch)
    rate = why_rate(lr, reference.TRAIN.LR, reference.DATA.BATCH, batch, origin)
    epochs = epochs_for(images, bool(args.weights))
    unequal = _unequal(found.counts)
    model: dict[str, Any] = {"NAME": name, "NUM_CLASSES": len(found.counts), "DROP_PATH": reference.MODEL.DROP_PATH}
    if args.weights:
        ignore = [] if class_names(content) == list(found.counts) else _heads(name)
        model |= {"PRETRAINED": str(args.weights), "PRETRAINED_IGNORE": ignore}
    data = found.data | {"IMG_SIZE": size, "BATCH": batch, "WORKERS": workers()}
    few = images < FEW or bool(args.weights)
    train = {"EPOCHS": epochs, "COOLDOWN_EPOCHS": 0, "WARMUP_EPOCHS": max(1, epochs // 20), "LR": lr,
             "WARMUP_LR": lr / 100, "MIN_LR": lr / 100, "LR_EVERY": "step"}  # fmt: skip
    sections: dict[str, tuple[dict[str, Any], list[str]]] = {
        "MODEL": (model, [why]),
        "DATA": (data, [*unequal, f"the short side of images is {side} pixels in the middle"]),
        "AUG": (_augmentation(few), ["HFLIP: 0.0 where left and right matter: letters, digits, traffic signs"]),
        "TRAIN": (train, [f"{rate}; with another DATA.BATCH another rate: ten times too much spoils a training"]),
        "EVAL": ({"CROP": 1.0 if side < 2 * SMALL else 0.9}, []),
    }
    told = [*found.told, *told, *unequal, why, f"images of {size} px, short sides are {side}", rate, f"{epochs} epochs"]
    head = [f"{len(found.counts)} classes, {images} training and {found.val} validation images of {args.data}; elsa "
            "train --print-config tells every key"]  # fmt: skip
    return Proposal("".join(f"{line}\n" for line in _lines(head, sections)), found.files, told)


def _lines(head: list[str], sections: dict[str, tuple[dict[str, Any], list[str]]]) -> Iterator[str]:
    yield from commented(head)
    for section, (keys, notes) in sections.items():
        yield f"{section}:"
        yield from (f"  {line}" for line in commented(notes))
        for key, value in keys.items():
            text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
            yield f"  {key}: {_number(value) or text.removesuffix(chr(10)).removesuffix('...').strip()}"


def _number(value: Any) -> str:
    """Numbers with a point, as YAML wants them: 1.0e-05."""
    if not isinstance(value, float):
        return ""
    text = f"{value:g}"
    return text if "." in text else text.replace("e", ".0e") if "e" in text else f"{text}.0"


# ---- data


def find(args: argparse.Namespace) -> Found:
    """
    Raises:
        DataError: nothing there that is known, or a class that cannot be divided.
    """
    data, keys = args.data, (args.image_key, args.label_key)
    if data.is_file():
        return _divided_list(data.parent, data, args)
    check_root(data, "--data")
    train, val = find_split(data, "train"), find_split(data, "validation")
    lists = find_list(data, "train"), find_list(data, "validation")
    test = find_split(data, "test")
    if train and val:
        found = _of_folders(data)
    elif all(lists):
        found = _of_lists(data, *lists, keys)
    elif lists[0]:
        found = _divided_list(data, lists[0], args)
    else:
        if train and not train.is_dir():
            raise DataError(f"{data} has {train.name}, but no val.tar beside it")
        folder = train or data
        classes = folders_in(folder)
        if not classes:
            raise DataError(
                f"{folder} has no class folders; expected {data}/CLASS/IMAGE, {data}/train/CLASS/IMAGE and "
                f"{data}/val/CLASS/IMAGE, or lists train.csv and val.csv"
            )
        found = _divided(folder, FolderImages(folder, classes), classes, args)
    if any(keys) and found.data["DATASET"] != "list":
        raise ConfigError(f"--image-key and --label-key are of tables; {data} has class folders")
    return Found(**{**vars(found), "told": [*found.told, *([f"{test} is left alone"] if test else [])]})


def _of_folders(data: Path) -> Found:
    (train, classes), (val, _) = open_folders(data, "train", "validation", ("train", "val"), "", None)
    paths = [] if isinstance(train, TarImages) else [train.filename(index) for index in range(len(train))]
    named = {"DATASET": "folder", "ROOT": str(data)}
    return Found(named, paths, _counted(train, classes.names), len(val), [])


def _of_lists(data: Path, train: Path, val: Path, keys: tuple[str, str]) -> Found:
    rows = {path: read_list(path, *keys) for path in (train, val)}
    words = set(rows[train].words)
    order = _order(words)
    files, classes = number_lists(rows, data, order)
    names = classes.names or [str(number) for number in range(len(words))]
    named = {"DATASET": "list", "ROOT": str(data), "TRAIN_SPLIT": train.name, "VAL_SPLIT": val.name, "CLASSES": order}
    named |= {"IMAGE_KEY": keys[0], "LABEL_KEY": keys[1]}
    paths = [files[train].filename(index) for index in range(len(files[train]))]
    given = {key: value for key, value in named.items() if value}
    return Found(given, paths, _counted(files[train], names), len(files[val]), [])


def _order(words: set[str]) -> str:
    """DATA.CLASSES for labels: numbers 0 … n − 1 are taken as they are, others for names."""
    numbers = all(word.isdecimal() for word in words)
    return "natural" if numbers and {int(word) for word in words} != set(range(len(words))) else ""


def _divided_list(root: Path, path: Path, args: argparse.Namespace) -> Found:
    rows = read_list(path, args.image_key, args.label_key)
    order = "natural" if all(word.isdecimal() for word in rows.words) else "text"
    files, classes = number_lists({path: rows}, root, order)
    return _divided(root, files[path], classes.names, args)


def _divided(root: Path, images: ListedFiles, classes: list[str], args: argparse.Namespace) -> Found:
    """Of each class a fifth is held out, by lists beside the recipe."""
    members: dict[str, list[str]] = {name: [] for name in classes}
    for name, label in zip(images.names, images.labels, strict=True):
        members[classes[label]].append(name)
    for name, own in members.items():
        if len(own) < 2:
            raise DataError(
                f"class {name!r} of {root} has {len(own) or 'no'} image{'s' * (not own)}: two are needed, one to train "
                "and one to validate"
            )
    parts = {name: held_out(own) for name, own in members.items()}
    files = {}
    for place, split in enumerate(("train", "val")):
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("image", "label"))
        table.writerows((image, name) for name, both in parts.items() for image in both[place])
        files[args.output.with_name(f"{args.output.stem}.{split}.csv")] = text.getvalue()
    named = {"DATASET": "list", "ROOT": str(root)}
    named |= dict(zip(("TRAIN_SPLIT", "VAL_SPLIT"), map(str, files), strict=True))
    if all(name.isdecimal() for name in classes):
        named["CLASSES"] = "natural"
    train, val = ([image for both in parts.values() for image in both[place]] for place in (0, 1))
    lists = ", ".join(path.name for path in files)
    told = [
        f"{root} is not divided: {len(val)} of {len(images)} images are held out, a fifth of each class, by the lists "
        f"{lists}; images that belong together are better divided by hand"
    ]
    counts = {name: len(both[0]) for name, both in parts.items()}
    return Found(named, [str(root / image) for image in train], counts, len(val), told, files)


def _counted(images: Any, names: list[str]) -> dict[str, int]:
    counts = Counter(images.labels)
    return {name: counts[index] for index, name in enumerate(names)}


def _unequal(counts: dict[str, int]) -> list[str]:
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    if counts[most] < UNEQUAL * max(counts[least], 1):
        return []
    return [f"unequal classes: {counts[most]} images of {most}, {counts[least]} of {least}; CLASS_WEIGHTS: balanced or "
            "SAMPLER: balanced evens them out"]  # fmt: skip


# ---- model and rates


def _model(args: argparse.Namespace, content: dict[str, Any]) -> tuple[str, str]:
    """Its name, and why it."""
    if args.model:
        if not timm.is_model(args.model):
            near = did_you_mean(args.model, timm.list_models()) or "; timm.list_models() has all names"
            raise ConfigError(f"--model {args.model!r} is no model{near}")
        return args.model, "the model as asked for"
    if timm.is_model(named := str(content.get("arch", ""))):
        return named, f"the model of {args.weights.name}"
    if args.weights:
        raise ConfigError(
            f"--weights {args.weights} does not say of which model it is: name it, --model elsa_swin_tiny"
        )
    if has_gpu():
        return "elsa_swin_tiny", "elsa_swin_tiny, the smallest published model"
    return "elsa_swin_nano", "no GPU: elsa_swin_nano, the smallest model; with one elsa_swin_tiny"


def _heads(name: str) -> list[str]:
    """Patterns of the tensors that belong to classes."""
    named = getattr(timm.get_pretrained_cfg(name), "classifier", None) or ()
    return sorted({f"{part.partition('.')[0]}.*" for part in ((named,) if isinstance(named, str) else named)})


def _image_size(name: str, side: int) -> int:
    """Twice the images' own short side, 64 … 224, unless the model has one size."""
    settings = timm.get_pretrained_cfg(name)
    if settings is not None and settings.fixed_input_size and "elsa" not in name:
        return settings.input_size[-1]
    return min(224, max(64, to_32(2 * side)))


@cache
def _reference(name: str, tuned: bool) -> tuple[Any, str]:
    """The shipped recipe that batch, learning rate and drop path are known from, and its name."""
    folder = command.CONFIGS / "classification"
    if tuned:
        own = folder / f"finetune_{name}.yaml"
        path = own if own.exists() else folder / FINE_TUNING
        return load_config(path, ["MODEL.PRETRAINED=any"]), path.stem
    for path in sorted(folder.glob("*.yaml")):
        if not path.stem.startswith("finetune_") and name == (config := load_config(path)).MODEL.NAME:
            return config, path.stem
    return load_config(folder / "_base_/imagenet.yaml"), "imagenet"


def _augmentation(few: bool) -> dict[str, Any]:
    """Less where there are few images or epochs: what is learned from many tears small sets apart."""
    light = {"SCALE": [0.35, 1.0], "AUTO_AUGMENT": "", "ERASE": 0.0, "MIXUP": 0.0, "CUTMIX": 0.0}
    return {"HFLIP": 0.5, **(light if few else {})}
