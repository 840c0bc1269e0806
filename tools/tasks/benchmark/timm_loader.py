"""timm's own loader on the same files with the same augmentation, to be measured beside ours."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

from timm.data import ImageDataset, create_dataset, create_loader
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from elsa.core import DataError
from elsa.data import TrainLoader
from elsa.data.images.folders import FolderImages
from elsa.data.images.loaders import TrainImages
from elsa.data.images.shards import ShardImages
from elsa.data.images.transforms import augmentation


def timm_loader(config: Any, batches: TrainLoader) -> Callable[[int], DataLoader] | None:
    """Number of processes → timm's loader; None where timm has none for such data."""
    source = getattr(batches.loader.dataset, "source", None)
    items, size = getattr(source, "items", None), len(next(iter(batches.sampler)))
    if isinstance(items, FolderImages):
        return lambda workers: _loader(config, ImageDataset(str(items.root)), size, workers)
    if isinstance(items, ShardImages):
        data = config.DATA
        keys = dict(root=data.ROOT, split=data.TRAIN_SPLIT, is_training=True, batch_size=size, seed=config.TRAIN.SEED)
        return lambda workers: _loader(config, create_dataset(data.DATASET, **keys), size, workers)
    return None


def compare_decoding(batches: TrainLoader, seconds: float) -> dict[str, float] | None:
    """Milliseconds of CPU time from a file to pixels, by our data set and by timm's, image by image in turns, the
    median; None where timm has no data set of such files.

    The clock stands still while other programs run, and each starts with files that the other had not just read.
    """
    dataset = batches.loader.dataset
    source = getattr(dataset, "source", None)
    if not isinstance(getattr(source, "items", None), FolderImages):
        return None
    ours, theirs = TrainImages(source, _small, 0), ImageDataset(str(source.items.root), transform=_small)
    calls = {"elsa": lambda index: ours[0, index], "timm": lambda index: theirs[index]}
    spent: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for index in itertools.count():
        for place, (name, call) in enumerate(sorted(calls.items(), reverse=bool(index % 2))):
            start = time.process_time()
            with contextlib.suppress(DataError, OSError):  # images that cannot be read
                call((index + place * len(source) // 2) % len(source))
            spent[name].append(1e3 * (time.process_time() - start))
        if time.perf_counter() - began > seconds and index > 0:
            return {name: statistics.median(times) for name, times in spent.items()}
    raise AssertionError("unreachable")


def _small(image: Any) -> Any:
    return image.resize((8, 8), 0)  # reads few pixels


def _loader(config: CfgNode, dataset: Any, batch: int, workers: int) -> DataLoader:
    return create_loader(
        dataset, batch_size=batch, num_workers=workers, persistent_workers=False, **augmentation(config)
    )
