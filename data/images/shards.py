"""WebDataset shards on a disk, with random access: where each sample lies is noted once, when they are opened.

So shards have what folders have: an order that is a function of seed and epoch, every sample once an epoch for any
number of processes, exact resuming, images known by their names. Only streams from elsewhere lack it.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import zipfile
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data.readers.targets import get_field, has_field
from torch import Tensor

from elsa.core import DataError, logger, write_then_rename

from ..flat import Integers, Texts
from ..listing import endings
from ..survey import silent, survey

WINDOW = 32  # shards whose samples are mixed
SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)")  # key and ending of a file, WebDataset's rule


@dataclass
class Samples:
    """What a shard holds, in its order.

    Attributes:
        names: key and ending of each image; offsets, sizes: where its bytes are; labels: of each.
        left_out: what is said of samples without image or label; unlabelled: how many have a negative label, which
            marks that there is none.
    """

    names: list[str] = field(default_factory=list)
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    labels: array = field(default_factory=lambda: array("i"))
    left_out: list[str] = field(default_factory=list)
    unlabelled: int = 0


class ShardImages:
    """Images of shards by index; items are (bytes, class index).

    Args:
        shards: the files. starts: (shards + 1,), the first sample of each, and how many there are.
        names: key and ending of each image; offsets, sizes, labels: (N,).
    """

    def __init__(
        self,
        shards: Sequence[Path],
        starts: Integers,
        names: Texts,
        offsets: Integers,
        sizes: Integers,
        labels: Integers,
    ) -> None:
        self.shards, self.starts, self.names = list(shards), starts, names
        self.offsets, self.sizes, self.labels = offsets, sizes, labels
        self._files: OrderedDict[int, io.FileIO] = OrderedDict()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        shard = self._shard_of(index)
        if (file := self._files.pop(shard, None)) is None:
            file = io.FileIO(self.shards[shard])
        self._files[shard] = file  # the last one used comes last
        if len(self._files) > 2 * WINDOW:
            self._files.popitem(last=False)[1].close()
        # A process that is forked shares the open file: os.pread moves no position that the others would read on from.
        content = os.pread(file.fileno(), self.sizes[index], self.offsets[index])
        return io.BytesIO(content), self.labels[index]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}

    def _shard_of(self, index: int) -> int:
        return int(np.searchsorted(self.starts.array, index, side="right")) - 1

    def filename(self, index: int, absolute: bool = True) -> str:
        name = self.names[index]
        return f"{self.shards[self._shard_of(index)]}/{name}" if absolute else name

    def order(self, generator: torch.Generator) -> Tensor:
        """Positions, each once, (N,): shards are shuffled, and then the samples of ``WINDOW`` shards at a time.

        So what is read lies in few files at a time, which a disk's or a file server's cache can hold, while no sample
        stays with its neighbours.
        """
        parts = []
        for window in torch.randperm(len(self.shards), generator=generator).split(WINDOW):
            members = torch.cat([torch.arange(self.starts[shard], self.starts[shard + 1]) for shard in window])
            parts.append(members[torch.randperm(len(members), generator=generator)])
        return torch.cat(parts)


def image_keys() -> str:
    """Endings of all images that can be read, as ``open_shards`` takes them."""
    return ";".join(sorted(ending[1:] for ending in endings()))


def open_shards(
    shards: Sequence[Path], index: Path | None, image_key: str, label_key: str, workers: int
) -> tuple[ShardImages, int]:
    """The samples of shards that can be used, and how many there are with those that cannot.

    Args:
        index: what ``write_index`` wrote of them; where it is absent or of other shards, the shards are read through.
        image_key: endings of images, "jpg;png", the first that a sample has counts.
        label_key: the field of a sample's .json that holds the label; "" for the file .cls.
        workers: processes that read.

    Raises:
        DataError: a shard that is no tar file or cut off; no sample with an image and a label.
    """
    if index is not None and index.is_file():
        if images := read_index(index, shards):
            return images, len(images)
        logger.warning("%s is the index of other shards: they are read through", index)
    look = partial(index_shard, image_key=image_key, label_key=label_key)
    looks = [found for _, found in survey(look, list(shards), workers, silent, "shards")]
    left_out = [f"{shard}/{text}" for shard, found in zip(shards, looks, strict=True) for text in found.left_out]
    unlabelled, lengths = sum(found.unlabelled for found in looks), [len(found.names) for found in looks]
    if not sum(lengths):
        why = left_out[0] if left_out else f"{unlabelled} have negative labels"
        raise DataError(f"{shards[0].parent}: no sample of {len(shards)} shards has an image and a label: {why}")
    total = sum(lengths) + len(left_out) + unlabelled
    if left_out:
        logger.warning("%d of %d samples are left out, the first: %s", len(left_out), total, left_out[0])
    if unlabelled:
        logger.info("%d of %d samples have negative labels, and are left out", unlabelled, total)
    offsets, sizes, labels = (
        Integers(np.concatenate([Integers(getattr(found, name)).array for found in looks]))
        for name in ("offsets", "sizes", "labels")
    )
    starts = Integers(np.cumsum([0, *lengths]))
    names = Texts(name for found in looks for name in found.names)
    return ShardImages(shards, starts, names, offsets, sizes, labels), total


def index_shard(path: Path, image_key: str, label_key: str) -> Samples:
    """
    Raises:
        DataError: no tar file, or one that is cut off.
    """
    found, wanted = Samples(), image_key.split(";")
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            end = os.fstat(file.fileno()).st_size
            read = partial(_read, file.fileno())
            for key, files in _samples(archive):
                offset, size = max(files.values())
                if offset + size > end:
                    raise DataError(f"shard {path} is cut off: {end} bytes, {key} needs {offset + size}")
                image = next((ending for ending in wanted if ending in files), None)
                label = _label(files, label_key, read)
                if image is None or isinstance(label, str):
                    found.left_out.append(f"{key}: {label if image else f'no image, but {chr(44).join(files)}'}")
                elif label < 0:
                    found.unlabelled += 1
                else:
                    found.names.append(f"{key}.{image}")
                    found.offsets.append(files[image][0])
                    found.sizes.append(files[image][1])
                    found.labels.append(label)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"shard {path} is no tar file that can be read: {error}") from error
    return found


Files = dict[str, tuple[int, int]]
"""Of a sample: ending → (offset, size)."""


def _samples(archive: tarfile.TarFile) -> Iterator[tuple[str, Files]]:
    """Key and files of each sample: neighbours whose names are alike up to the first dot."""
    key, files = "", Files()
    while (entry := archive.next()) is not None:
        archive.members = []  # or a list of millions grows
        parts = SAMPLE.fullmatch(entry.name) if entry.isreg() else None
        if parts is None:
            continue
        if parts[1] != key and files:
            yield key, files
            files = Files()
        key = parts[1]
        files[parts[2].lower()] = (entry.offset_data, entry.size)
    if files:
        yield key, files


def _read(descriptor: int, place: tuple[int, int]) -> bytes:
    return os.pread(descriptor, place[1], place[0])


def _label(files: Files, key: str, read: Callable[[tuple[int, int]], bytes]) -> int | str:
    """The label, or what is wrong with it."""
    ending = "json" if key else "cls"
    if ending not in files:
        return f"no label, no .{ending}"
    content = read(files[ending])
    try:
        about = json.loads(content)
        if key and not has_field(about, key):
            return f"its .json has no {key}"
        return int(get_field(about, key) if key else about)
    except (ValueError, TypeError) as error:
        return f"its .{ending} holds no label: {content[:40]!r} ({error})"


# ---- the index as a file


COLUMNS = ("starts", "names", "ends", "offsets", "sizes", "labels")


def index_path(folder: Path, split: str) -> Path:
    return folder / f"_index-{split}.npz"


def write_index(path: Path, images: ShardImages) -> None:
    """Writes what ``read_index`` reads: NumPy's arrays, without any object."""
    parts = (Integers(part) for part in images.names.parts())
    columns = (images.starts, *parts, images.offsets, images.sizes, images.labels)
    about = {"shards": np.array([shard.name for shard in images.shards]), "bytes": _bytes_of(images.shards)}

    def save(beside: Path) -> None:
        with beside.open("wb") as file:
            np.savez(file, **about, **{name: column.array for name, column in zip(COLUMNS, columns, strict=True)})

    write_then_rename(path, save)


def read_index(path: Path, shards: Sequence[Path]) -> ShardImages | None:
    """The samples of these shards; None where the index is of others, or of files of other sizes.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            known = dict(zip(content["shards"].tolist(), content["bytes"].tolist(), strict=True))
            own = {shard.name: size for shard, size in zip(shards, _bytes_of(shards).tolist(), strict=True)}
            if known != own or list(known) != [shard.name for shard in shards]:
                return None
            column = {
                name: torch.from_numpy(content[name]) for name in content.files if name not in ("shards", "bytes")
            }
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"index of shards {path} cannot be read: {error}; without it they are read through") from error
    names = Texts.of(column["names"], column["ends"])
    offsets, sizes, labels = (Integers(column[name]) for name in COLUMNS[3:])
    return ShardImages(shards, Integers(column["starts"]), names, offsets, sizes, labels)


def _bytes_of(shards: Sequence[Path]) -> np.ndarray:
    return np.array([shard.stat().st_size for shard in shards], np.int64)
