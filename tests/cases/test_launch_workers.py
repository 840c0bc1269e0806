"""Loader processes: signals that are not for them, and their end, in whatever way, told instead of waited for."""

from __future__ import annotations

import fcntl
import os
import signal
import termios
import time
from array import array
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset

from elsa.core import DataError, ProcessLost
from elsa.data import workers
from elsa.data.workers import Loader, tensor_bytes


class Numbers(Dataset):
    """The numbers from 0 on; what ``odd`` gives for one of them is handed over in its place."""

    def __init__(self, odd=None, where: int = 2) -> None:
        self.odd, self.where = odd, where

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        if index == self.where and self.odd is not None:
            return self.odd()
        time.sleep(0.02)
        return torch.tensor(index)


class NoRoom:
    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


def die(number: int = signal.SIGKILL):
    os.kill(os.getpid(), number)


def load(dataset, count: int = 2, **options) -> Loader:
    return Loader(dataset, batch_size=None, num_workers=count, batch_bytes=1, setting="DATA.WORKERS", **options)


def alive(pids) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}") and "Z" not in open(f"/proc/{pid}/stat").read()]


def processes(batches) -> list[int]:
    return [process.pid for process in batches.gi_frame.f_locals["batches"]._workers]


def test_they_hear_nobody_but_their_training():
    """Each is sent each request by itself, as a scheduler does to all processes of a job, from its first moment on."""
    batches = iter(load(Numbers()))
    first = next(batches)
    pids = processes(batches)
    sender = os.fork()
    if not sender:  # another process than theirs
        for pid in pids:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
        os._exit(0)
    os.waitpid(sender, 0)
    assert [int(number) for number in (first, *batches)] == list(range(8))
    assert alive(pids) == [], "they end with the work"

    batches = iter(load(Numbers()))
    next(batches)
    pids = processes(batches)
    os.kill(pids[0], signal.SIGTERM)  # as multiprocessing does for what is left at the end
    deadline = time.monotonic() + 5
    while pids[0] in alive(pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert pids[0] not in alive(pids)
    assert alive(pids) == pids[1:]


def test_the_training_keeps_its_own_handlers():
    before = [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM)]
    assert len(list(load(Numbers()))) == 8
    assert [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGTERM)] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & workers.REQUESTS


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (die, ["was killed (SIGKILL)", "memory for 1 of them", "DATA.WORKERS"]),
        (lambda: die(signal.SIGBUS), ["could not hand over a batch", "/dev/shm has", "DATA.WORKERS=0", "--shm-size"]),
        (NoRoom, ["could not hand over a batch", "/dev/shm has", "DATA.WORKERS=0", "--shm-size"]),
    ],
)
def test_one_that_is_lost_is_named_within_seconds(odd, said):
    began = time.monotonic()
    with pytest.raises(ProcessLost) as told:
        list(load(Numbers(odd), 1))
    assert time.monotonic() - began < 15
    for part in said:
        assert part in str(told.value)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.parametrize("count", [1, 2])
def test_one_that_is_lost_while_it_sends_is_named_within_seconds(method, count):
    much = bytes(2**22)  # more than a pipe holds: while nobody reads it, its sender is in the middle of it
    loader = load([much] * 8, count)
    loader.multiprocessing_context = method
    batches = iter(loader)
    own = batches.gi_frame.f_locals["batches"]
    deadline = time.monotonic() + 60
    while arrived(own) < 2**14 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert arrived(own) >= 2**14  # a part of it
    sender = own._workers[0]
    os.kill(sender.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ProcessLost, match=r"was killed \(SIGKILL\)"):
        next(batches)
    assert time.monotonic() - began < 15
    assert alive([process.pid for process in own._workers]) == []


def arrived(batches) -> int:
    """Bytes that wait in the pipe from the loader processes."""
    count = array("i", [0])
    fcntl.ioctl(batches._worker_result_queue._reader.fileno(), termios.FIONREAD, count)
    return count[0]


def test_one_that_is_lost_with_a_lock_in_its_hands_is_named_within_seconds():
    batches = iter(load(Numbers()))
    assert int(next(batches)) == 0
    own = batches.gi_frame.f_locals["batches"]
    own._workers_done_event._cond.acquire()  # by nobody who could release it
    os.kill(processes(batches)[1], signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ProcessLost, match=r"was killed \(SIGKILL\)"):
        list(batches)
    assert time.monotonic() - began < 15


def test_a_loss_between_epochs_is_told_with_the_next():
    loader = load(Numbers(), persistent_workers=True)
    assert len(list(loader)) == 8
    own = loader._iterator
    own._workers_done_event._cond.acquire()
    os.kill(own._workers[0].pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ProcessLost, match=r"was killed \(SIGKILL\)"):
        list(loader)
    assert time.monotonic() - began < 15
    assert alive([process.pid for process in own._workers]) == []


def test_a_loss_between_batches_is_told_with_the_next():
    batches = iter(load(Numbers()))
    assert int(next(batches)) == 0
    os.kill(processes(batches)[1], signal.SIGKILL)
    time.sleep(1.0)  # the training computes; other processes of its may end meanwhile
    with pytest.raises(ProcessLost, match=r"was killed \(SIGKILL\)"):
        list(batches)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_room_is_looked_at_before_work(monkeypatch):
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    options = dict(batch_size=None, setting="DATA.WORKERS", batch_bytes=10 * 2**20)
    for count in (0, 3):  # 60 of 64 MB
        Loader(Numbers(), num_workers=count, **options)
    with pytest.raises(DataError, match=r"64 MB free, but 4 loader processes load 8 batches of 10 MB ahead; DATA.WORK"):
        Loader(Numbers(), num_workers=4, **options)


def test_tensors_are_counted_wherever_they_are():
    item = {"inputs": torch.zeros(3, 5, dtype=torch.uint8), "more": [SimpleNamespace(mask=torch.zeros(4)), "text"]}
    assert tensor_bytes(item) == 15 + 16
