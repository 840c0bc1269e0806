"""Data of detection and segmentation whose order and augmentation depend on the seed, the epoch and the image alone.

Registered with mmengine; any map-style mmdet or mmseg dataset can be wrapped. A resumed run sees what an uninterrupted
one would have seen, for any number of loader processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader, Dataset

from elsa.core import DataError, UnreadableData, seed_everything

from ..decode import BECAUSE, STORED, TURNED, UnreadableImage, read_header
from ..order import MAX_REPLACEMENTS, BadImages, TrainLoader, TrainSampler
from ..workers import Loader, start, tensor_bytes
from .decoding import check_size, with_our_decoder


def prepare(pipeline: Callable[[Any], Any], entry: Any, path: str) -> Any:
    """``pipeline(entry)`` for the image at ``path``.

    Raises:
        UnreadableImage: it cannot be read, or a step of the pipeline cannot take it, such as OpenCV an image of one
            pixel by thousands.
    """
    try:
        return pipeline(entry)
    except DataError:
        raise
    except Exception as error:  # whatever a step stumbles over; the file is what a user can change
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        told = f"a step of the pipeline fails on it ({type(error).__name__}: {reason})"
        raise UnreadableImage(f"{path}{BECAUSE}{told}") from error


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A training data set with keys (epoch, index): item and augmentation are a function of key and seed.

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

    def get_data_info(self, index: int) -> dict[str, Any]:
        return self.dataset.get_data_info(index)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, first = key
        replaced = []
        for attempt in range(MAX_REPLACEMENTS):
            index = (first + attempt) % len(self)
            seed_everything(self.seed, epoch * len(self) + first, attempt)
            try:
                item = prepare(self.dataset.prepare_data, index, self.dataset.get_data_info(index)["img_path"])
            except UnreadableImage as error:
                replaced.append(str(error))
                continue
            if item is not None:  # None: the crop left no object
                item["data_samples"].set_metainfo({"replaced": tuple(replaced)})
                return item
        listed = f": {', '.join(replaced[:3])}" if replaced else ""
        raise UnreadableData(f"{MAX_REPLACEMENTS} images in a row cannot be used{listed}")


class Orders:
    """Random orders of a SeededDataset, one an epoch, for TrainSampler.

    Args:
        group: images that go together where they are of like orientation, wide or tall, so that a batch needs little
            padding; 1 groups nothing. A group is filled in random order; what remains in the end makes mixed groups.
    """

    def __init__(self, dataset: SeededDataset, seed: int, group: int) -> None:
        self.dataset, self.seed, self.group = dataset, seed, group
        self._tall: list[bool] | None = None

    def __call__(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.dataset), generator=generator).tolist()
        if self.group == 1:
            return order
        if self._tall is None:
            infos = map(self.dataset.get_data_info, range(len(self.dataset)))
            self._tall = [info["width"] < info["height"] for info in infos]
        groups: list[int] = []
        waiting: tuple[list[int], list[int]] = ([], [])  # wide, tall
        for index in order:
            members = waiting[self._tall[index]]
            members.append(index)
            if len(members) == self.group:
                groups += members
                members.clear()
        return [*groups, *waiting[True], *waiting[False]]


def train_loader(
    settings: Mapping[str, Any],
    plan_batch: tuple[int, int],
    seed: int,
    rank: int,
    world_size: int,
    max_bad: int,
    orientation: str = TURNED,
) -> TrainLoader:
    """The training loader of ``train_dataloader``.

    Args:
        settings: ``dataset`` (a SeededDataset's configuration), ``num_workers``, ``persistent_workers`` and
            ``aspect_group``: images of like orientation that go together; None: as many as a global batch.
        plan_batch: the global batch and the micro-batches that each process accumulates.
        max_bad: images that cannot be read after which the run ends.
        orientation: of images whose annotations say nothing else: see DecodeImage.

    Raises:
        DataError: fewer images than a global batch, or one that is no multiple of the groups.
    """
    batch, accum = plan_batch
    dataset = DATASETS.build({**with_our_decoder(settings["dataset"], orientation), "seed": seed})
    if len(dataset) < batch:
        raise DataError(f"{len(dataset)} training images are fewer than a batch of {batch} (global_batch)")
    grouped = "aspect_group" in settings
    group = (settings.get("aspect_group") or batch) if grouped else 1
    if batch % group:
        raise DataError(f"global_batch {batch} is no multiple of train_dataloader.aspect_group {group}")
    place = (rank, world_size, group == 1)  # groups stay together, else neighbours part, as in mmengine
    sampler = TrainSampler(Orders(dataset, seed, group), len(dataset), batch, accum, *place)
    micro = batch // accum // world_size
    options = _worker_options(settings, "train_dataloader", lambda: dataset[0, 0], micro)
    loader = Loader(dataset, batch_sampler=sampler, **options)
    return TrainLoader(loader, sampler, len(dataset), batch, accum, BadImages(max_bad, "max_bad"), replaced)


@dataclass(frozen=True)
class EvalBatch:
    """Images to be evaluated together.

    Attributes:
        data: as mm's models take it; None where no image of the batch can be read.
        places: of the images in the data set; bad: what is said of those that cannot be read.
    """

    data: Mapping[str, Any] | None
    places: tuple[int, ...]
    bad: tuple[str, ...]


class EvalDataset(Dataset):
    """(place, item, what is said of an image that cannot be read) of each image of a data set."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @property
    def metainfo(self) -> dict[str, Any]:
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, place: int) -> tuple[int, Any, str]:
        path = self.dataset.get_data_info(place)["img_path"]
        try:
            return place, prepare(self.dataset.prepare_data, place, path), ""
        except UnreadableImage as error:
            return place, None, str(error)


