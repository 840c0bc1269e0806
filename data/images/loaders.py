"""Loaders of classification: augmentation is a function of the seed, the epoch and the image (for the order see
``data/order.py``), evaluation counts every image once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate, get_worker_info
from tqdm import tqdm
from yacs.config import CfgNode

from elsa.core import DataError, UnreadableData, logger, mix_seed, seed_everything

from ..decode import UnreadableImage, decode
from ..order import MAX_REPLACEMENTS, BadImages, TrainLoader, TrainSampler, divide_batch
from ..workers import Loader
from .balance import BalancedOrder, training_labels
from .readers import check_label, check_shares
from .sources import Source, image_mode
from .token_labels import LabelMaps, TokenLabels
from .transforms import CROPS, FiveCrops, eval_transform, image_size, train_transform


@dataclass
class Batch:
    """Images (B, C, H, W), class indices (B,), positions in the data set (B,), what is said of unreadable images
    met, and token labels where there are label maps."""

    images: Tensor
    targets: Tensor
    indices: Tensor
    bad: tuple[str, ...] = ()
    tokens: TokenLabels | None = None

    def pin_memory(self) -> Batch:
        tokens = None if self.tokens is None else self.tokens.pin_memory()
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), self.indices, self.bad, tokens)


class TrainImages(Dataset):
    """Augmented images by (epoch, index), with what ``labels`` says of the part shown; an unreadable image is replaced
    by its successor. An index beyond the data set is an image that comes again, index mod N, with other augmentation.

    Args:
        transform: PIL image → tensor, or with ``labels`` tensor and View.
    """

    def __init__(self, source: Source, transform: Callable, seed: int, labels: LabelMaps | None = None) -> None:
        self.source, self.transform, self.seed, self.labels = source, transform, seed, labels

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> tuple:
        epoch, index = key
        seed_everything(self.seed, epoch, index)
        bad = []
        for attempt in range(MAX_REPLACEMENTS):
            position = (index + attempt) % len(self.source)
            try:
                image, target = self.source.load(position)
            except UnreadableImage as error:
                bad.append(str(error))
            else:
                if self.labels is None:
                    return self.transform(image), target, position, tuple(bad)
                pixels, view = self.transform(image)
                return pixels, target, position, tuple(bad), (self.labels.load(position), view)
        raise UnreadableData(f"{MAX_REPLACEMENTS} images in a row cannot be read: {', '.join(bad[:5])} …")


class EvalImages(Dataset):
    """Images by index; an unreadable one gives what is said of it instead."""

    def __init__(self, source: Source, transform: Callable) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, int, tuple[str, ...]]:
        try:
            image, target = self.source.load(index)
        except UnreadableImage as error:
            return None, -1, index, (str(error),)
        return self.transform(image), target, index, ()


class Streamed(IterableDataset):
    """One of timm's streaming readers, in the form of the data sets above.

    Its order comes from the seed of the loader process, hence from the loader's generator; augmentation is a function
    of seed, epoch, process and place in the stream. Unreadable images are left out, by timm's readers or here.

    Args:
        batch: images of a micro-batch; 0 in evaluation, of which the main process reads the whole split, instead of a
            share that may miss or repeat images.

    Attributes:
        skipped: micro-batches that a resumed epoch has behind it: they are read, but not augmented.
    """

    def __init__(self, config: CfgNode, stream: IterableDataset, transform: Callable, batch: int = 0) -> None:
        self.stream, self.transform, self.batch = stream, transform, batch
        self.mode, self.seed, self.classes = image_mode(config), config.TRAIN.SEED, config.MODEL.NUM_CLASSES
        self.name = f"DATA.DATASET {config.DATA.DATASET}"
        self.epoch = self.turn = self.skipped = 0
        if not batch:
            stream.reader.dist_rank, stream.reader.dist_num_replicas = 0, 1

    def begin(self, epoch: int, skipped: int) -> None:
        self.stream.set_epoch(epoch)
        self.epoch, self.turn, self.skipped = epoch, 0, skipped

    def begin_again(self, given: int) -> None:
        """Where the stream ended before its epoch did, after so many micro-batches."""
        self.turn, self.skipped = self.turn + 1, self.skipped - given

    def __iter__(self) -> Iterator[tuple[Tensor | None, int, int, tuple[str, ...]]]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        place = 0
        for image, target in self._samples():
            check_label(target, self.classes, f"an image of {self.name}")
            try:
                pixels = decode(image, self.mode)
            except UnreadableImage as error:
                logger.warning("skipping %s", error)
                continue
            if self.batch:  # loader processes take turns: this is at most the number of its micro-batch
                if place // self.batch * workers + number < self.skipped:
                    place += 1
                    yield None, -1, -1, ()
                    continue
                seed_everything(self.seed, self.epoch, self.turn, self.stream.reader.dist_rank, number, place)
            place += 1
            yield self.transform(pixels), int(target), -1, ()

    def _samples(self) -> Iterator[tuple[Any, Any]]:
        try:
            yield from self.stream
        except Exception as error:  # readers raise whatever the packages below them do
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise DataError(f"{self.name} cannot be read on: {reason}") from error


def count_images(source: Source | IterableDataset) -> int:
    """Images of the whole split; a stream's own length is rounded and counts one process's share."""
    return int(source.reader.num_samples) if isinstance(source, IterableDataset) else len(source)


def collate(samples: list[tuple]) -> Batch:
    """(image or None, class, position, what is said of bad ones) each, and token labels where there are label maps."""
    readable = [row for row in samples if row[0] is not None]
    # In a loader process this fills the memory by which the batch is handed over, without a copy.
    images = default_collate([row[0] for row in readable]) if readable else torch.empty(0)
    targets, indices = (torch.tensor([row[column] for row in readable], dtype=torch.long) for column in (1, 2))
    tokens = TokenLabels.stack([row[4] for row in readable]) if readable and len(readable[0]) > 4 else None
    return Batch(images, targets, indices, tuple(name for row in samples for name in row[3]), tokens)


class EvalLoader:
    """Batches of this process's share of a split; the shares of all processes make up the split exactly once.

    Of a stream the main process reads all; what its reader left out comes last, as unreadable.

    Attributes:
        total: images of the whole split.
        bad: for whoever evaluates to note unreadable images.
    """

    def __init__(self, loader: DataLoader | tuple[()], total: int, bad: BadImages) -> None:
        self.loader, self.total, self.bad = loader, total, bad

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        seen = 0
        for batch in self.loader:
            seen += len(batch.targets)
            yield batch
        if isinstance(getattr(self.loader, "dataset", None), Streamed) and seen < self.total:
            left_out = tuple(
                f"image {number} of those the stream left out" for number in range(1, self.total - seen + 1)
            )
            yield collate([(None, -1, -1, left_out)])

    def with_progress(self) -> Iterator[Batch]:
        """The same with a bar and an ETA on a terminal."""
        return iter(tqdm(self, desc="evaluating", unit="batch", disable=None, leave=False))


def train_loader(config: CfgNode, source: Source | IterableDataset, rank: int, world_size: int) -> TrainLoader:
    """The training loader as DATA and AUG say.

    Raises:
        DataError: fewer images than one global batch, a batch that cannot be divided among the processes, label maps
            (TOKENS.LABELS) that do not belong to the images, or classes that DATA.SAMPLER cannot balance.
    """
    data, accum = config.DATA, config.TRAIN.ACCUM or 1  # a training's plan has set it
    micro = divide_batch(data.BATCH, world_size, accum, "DATA.BATCH", "TRAIN.ACCUM")
    images = count_images(source)
    if images < data.BATCH:
        raise DataError(f"the training split has {images} images, fewer than one batch: DATA.BATCH is {data.BATCH}")
    labels = open_label_maps(config, source)
    shuffled = choose_order(config, source)
    transform = train_transform(config, tracked=labels is not None)
    bad = BadImages(data.MAX_BAD, "DATA.MAX_BAD")
    common = _worker_options(config, micro)
    if shuffled is None:
        # Fresh loader processes each epoch, at least one, so that the order depends on seed and epoch alone.
        common |= dict(num_workers=max(1, data.WORKERS), persistent_workers=False, generator=torch.Generator())
        source.set_loader_cfg(num_workers=common["num_workers"])
        check_shares(source, data.DATASET, common["num_workers"], rank, world_size)
        streamed = Streamed(config, source, transform, micro)
        loader = Loader(streamed, batch_size=micro, drop_last=True, **common)
        return TrainLoader(loader, None, images, data.BATCH, accum, bad)

    def order(epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix_seed(config.TRAIN.SEED, epoch))
        return shuffled(generator)

    sampler = TrainSampler(order, len(source), data.BATCH, accum, rank, world_size)
    loader = Loader(TrainImages(source, transform, config.TRAIN.SEED, labels), batch_sampler=sampler, **common)
    return TrainLoader(loader, sampler, images, data.BATCH, accum, bad)


def choose_order(config: CfgNode, source: Source | IterableDataset) -> Callable[[torch.Generator], Tensor] | None:
    """DATA.SAMPLER: what makes the order of an epoch; None for a stream, which has its own."""
    if config.DATA.SAMPLER == "balanced":
        return BalancedOrder(training_labels(config, source, "SAMPLER"))
    return None if isinstance(source, IterableDataset) else source.order


def open_label_maps(config: CfgNode, source: Source | IterableDataset) -> LabelMaps | None:
    """The label maps of the training images where TOKENS.LABELS names a folder."""
    if not config.TOKENS.LABELS:
        return None
    if isinstance(source, IterableDataset):
        raise DataError(f"TOKENS.LABELS needs random access, which DATA.DATASET {config.DATA.DATASET} has not")
    return LabelMaps(config.TOKENS.LABELS, source, config.MODEL.NUM_CLASSES)


def eval_loader(
    config: CfgNode, source: Source | IterableDataset, rank: int, world_size: int, five_crops: bool = False
) -> EvalLoader:
    """The evaluation loader as DATA and EVAL say: no padding, each image once.

    Args:
        five_crops: see FiveCrops; images are then (B, 5, C, H, W).
    """
    transform = FiveCrops(config) if five_crops else eval_transform(config)
    bad = BadImages(config.DATA.MAX_BAD, "DATA.MAX_BAD")
    batch = config.DATA.EVAL_BATCH
    views = CROPS if five_crops else 1
    common = dict(batch_size=batch, **_worker_options(config, views * min(batch, count_images(source))))
    if isinstance(source, IterableDataset):
        streamed = Streamed(config, source, transform)
        source.set_loader_cfg(num_workers=config.DATA.WORKERS)
        return EvalLoader(Loader(streamed, **common) if rank == 0 else (), count_images(source), bad)
    share = range(rank, len(source), world_size)
    return EvalLoader(Loader(EvalImages(source, transform), sampler=share, **common), len(source), bad)


def _worker_options(config: CfgNode, batch: int) -> dict:
    """Of loader processes that hand over ``batch`` pictures at a time."""
    workers = config.DATA.WORKERS
    return dict(
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        batch_bytes=4 * batch * config.MODEL.IN_CHANS * math.prod(image_size(config)),
        setting="DATA.WORKERS",
        persistent_workers=workers > 0,
    )
