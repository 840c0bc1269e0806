"""Where images come from: a folder, a tar file, or one of timm's readers, all checked before any work."""

from __future__ import annotations

import difflib
import os
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from timm.data import create_dataset, create_reader
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from elsa.core import DataError, logger

from ..decode import UnreadableImage, decode
from ..embedded.digits import write_digits
from ..listing import folders_in, image_files

SPLIT_NAMES = (("train", "training"), ("val", "validation", "eval", "evaluation"), ("test", "testing"))
STREAMED = ("wds", "hfids", "tfds")
READ_WHOLE = ("wds", "hfids")  # streams of images as their files are, not yet converted


class FolderImages:
    """``path/CLASS/**/IMAGE`` in the order of ``classes``; items are (path of the image, class index)."""

    def __init__(self, path: Path, classes: list[str]) -> None:
        self.path = path
        self.samples = [
            (str(file), index)
            for index, label in enumerate(classes)
            if (path / label).is_dir()
            for file in image_files(path / label)
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.samples[index]

    def filename(self, index: int, absolute: bool = True) -> str:
        name = self.samples[index][0]
        return name if absolute else os.path.relpath(name, self.path)


class Source:
    """Images of one split with random access.

    Attributes:
        classes: class names in the order of their indices; empty where the reader does not tell.
        files: whether the images are files with names of their own, in a folder or in a tar file.
    """

    def __init__(self, items: Any, mode: str, classes: list[str] | None = None, files: bool = False) -> None:
        self.items, self.mode, self.classes, self.files = items, mode, classes or [], files

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The decoded image and its class index; raises UnreadableImage where it cannot be decoded."""
        try:
            content, target = self.items[index][:2]
        except Exception as error:  # readers decode as well, each in its own way
            raise UnreadableImage(f"{self.name(index)} cannot be read: {error}") from error
        return decode(content, self.mode), int(target)

    def name(self, index: int) -> str:
        """The file's name where there is one."""
        if hasattr(self.items, "filename"):
            return str(self.items.filename(index, absolute=True))
        return f"image {index}"

    def relative_name(self, index: int) -> str:
        """The file's path within the split without its ending, ``CLASS/NAME``, or the image's number."""
        if not self.files:
            return f"{index:08d}"
        return os.path.splitext(os.path.normpath(self.items.filename(index, absolute=False)))[0]


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
    mode = image_mode(config)
    if config.DATA.DATASET in ("folder", "digits"):
        return _open_folders(config, mode, names)
    prefix, slash, _ = config.DATA.DATASET.partition("/")
    if not slash or prefix not in ("torch", "hfds", *STREAMED):
        raise DataError(
            f"DATA.DATASET {config.DATA.DATASET!r} must be folder, digits, or torch/NAME, hfds/NAME, wds/NAME, "
            "hfids/NAME, tfds/NAME"
        )
    return [_open_reader(config, mode, name) for name in names]


def image_mode(config: CfgNode) -> str:
    """What the model sees: colours or grey."""
    return "RGB" if config.MODEL.IN_CHANS == 3 else "L"


def _open_reader(config: CfgNode, mode: str, name: str) -> Source | IterableDataset:
    """A split of one of timm's readers."""
    data, is_training = config.DATA, name == "train"
    prefix = data.DATASET.partition("/")[0]
    split = data.TRAIN_SPLIT if is_training else data.VAL_SPLIT
    try:
        dataset = create_dataset(
            data.DATASET,
            root=data.ROOT,
            split=split,
            is_training=is_training,
            batch_size=data.BATCH if is_training else data.EVAL_BATCH,
            seed=config.TRAIN.SEED,
            input_img_mode="" if prefix in READ_WHOLE else mode,  # decode() sees them with all they say
        )
    except (ImportError, AttributeError) as error:  # AttributeError: a folder named like the package
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
    """Splits of an ImageNet-style folder or of tar files, all with the class order of the training split."""
    root = Path(config.DATA.ROOT)
    check_root(root, "DATA.ROOT")
    paths = [_split_path(root, config.DATA.TRAIN_SPLIT if name == "train" else config.DATA.VAL_SPLIT) for name in names]
    reference = find_split(root, config.DATA.TRAIN_SPLIT) or paths[0]
    for path in paths:
        if path.suffix != reference.suffix:
            raise DataError(f"{reference} and {path}: use folders for both splits, or tar files for both")
    if reference.suffix == ".tar":
        sources = [open_tar(path, mode) for path in paths]
        for source, path in zip(sources, paths, strict=True):
            _check_count(config, source.classes, str(path))
            if source.classes != sources[0].classes:
                odd = sorted(set(source.classes) ^ set(sources[0].classes))
                raise DataError(f"the tar files in {root} have different classes: {', '.join(odd[:5])}")
        return sources

    classes = folders_in(reference)
    if not classes:
        raise DataError(f"{reference} has no class folders; expected {reference}/CLASS/IMAGE")
    _check_count(config, classes, str(reference))
    return [_open_folder(path, classes, reference, mode) for path in paths]


def _open_folder(path: Path, classes: list[str], reference: Path, mode: str) -> Source:
    own = set(folders_in(path))
    if unknown := sorted(own - set(classes)):
        raise DataError(f"{path} has classes that {reference} has not: {', '.join(unknown[:5])}")
    images = FolderImages(path, classes)
    if not len(images):
        raise DataError(f"{path} has no images")
    present = {index for _, index in images.samples}
    if empty := [name for index, name in enumerate(classes) if index not in present]:
        listing = f"{len(empty)} of {len(classes)} classes have no image in {path}: {', '.join(empty[:5])}"
        if path == reference:
            raise DataError(listing)
        logger.warning("%s", listing)
    return Source(images, mode, classes, files=True)


def open_tar(path: Path, mode: str = "RGB") -> Source:
    """Images of a tar file, by class in the order of a folder's (timm's own order is another one).

    Raises:
        DataError: nothing in it can be read.
    """
    try:
        reader = create_reader("", root=str(path))
        classes = sorted(reader.class_name_to_idx)
        reader = create_reader("", root=str(path), class_map={name: index for index, name in enumerate(classes)})
    except (OSError, RuntimeError, AssertionError, ValueError, tarfile.TarError) as error:
        raise DataError(f"{path} has no images that can be read: {error}") from error
    return Source(reader, mode, classes, files=True)


def check_root(root: Path, option: str) -> None:
    """Raises DataError, with the nearest name, where the folder that ``option`` names is not there."""
    if not root.is_dir():
        near = difflib.get_close_matches(root.name, [p.name for p in root.parent.glob("*")], 1)
        hint = f"; did you mean {root.parent / near[0]}?" if near else ""
        raise DataError(f"{option} {root} {'is not a folder' if root.exists() else f'does not exist{hint}'}")


def find_split(root: Path, split: str) -> Path | None:
    """The folder or tar file of a split, under any of its usual names; None where there is none."""
    for name in _split_names(split):
        for path, is_there in ((root / name, Path.is_dir), (root / f"{name}.tar", Path.is_file)):
            with suppress(OSError, ValueError):  # names that no file can have
                if is_there(path):
                    return path
    return None


def _split_path(root: Path, split: str) -> Path:
    if path := find_split(root, split):
        return path
    there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    choices = " or ".join(_split_names(split))
    raise DataError(f"DATA.ROOT {root} has no folder (nor .tar file) {choices}; it holds {there}")


def _split_names(split: str) -> list[str]:
    synonyms = next((group for group in SPLIT_NAMES if split in group), (split,))
    return list(dict.fromkeys((split, *synonyms)))


def _check_count(config: CfgNode, classes: list[str], where: str) -> None:
    if len(classes) != config.MODEL.NUM_CLASSES:
        raise DataError(f"{where} has {len(classes)} classes, but MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}")
