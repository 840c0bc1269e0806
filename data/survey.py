"""Many looks in several processes."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from elsa.core import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[Iterable[Result], int, str], Iterable[Result]]
"""``progress(results, total, description)`` passes the results on and shows how far they are."""


def silent(results: Iterable[Result], total: int, description: str) -> Iterable[Result]:
    """Shows nothing."""
    return results


def survey(
    look: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    progress: Progress,
    description: str,
    chunk: int = 64,
) -> Iterator[tuple[Item, Result]]:
    """(item, look(item)) for all items, in their order; ``workers`` processes, or none with 0.

    Args:
        chunk: items that a process takes at a time, at most.

    Raises:
        DataError: a process ended before its time.
    """
    if not workers or len(items) < 2:
        yield from zip(items, progress(map(look, items), len(items), description), strict=True)
        return
    # fork, as data loaders do: a worker that imports everything anew would take seconds to start. What looks is born
    # with it, for it may hold the index of a million images.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _prepare, (look,)) as pool:
        results = pool.map(_look, items, chunksize=min(chunk, -(-len(items) // workers)))
        try:
            yield from zip(items, progress(results, len(items), description), strict=True)
        except BrokenProcessPool as error:
            raise DataError(f"{description}: a worker process was killed; is there memory for {workers}?") from error


_of_this_process: Callable = str


def _prepare(look: Callable) -> None:
    global _of_this_process
    _of_this_process = look
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _look(item: Item) -> Result:
    return _of_this_process(item)
