"""Loader processes, the same for all tasks in training and in evaluation.

They outlive the signals that ask a training to stop, since the step under way needs them; and one that is lost, for
want of memory most often, is named instead of waited for.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import pickle
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from elsa.core import DataError, ProcessLost

SHARED = Path("/dev/shm")  # where loader processes put their batches
NOT_HANDED_OVER = 75  # exit code of one that could not
MB = 2**20
LOOK, AGAIN = 5.0, 0.2  # seconds
END = object()
REQUESTS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class Loader(DataLoader):
    """A DataLoader whose processes heed no signals but the training process's, with an end where one is lost.

    Args:
        batch_bytes: of a batch's tensors, as far as known.
        setting: the name of ``num_workers`` for people.

    Raises:
        DataError: /dev/shm has no room for the batches that are loaded ahead.
        ProcessLost: from iterating, where a loader process has ended.
    """

    def __init__(self, *arguments: Any, batch_bytes: int, setting: str, **options: Any) -> None:
        super().__init__(*arguments, **{"worker_init_fn": start, **options})
        self.setting = setting
        ahead = self.num_workers * (self.prefetch_factor or 0)
        if ahead and SHARED.is_dir() and (free := shutil.disk_usage(SHARED).free) < ahead * batch_bytes:
            raise DataError(
                f"{SHARED} has {free / MB:.3g} MB free, but {self.num_workers} loader processes load {ahead} batches "
                f"of {batch_bytes / MB:.3g} MB ahead; {self._cure()}"
            )

    def _cure(self) -> str:
        return f"{self.setting}=0 does without, or give it more room (docker run --shm-size=8g)"

    def __iter__(self) -> Iterator[Any]:
        context = self.multiprocessing_context or multiprocessing
        if self.num_workers and context.get_start_method() != "fork":
            resource_tracker.ensure_running()  # as it begins, it unblocks what is held back below
        watch = _Watch(self._iterator)
        try:
            with watch.waiting(), _held_back():
                batches = super().__iter__()
        except FAULTS as error:  # of processes that stay from epoch to epoch, or that begin
            self._raise_lost(self._iterator, error)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ProcessLost(f"loader processes cannot be started ({self.setting}): {reason}") from error
        finally:
            watch.close()
        return self._watched(batches)

    def _watched(self, batches: Any) -> Iterator[Any]:
        watch = _Watch(batches)
        try:
            while True:
                with watch.waiting():
                    batch = next(batches, END)
                if batch is END:
                    return
                yield batch
        except FAULTS as error:
            self._raise_lost(batches, error)
            raise
        finally:
            watch.close()

    def _raise_lost(self, batches: Any, error: BaseException) -> None:
        """Raises ProcessLost where a loader process has ended."""
        processes = {process.sentinel: process for process in getattr(batches, "_workers", ())}
        for ended in multiprocessing.connection.wait(processes, timeout=1.0):
            if code := _exit_code(processes[ended]):
                self._iterator = None  # of processes that stay from epoch to epoch
                _abandon(batches)
                raise ProcessLost(self._epitaph(code)) from error

    def _epitaph(self, code: int) -> str:
        if code in (NOT_HANDED_OVER, -signal.SIGBUS):
            free = shutil.disk_usage(SHARED).free / MB
            return f"a loader process could not hand over a batch: {SHARED} has {free:.3g} MB free; {self._cure()}"
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with code {code}"
        return f"a loader process {how}: is there memory for {self.num_workers} of them ({self.setting})?"


def _exit_code(process: Any) -> int | None:
    """Of a process that has ended. Where two threads ask, one may learn it a moment after the other."""
    for _ in range(100):
        if process.exitcode is not None:
            break
        time.sleep(0.01)
    return process.exitcode


class _Lost(BaseException):
    """A loader process has ended while something was waited for. torch, which handles every Exception where it waits,
    has no part in it."""


FAULTS = (RuntimeError, EOFError, OSError, _Lost)


class _Watch:
    """Notices the loss of a loader process, and ends the wait for what it would have sent.

    One that is killed while it sends leaves a message without an end, or a lock that nobody will release. torch looks
    after its processes while nothing arrives; in the middle of a message and at a lock it would wait for ever.
    """

    def __init__(self, batches: Any) -> None:
        processes = getattr(batches, "_workers", ())
        self.lost = self.waits = False
        self._before = signal.getsignal(signal.SIGCHLD)
        self._ended, self._end = multiprocessing.Pipe(duplex=False)
        self._thread = threading.Thread(target=self._look, args=(processes,), daemon=True)
        # Only in the main thread can a signal end a wait.
        self._looks = bool(processes) and threading.current_thread() is threading.main_thread()
        if self._looks:
            self._thread.start()

    def _look(self, processes: Sequence[Any]) -> None:
        left = {process.sentinel: process for process in processes}
        while left:
            for ended in multiprocessing.connection.wait([*left, self._ended]):
                if ended is self._ended:
                    return
                self.lost = self.lost or bool(_exit_code(left.pop(ended)))
            while self.lost:
                if self.waits:  # a signal may come in the moment before it waits: hence again and again
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGCHLD)
                if self._ended.poll(AGAIN):
                    return

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In here a loss raises _Lost, also one that was noticed before."""
        if not self._looks:
            yield
            return
        signal.signal(signal.SIGCHLD, self._interrupt)
        self.waits = True
        self._interrupt()
        try:
            yield
        finally:
            self.waits = False

    def _interrupt(self, *_: object) -> None:
        if self.waits and self.lost:
            self.waits = False
            raise _Lost("a loader process was lost")

    def close(self) -> None:
        self.waits = False
        self._end.close()  # which the thread notices
        if self._looks:
            self._thread.join(1.0)
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, signal.SIG_DFL if self._before is None else self._before)


