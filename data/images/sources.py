"""Where images come from: a folder, a tar file, a list, or one of timm's readers, all checked before any work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset
from yacs.config import CfgNode

from elsa.core import ConfigError, DataError

from ..decode import BECAUSE, UnreadableImage, decode
from ..embedded.digits import write_digits
from .folders import open_folders
from .lists import open_lists
from .readers import PREFIXES, check_label, open_reader
from .shards import ShardImages


class Source:
    """Images of one split with random access.

    Attributes:
        classes: class names in the order of their indices; empty where the reader does not tell.
        files: whether the images are files with names of their own, in a folder or in tar files.
        order_is_open: whether a checkpoint that names no classes may mean another order than ``classes``.
        count: labels there may be; 0 where that is known to be right.
    """

    def __init__(
        self,
        items: Any,
        mode: str,
        classes: list[str] | None = None,
        files: bool = False,
        order_is_open: bool = False,
        count: int = 0,
    ) -> None:
        self.items, self.mode, self.classes, self.files = items, mode, classes or [], files
        self.order_is_open, self.count = order_is_open, count

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """The decoded image and its class index.

        Raises:
            UnreadableImage: it cannot be decoded.
            DataError: it has a label that the model has not.
        """
        try:
            content, target = self.items[index][:2]
        except Exception as error:  # readers decode as well, each in its own way
            raise UnreadableImage(f"{self.name(index)}{BECAUSE}{error}") from error
        if self.count:
            check_label(target, self.count, self.name(index))
        try:
            return decode(content, self.mode), int(target)
        except UnreadableImage as error:
            raise UnreadableImage(f"{self.name(index)}{BECAUSE}{error.reason}") from error

    def order(self, generator: torch.Generator) -> Tensor:
        """Positions in a random order, each once: the images' own way of it where they have one."""
        own = getattr(self.items, "order", None)
        return own(generator) if own else torch.randperm(len(self), generator=generator)

    def labels(self) -> np.ndarray | None:
        """The class index of each image, (N,), without reading images; None where the reader does not tell."""
        found = getattr(self.items, "labels", getattr(self.items, "targets", None))
        if found is None and hasattr(self.items, "iter_targets"):
            found = list(self.items.iter_targets())
        return None if found is None else np.asarray(getattr(found, "array", found), dtype=np.int64)

    def path(self, index: int) -> str | None:
        """The file's path where there is one."""
        named = self.items.filename(index, absolute=True) if hasattr(self.items, "filename") else None
        return str(named) if named else None

    def name(self, index: int) -> str:
        """What messages call the image: its path where there is one."""
        return self.path(index) or f"image {index}"

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
        except FileExistsError as error:
            raise DataError(
                f"DATA.ROOT {config.DATA.ROOT} holds other data than DATA.DATASET digits, which is written to a new or "
                "empty folder; for data of your own set DATA.DATASET=folder"
            ) from error
        except OSError as error:
            raise DataError(f"DATA.ROOT {config.DATA.ROOT}: {error}") from error
    data, mode, count = config.DATA, image_mode(config), config.MODEL.NUM_CLASSES
    prefix, slash, _ = data.DATASET.partition("/")
    if data.DATASET in ("folder", "digits"):
        for key in ("IMAGE_KEY", "LABEL_KEY"):
            if data[key]:
                raise ConfigError(f"DATA.{key} {data[key]} has no effect with DATA.DATASET {data.DATASET}: write ''")
        opened = open_folders(Path(data.ROOT), data.TRAIN_SPLIT, data.VAL_SPLIT, names, data.CLASSES, count)
        return [Source(items, mode, classes.names, True, classes.open) for items, classes in opened]
    if data.DATASET == "list":
        lists = {"train": data.TRAIN_SPLIT, "val": data.VAL_SPLIT}
        keys = data.IMAGE_KEY, data.LABEL_KEY
        found = open_lists(Path(data.ROOT), lists, names, data.CLASSES, count, *keys)
        return [Source(items, mode, classes.names, True, classes.open) for items, classes in found]
    if not slash or prefix not in PREFIXES:
        raise DataError(
            f"DATA.DATASET {data.DATASET!r} must be folder, list, digits, or torch/NAME, hfds/NAME, wds/NAME, "
            "hfids/NAME, tfds/NAME"
        )
    if data.CLASSES:
        raise ConfigError(
            f"DATA.CLASSES {data.CLASSES} has no effect with DATA.DATASET {data.DATASET}, which numbers its classes "
            "itself: write ''"
        )
    sources: list[Source | IterableDataset] = []
    for name in names:
        dataset = open_reader(config, mode, name)
        if isinstance(dataset, IterableDataset):
            sources.append(dataset)
        else:
            items, classes = dataset
            sources.append(Source(items, mode, classes, isinstance(items, ShardImages), count=count))
    return sources


def image_mode(config: CfgNode) -> str:
    """What the model sees: colours or grey."""
    return "RGB" if config.MODEL.IN_CHANS == 3 else "L"