def collate(items: Sequence[tuple[int, Any, str]]) -> EvalBatch:
    good = [(place, item) for place, item, bad in items if not bad]
    data = pseudo_collate([item for _, item in good]) if good else None
    return EvalBatch(data, tuple(place for place, _ in good), tuple(bad for *_, bad in items if bad))


def eval_loader(settings: Mapping[str, Any], rank: int, world_size: int, orientation: str = TURNED) -> DataLoader:
    """EvalBatch by EvalBatch of this process's share of a split: every ``world_size``-th image."""
    dataset = DATASETS.build(with_our_decoder(settings["dataset"], orientation))
    if not len(dataset):
        raise DataError("the validation split has no images")
    share, images, batch = range(rank, len(dataset), world_size), EvalDataset(dataset), settings.get("batch_size", 1)
    options = {**_worker_options(settings, "test_dataloader", lambda: images[0], batch), "collate_fn": collate}
    return Loader(images, batch, sampler=share, **options)


def _worker_options(settings: Mapping[str, Any], name: str, one: Callable[[], Any], batch: int) -> dict[str, Any]:
    """Of a Loader; ``one`` gives an item like those of its batches."""
    workers, item_bytes = settings.get("num_workers", 0), 0
    if workers:
        with suppress(Exception):  # what is wrong with that image is told where it is met
            item_bytes = tensor_bytes(one())
    return dict(
        batch_bytes=batch * item_bytes,
        setting=f"{name}.num_workers",
        num_workers=workers,
        collate_fn=pseudo_collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=bool(workers and settings.get("persistent_workers")),
    )


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # each worker has a core, not all of them
    start(worker)


def replaced(batch: Mapping[str, Any]) -> list[str]:
    """The images that a micro-batch could not have."""
    return [name for sample in batch["data_samples"] for name in sample.get("replaced", ())]


def find_key(settings: Any, key: str, otherwise: Any) -> Any:
    """The value of a key of any step of a pipeline, the first that is set; ``otherwise`` where none has it."""
    return next(filter(None, _values(settings, key)), otherwise)


def _values(node: Any, key: str) -> Iterator[Any]:
    for name, value in node.items() if isinstance(node, Mapping) else ():
        if name == key:
            yield value
        yield from _values(value, key)
    for value in node if isinstance(node, (list, tuple)) else ():
        yield from _values(value, key)


def check_images(dataset: Any, orientation: str, most: int = 1000) -> None:
    """Looks at ``most`` images spread over the set.

    Raises:
        DataError: images that the annotations list are absent, or of another size, as their headers say.
    """
    infos = [dataset.get_data_info(index) for index in range(0, len(dataset), max(1, len(dataset) // most))]
    absent = [info["img_path"] for info in infos if not Path(info["img_path"]).is_file()]
    if absent:
        raise DataError(
            f"{len(absent)} of {len(infos)} images looked at are listed but absent: {', '.join(absent[:3])}"
        )
    for info in infos:
        try:
            header = read_header(info["img_path"])
        except UnreadableImage:  # counted where it is met
            continue
        found = header.stored if orientation == STORED else header.size
        check_size(info["img_path"], found, (info["width"], info["height"]), orientation)
