"""Where images come from: a folder, a tar file, or one of timm's readers, all checked before any work."""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import create_dataset, create_reader, get_img_extensions
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from .digits import write_digits

logger = logging.getLogger("elsa")

SPLIT_NAMES = (("train", "training"), ("val", "validation", "eval", "evaluation"), ("test", "testing"))
STREAMED = ("wds", "hfids", "tfds")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


class DataError(ValueError):
    """The data is not what the configuration says; the message names the place."""


class Source:
    """Images of one split with random access.

    Attributes:
        classes: class names in the order of their indices; empty where the reader does not tell.
    """

    def __init__(self, items: Any, mode: str, classes: list[str] | None = None) -> None:
        self.items, self.mode, self.classes = items, mode, classes or []

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The decoded image and its class index; raises one of UNREADABLE where it cannot be decoded."""
        content, target = self.items[index][:2]
        image = content if isinstance(content, Image.Image) else Image.open(content)
        return image.convert(self.mode), int(target)

    def name(self, index: int) -> str:
        """The file's name where there is one."""
        if hasattr(self.items, "filename"):
            return str(self.items.filename(index, absolute=True))
        return f"image {index}"


def open_splits(config: CfgNode, *names: str) -> list[Source | IterableDataset]:
    """The splits "train" and "val", or one of them, as DATA says.

    Raises:
        DataError: a path, a split, images or classes that are not there, or not as many as MODEL.NUM_CLASSES.
    """
    if config.DATA.DATASET == "digits":
        try:
            write_digits(config.DATA.ROOT)
        except OSError as error:
            raise DataError(f"DATA.ROOT {config.DATA.ROOT}: {error}") from error
    mode = "RGB" if config.MODEL.IN_CHANS == 3 else "L"
    if config.DATA.DATASET in ("folder", "digits"):
        return _open_folders(config, mode, names)
    prefix, slash, _ = config.DATA.DATASET.partition("/")
    if not slash or prefix not in ("torch", "hfds", *STREAMED):
        raise DataError(
            f"DATA.DATASET {config.DATA.DATASET!r} must be folder, digits, or torch/NAME, hfds/NAME, wds/NAME, "
            "hfids/NAME, tfds/NAME"
        )
    return [_open_reader(config, mode, name) for name in names]


def _open_reader(config: CfgNode, mode: str, name: str) -> Source | IterableDataset:
    """A split of one of timm's readers."""
    data, is_training = config.DATA, name == "train"
    split = data.TRAIN_SPLIT if is_training else data.VAL_SPLIT
    try:
        dataset = create_dataset(
            data.DATASET,
            root=data.ROOT,
            split=split,
            is_training=is_training,
            batch_size=data.BATCH if is_training else data.EVAL_BATCH,
            seed=config.TRAIN.SEED,
            input_img_mode=mode,
        )
    except ImportError as error:
        raise DataError(f"DATA.DATASET {data.DATASET} needs a package that is not installed: {error}") from error
    except (OSError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        raise DataError(f"DATA.DATASET {data.DATASET}, root {data.ROOT}, split {split}: {error}") from error
    if isinstance(dataset, IterableDataset):
        return dataset
    items = getattr(dataset, "reader", dataset)
    classes = [str(name) for name in getattr(items, "classes", [])]
    if classes:
        _check_count(config, classes, data.DATASET)
    if not len(items):
        raise DataError(f"DATA.DATASET {data.DATASET}, root {data.ROOT}, split {split}: no images")
    return Source(items, mode, classes)


def _open_folders(config: CfgNode, mode: str, names: tuple[str, ...]) -> list[Source]:
    """Splits of an ImageNet-style folder, all with the class order of the training split where it is there."""
    root = Path(config.DATA.ROOT)
    if not root.is_dir():
        near = difflib.get_close_matches(root.name, [p.name for p in root.parent.glob("*")], 1)
        hint = f"; did you mean {root.parent / near[0]}?" if near else ""
        raise DataError(f"DATA.ROOT {root} does not exist{hint}")
    wanted = {"train": config.DATA.TRAIN_SPLIT, "val": config.DATA.VAL_SPLIT}
    paths = {name: _split_path(root, wanted[name]) for name in names}
    tars = {name: path for name, path in paths.items() if path.suffix == ".tar"}
    if tars:
        return [_open_tar(config, mode, path) for path in paths.values()]

    reference = paths.get("train") or _split_path(root, wanted["train"], required=False) or paths["val"]
    classes = sorted(path.name for path in reference.iterdir() if path.is_dir())
    if not classes:
        raise DataError(f"{reference} has no class folders; expected {reference}/CLASS/IMAGE")
    _check_count(config, classes, str(reference))
    return [_open_folder(path, classes, reference, mode) for path in paths.values()]


def _open_folder(path: Path, classes: list[str], reference: Path, mode: str) -> Source:
    own = {entry.name for entry in path.iterdir() if entry.is_dir()}
    if unknown := sorted(own - set(classes)):
        raise DataError(f"{path} has classes that {reference} has not: {', '.join(unknown[:5])}")
    try:
        reader = create_reader("", root=str(path), class_map={name: index for index, name in enumerate(classes)})
    except RuntimeError:
        raise DataError(f"{path} has no images (of {', '.join(sorted(get_img_extensions()))})") from None
    counts = Counter(target for _, target in reader.samples)
    if empty := [name for index, name in enumerate(classes) if not counts[index]]:
        listing = f"{len(empty)} of {len(classes)} classes have no image in {path}: {', '.join(empty[:5])}"
        if path == reference:
            raise DataError(listing)
        logger.warning("%s", listing)
    return Source(reader, mode, classes)


def _open_tar(config: CfgNode, mode: str, path: Path) -> Source:
    if not path.suffix == ".tar":
        raise DataError(f"{path} is no tar file, but the other split is; use the same form for both")
    try:
        reader = create_reader("", root=str(path))
    except (OSError, RuntimeError, AssertionError) as error:
        raise DataError(f"{path}: {error}") from error
    classes = sorted(reader.class_name_to_idx, key=reader.class_name_to_idx.get)
    _check_count(config, classes, str(path))
    return Source(reader, mode, classes)


def _split_path(root: Path, split: str, required: bool = True) -> Path | None:
    """The folder or tar file of a split, under any of its usual names."""
    synonyms = next((group for group in SPLIT_NAMES if split in group), (split,))
    for name in (split, *synonyms):
        for path in (root / name, root / f"{name}.tar"):
            if path.exists():
                return path
    if not required:
        return None
    there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise DataError(f"DATA.ROOT {root} has no {' or '.join(dict.fromkeys((split, *synonyms)))}; it holds {there}")


def _check_count(config: CfgNode, classes: list[str], where: str) -> None:
    if len(classes) != config.MODEL.NUM_CLASSES:
        raise DataError(f"{where} has {len(classes)} classes, but MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}")
