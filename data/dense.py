"""Data of detection and segmentation whose order and augmentation depend on the seed, the epoch and the image alone.

Registered with mmengine; any map-style mmdet or mmseg dataset can be wrapped. A resumed run sees what an uninterrupted
one would have seen, for any number of loader processes.
"""

from __future__ import annotations

import itertools
import math
import random
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from PIL import Image
from torch.utils.data import Dataset, Sampler

from .sources import UNREADABLE, DataError

MAX_REPLACEMENTS = 50  # consecutive images that cannot be used after which the data set is given up


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A training data set whose keys are ``epoch · len + index``: item and augmentation are a function of key and seed.

    An image that cannot be decoded is replaced by the next one and named in ``data_samples.replaced`` of the item, so
    that the training process counts it whichever loader process met it.

    Args:
        dataset: configuration of the data set to wrap.
        seed: of the augmentation.
    """

    def __init__(self, dataset: Mapping[str, Any], seed: int = 0) -> None:
        self.dataset, self.seed = DATASETS.build(dataset), seed
        self.full_init()

    def full_init(self) -> None:
        self.dataset.full_init()

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def get_data_info(self, key: int) -> dict[str, Any]:
        """The annotation of an item, for samplers that group by aspect ratio."""
        return self.dataset.get_data_info(key % len(self))

    def __getitem__(self, key: int) -> dict[str, Any]:
        replaced = []
        for attempt in range(MAX_REPLACEMENTS):
            index = (key + attempt) % len(self)
            seed = zlib.crc32(repr((self.seed, key, attempt)).encode())
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            try:
                item = self.dataset.prepare_data(index)
            except (*UNREADABLE, AssertionError, AttributeError) as error:
                path = self.get_data_info(index)["img_path"]
                if _is_readable(path):
                    raise
                replaced.append(f"{path} ({error})")
                continue
            if item is not None:  # None: the crop left no object
                item["data_samples"].set_metainfo({"replaced": tuple(replaced)})
                return item
        listed = f": {', '.join(replaced[:3])}" if replaced else ""
        raise DataError(f"{MAX_REPLACEMENTS} images in a row cannot be used{listed}")


def _is_readable(path: str) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except UNREADABLE:
        return False
    return True


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """This process's share of a SeededDataset in the random order of an epoch, as keys ``epoch · len + index``.

    With the same global batch the order of samples is the same for any number of processes; the last samples are
    repeated from the first so that every process has as many.
    """

    def __init__(self, dataset: SeededDataset, seed: int | None = None) -> None:
        self.dataset, self.seed, self.epoch = dataset, seed or 0, 0
        self.rank, self.world_size = get_dist_info()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.world_size)

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch))
        every = itertools.islice(itertools.cycle(order.tolist()), len(self) * self.world_size)
        for index in itertools.islice(every, self.rank, None, self.world_size):
            yield self.epoch * count + index


@DATA_SAMPLERS.register_module()
class ResumableBatches(Sampler):
    """Batches of another batch sampler, from batch ``first`` on in the next epoch that is iterated.

    Args:
        sampler, batch_size: as mmengine passes them.
        batches: configuration of the batch sampler, e.g. mmdet's AspectRatioBatchSampler; None for plain batches.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, batches: Mapping[str, Any] | None = None) -> None:
        arguments = dict(sampler=sampler, batch_size=batch_size, drop_last=True)
        self.inner = DATA_SAMPLERS.build({"type": "BatchSampler", **(batches or {}), **arguments})
        self.sampler, self.batch_size, self.first = sampler, batch_size, 0
        if not len(self.inner):
            raise DataError(f"{len(sampler)} training images per process are fewer than a batch of {batch_size}")

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[list[int]]:
        first, self.first = self.first, 0
        yield from itertools.islice(self.inner, first, None)


def check_images_exist(dataset: Any, most: int = 1000) -> None:
    """Raises DataError where images that the annotations list are absent; looks at ``most`` spread over the set."""
    infos = [dataset.get_data_info(index) for index in range(0, len(dataset), max(1, len(dataset) // most))]
    absent = [info["img_path"] for info in infos if not Path(info["img_path"]).is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(infos)} images looked at are listed but absent: {', '.join(absent[:3])}"
        )