def _abandon(batches: Any) -> None:
    """Ends the loader processes that are left. torch's own way waits for threads, locks and queues that a lost one may
    have held."""
    for process in batches._workers:
        process.kill()
        process.join(1.0)
    for queue in batches._index_queues:
        queue.cancel_join_thread()
    batches._shutdown = True
    if batches._worker_pids_set:
        signal_handling._remove_worker_pids(id(batches))
        batches._worker_pids_set = False


@contextmanager
def _held_back() -> Iterator[None]:
    """Processes that are started here are born with the requests blocked.

    torch's handler of SIGCHLD, which raises wherever the training process is, is not kept: a loss is noticed where a
    batch is waited for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGCHLD)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def start(_worker: int) -> None:
    """In a loader process: only its training process may end it, and what it cannot hand over ends it too.

    What it was born with is nothing to the garbage collector, which would write to every object, and so copy it.
    """
    gc.freeze()
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    threading.Thread(target=_heed, daemon=True).start()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_not_handed_over)


def _heed() -> None:
    """Ends this process when its training process says so, or is no more."""
    training = multiprocessing.parent_process()  # os.getppid() may be that of a server which forks loader processes
    while training.is_alive():
        request = signal.sigtimedwait(REQUESTS, LOOK)
        if request is not None and request.si_pid == training.pid:
            break
    os._exit(0)


def _not_handed_over(error: BaseException, _batch: object) -> None:
    """Python would drop the batch, and the training process wait for it for ever."""
    print(f"a loader process: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
    os._exit(NOT_HANDED_OVER)


def tensor_bytes(item: Any) -> int:
    """What the tensors of anything that can be pickled take, of one shared by several once each time."""
    counter = _Counter(io.BytesIO())
    counter.dump(item)
    return counter.bytes


class _Counter(pickle.Pickler):
    bytes = 0

    def reducer_override(self, thing: Any) -> Any:
        if not isinstance(thing, Tensor):
            return NotImplemented
        self.bytes += thing.numel() * thing.element_size()
        return int, ()
