"""The order of training samples, for all tasks: a function of the seed and the epoch alone.

Neither the number of loader processes nor an interruption changes what a step sees, and with the same global batch
neither does the number of training processes nor of accumulated micro-batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from elsa.core import DataError, UnreadableData, logger, mix_seed

from .decode import BECAUSE

MAX_REPLACEMENTS = 50  # consecutive images that cannot be used after which the data set is given up
Order = Callable[[int], Sequence[int] | Tensor]
"""epoch → positions in the data set, in the order of that epoch."""


class BadImages:
    """Unreadable images; more than ``limit`` of them, over all processes, end the run.

    Attributes:
        names: {name: reason} of those met by this process, and after ``merge`` by any.
        untold: how many were met since the processes last told each other.
    """

    def __init__(self, limit: int, option: str) -> None:
        self.limit, self.option, self.untold = limit, option, 0
        self.names: dict[str, str] = {}

    def add(self, told: Sequence[str]) -> None:
        """Notes what an UnreadableImage said, once of each image."""
        for text in told:
            name, _, reason = text.partition(BECAUSE)
            if name not in self.names:
                self.names[name] = reason
                self.untold += 1
                logger.warning("skipping %s", text)

    def merge(self, everyone: Iterable[Mapping[str, str]]) -> None:
        """Takes in the names that each process met.

        Raises:
            UnreadableData: together they are too many.
        """
        for names in everyone:
            self.names = {**names, **self.names}
        self.untold = 0
        if self.too_many():
            rows = sorted(self.names.items())[:5]
            listed = ", ".join(f"{name} ({reason})" if reason else name for name, reason in rows)
            raise UnreadableData(f"{len(self.names)} images cannot be read ({self.option} is {self.limit}): {listed}")

    def too_many(self) -> bool:
        return len(self.names) > self.limit


def divide_batch(
    batch: int,
    processes: int,
    accumulate: int | None,
    name: str,
    accumulate_name: str,
    rule: str = "",
    pairs: bool = False,
) -> int:
    """Images that one process holds at a time; with ``accumulate`` None all of its share.

    Args:
        rule: the key that lets another batch be taken, for the message.
        pairs: whether the images of a micro-batch are paired, so that their number must be even.

    Raises:
        DataError: the global batch cannot be divided so; the message has the keys' names, and what does divide it.
    """
    parts = processes * (accumulate or 1)
    micro, rest = divmod(batch, parts)
    if not rest and micro and not (pairs and micro % 2):
        return micro
    shares = f"{processes} processes" + (f" × {accumulate_name} {accumulate} = {parts}" if accumulate else "")
    pair = " that each hold an even number of images, which mixup, cutmix or mix-token pairs" if pairs else ""
    unit = (accumulate or 1) * (2 if pairs else 1)
    counts = [count for count in range(1, batch // unit + 1) if batch % (count * unit) == 0]
    near = sorted(sorted(counts, key=lambda count: abs(count - processes))[:6])
    cure = (
        f"it can be divided among {', '.join(map(str, near))} processes"
        if near
        else "no number of processes can share it so"
    )
    if rule:
        cure += f"; {rule}=linear or sqrt takes the nearest batch that can be, and rescales the learning rate"
    raise DataError(
        f"{name} {batch} is no multiple of {shares}{pair}; the recipe's learning rate belongs to it: {cure}"
    )


class TrainSampler(Sampler):
    """Micro-batches of (epoch, index) for one process: an order per epoch, cut into global batches.

    Step s takes entries s·B … (s+1)·B of the order, B the global batch, whatever the number of processes; what remains
    after the last whole batch waits for another epoch.

    Args:
        interleaved: whether neighbours go to different processes, instead of staying together where they can.

    Attributes:
        epoch, first_step: where the next iteration begins.
    """

    def __init__(
        self,
        order: Order,
        length: int,
        batch: int,
        accum: int,
        rank: int,
        world_size: int,
        interleaved: bool = False,
    ) -> None:
        self.order, self.length, self.batch, self.accum, self.interleaved = order, length, batch, accum, interleaved
        self.rank, self.world_size = rank, world_size
        self.epoch, self.first_step = 0, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = torch.as_tensor(self.order(self.epoch))
        for step in range(self.first_step, self.length // self.batch):
            members = order[step * self.batch : (step + 1) * self.batch]
            if self.interleaved:
                mine = members.reshape(self.accum, -1, self.world_size)[:, :, self.rank]
            else:
                mine = members.reshape(self.accum, self.world_size, -1)[:, self.rank]
            for micro_batch in mine:
                yield [(self.epoch, index) for index in micro_batch.tolist()]


class TrainLoader:
    """Micro-batches of each step of an epoch.

    Args:
        loader: of micro-batches; where there is no ``sampler`` of a streaming data set, which has ``begin``,
            ``begin_again`` and ``seed``.
        bad_of: what is said of the unreadable images that a micro-batch met.

    Attributes:
        images: of the whole split; steps_per_epoch: optimizer steps; bad: unreadable images.
    """

    def __init__(
        self,
        loader: DataLoader,
        sampler: TrainSampler | None,
        images: int,
        batch: int,
        accum: int,
        bad: BadImages,
        bad_of: Callable[[Any], Sequence[str]] = lambda batch: batch.bad,
    ) -> None:
        self.loader, self.sampler, self.bad, self.bad_of = loader, sampler, bad, bad_of
        self.images, self.steps_per_epoch, self.accum = images, images // batch, accum

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Any]]:
        """The micro-batches of the steps of an epoch, from ``first_step`` on."""
        if self.sampler is not None:
            self.sampler.epoch, self.sampler.first_step = epoch, first_step
            batches = iter(self.loader)
        else:
            self.loader.dataset.begin(epoch, first_step * self.accum)
            self.loader.generator.manual_seed(mix_seed(self.loader.dataset.seed, epoch))
            batches = itertools.islice(self._stream(), first_step * self.accum, self.steps_per_epoch * self.accum)
        while step := list(itertools.islice(batches, self.accum)):
            for batch in step:
                self.bad.add(self.bad_of(batch))
            yield step

    def _stream(self) -> Iterator[Any]:
        """The micro-batches of a stream, which begins again where it ends too early."""
        while True:
            count = 0
            for batch in self.loader:
                count += 1
                yield batch
            self.loader.dataset.begin_again(count)
            if not count:
                raise DataError(
                    f"the training images of this process give no batch of {self.loader.batch_size}: they cannot be "
                    "read, or are too few for its loader processes (DATA.WORKERS)"
                )
