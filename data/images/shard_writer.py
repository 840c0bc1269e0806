"""Writing WebDataset shards: the images of a split as their files are, in tar files of like size."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from elsa.core import mix_seed, write_then_rename

from ..decode import BECAUSE, UnreadableImage, decode, verify
from ..flat import Texts
from ..listing import endings
from .shards import ShardImages, image_keys, index_shard, open_shards
from .sources import Source

BLOCK = 512  # of a tar file: a header, and what contents are filled up to
LOOKED_AT = 2000  # images whose size is taken for that of all
ENDINGS = {"JPEG": "jpg"}  # timm's names; for other formats their own


@dataclass(frozen=True)
class Shards:
    """A split, cut into shards.

    Attributes:
        split: its name in the info file; name: what the files' names begin with.
        sample_bytes: what a sample takes, on average; per_shard: samples of every shard but the last.
        order: positions in ``source`` as they are written.
        keys: what each image is called in a shard: as its file where that is clear, so that label maps made for
            folders belong to shards too.
    """

    source: Source
    folder: Path
    split: str
    name: str
    sample_bytes: float
    per_shard: int
    order: Tensor
    keys: Texts

    def __len__(self) -> int:
        return -(-len(self.order) // self.per_shard)

    def path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{self.split}-{number:06d}.tar"

    def members(self, number: int) -> list[int]:
        return self.order[number * self.per_shard : (number + 1) * self.per_shard].tolist()

    def write(self, number: int) -> list[str]:
        """Writes a shard, unless it is there; what is said of images that cannot be read, which are left out.

        Raises:
            DataError: what is there is not whole.
        """
        path, bad = self.path(number), list[str]()
        if path.exists():
            there = {os.path.splitext(name)[0] for name in index_shard(path, image_keys(), "").names}
            lacking = [index for index in self.members(number) if self.keys[index] not in there]
            return [f"{self.source.name(index)}{BECAUSE}{path.name} was written without it" for index in lacking]

        def fill(beside: Path) -> None:
            with tarfile.open(beside, "w", format=tarfile.PAX_FORMAT) as archive:
                for index in self.members(number):
                    try:
                        content, ending, label = read_sample(self.source, index)
                    except UnreadableImage as error:
                        bad.append(str(error))
                        continue
                    _add(archive, f"{self.keys[index]}.{ending}", content)
                    _add(archive, f"{self.keys[index]}.cls", str(label).encode())

        write_then_rename(path, fill)
        return bad

    def fingerprint(self) -> str:
        """Of names and order: shards of another one do not go together with these."""
        digest = hashlib.sha256(f"{self.split} {self.per_shard}".encode())
        digest.update(self.order.numpy().tobytes())
        for part in self.keys.parts():
            digest.update(part.numpy().tobytes())
        if (labels := getattr(self.source.items, "labels", None)) is not None:
            digest.update(labels.array.tobytes())
        return digest.hexdigest()[:16]

    def open(self, workers: int) -> ShardImages:
        """What was written.

        Raises:
            DataError: a shard that is not whole.
        """
        paths = [self.path(number) for number in range(len(self))]
        return open_shards(paths, None, image_keys(), "", workers)[0]


def plan_shards(source: Source, folder: Path, split: str, name: str, size: int, seed: int | None) -> Shards:
    """
    Args:
        size: bytes that a shard shall have, about.
        seed: of the order; None: as it is.
    """
    count = len(source)
    generator = torch.Generator().manual_seed(mix_seed(seed or 0, split))
    order = torch.arange(count) if seed is None else torch.randperm(count, generator=generator)
    each = _sample_bytes(source)
    return Shards(source, folder, split, name, each, max(1, round(size / each)), order, Texts(_keys(source)))


def _sample_bytes(source: Source) -> float:
    """What a sample takes in a shard, on average."""
    sizes = []
    for index in range(0, len(source), max(1, len(source) // LOOKED_AT)):
        try:
            content, _, _ = read_sample(source, index, check=False)
        except UnreadableImage:
            continue
        sizes.append(3 * BLOCK + -(-len(content) // BLOCK) * BLOCK)
    return sum(sizes) / len(sizes) if sizes else BLOCK


def read_sample(source: Source, index: int, check: bool = True) -> tuple[bytes, str, int]:
    """An image's bytes, their ending, and its label. What a reader gives as pixels becomes a PNG, which loses nothing.

    Args:
        check: whether all of the image is read.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    try:
        content, label = source.items[index][:2]
        if isinstance(content, Image.Image):
            stream = io.BytesIO()
            decode(content, source.mode).save(stream, "PNG")
            return stream.getvalue(), "png", int(label)
        data = content.read() if hasattr(content, "read") else Path(content).read_bytes()
    except OSError as error:
        raise UnreadableImage(f"{source.name(index)}{BECAUSE}{error.strerror or error}") from error
    if not check:
        return data, "", int(label)
    try:
        form = verify(io.BytesIO(data)).form
    except UnreadableImage as error:
        raise UnreadableImage(f"{source.name(index)}{BECAUSE}{error.reason}") from error
    ending = ENDINGS.get(form, form.lower())
    return (
        data,
        ending if f".{ending}" in endings() else os.path.splitext(source.name(index))[1][1:].lower(),
        int(label),
    )


def _keys(source: Source) -> Iterator[str]:
    """A key ends at the first dot of a name, and is there once."""
    seen: set[str] = set()
    for index in range(len(source)):
        folder, slash, name = source.relative_name(index).lstrip("./").rpartition("/")
        key = folder + slash + name.replace(".", "_")
        if key in seen:
            key = f"{key}_{index:08d}"
        seen.add(key)
        yield key


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
