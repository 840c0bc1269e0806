"""Names of a million images in flat memory, which loader processes share."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CODE = ("utf-8", "surrogateescape")  # any file name, and back


class Texts(Sequence[str]):
    """Texts in two tensors instead of as many objects.

    Python counts the references to an object in the object itself: of a list, every loader process that reads it gets
    copies of its own, page by page, hundreds of megabytes over an epoch. The pages of tensors stay common to processes
    that are forked, and spawned ones receive them by shared memory.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        content, ends = bytearray(), array("q", [0])
        for text in texts:
            content += text.encode(*_CODE)
            ends.append(len(content))
        self._hold(torch.from_numpy(np.frombuffer(content, np.uint8)), torch.from_numpy(np.frombuffer(ends, np.int64)))

    def _hold(self, content: Tensor, ends: Tensor) -> None:
        self._parts = content, ends  # a process that is spawned reads them for as long as they are kept here
        self._content, self._ends = content.numpy(), ends.numpy()

    @classmethod
    def of(cls, content: Tensor, ends: Tensor) -> Texts:
        """Those that ``parts`` gave."""
        texts = cls.__new__(cls)
        texts._hold(content, ends)
        return texts

    def parts(self) -> tuple[Tensor, Tensor]:
        """All texts in UTF-8, one after the other, (bytes,) uint8, and where each ends, after a 0, (N + 1,) int64."""
        return self._parts

    def __reduce__(self) -> tuple[Any, ...]:
        self._hold(*(part.share_memory_() for part in self._parts))
        return Texts.of, self._parts  # tensors, which torch hands to another process as shared memory

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        place = range(len(self))[index]
        return self._content[self._ends[place] : self._ends[place + 1]].tobytes().decode(*_CODE)

    def __iter__(self) -> Iterator[str]:
        content, begin = memoryview(self._content), 0
        for end in self._ends[1:].tolist():
            yield bytes(content[begin:end]).decode(*_CODE)
            begin = end


class Integers(Sequence[int]):
    """Whole numbers likewise. A NumPy array is looked into ten times as fast as a tensor.

    Attributes:
        array: (N,) int32 or int64.
    """

    def __init__(self, values: array | np.ndarray | Tensor) -> None:
        if isinstance(values, array):
            values = np.frombuffer(values, {"i": np.int32, "q": np.int64}[values.typecode])
        self._tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
        self.array = self._tensor.numpy()

    def __reduce__(self) -> tuple[Any, ...]:
        self._tensor.share_memory_()
        self.array = self._tensor.numpy()
        return Integers, (self._tensor,)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: int) -> int:
        return int(self.array[index])
