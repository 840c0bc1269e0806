"""Processes: this one among its peers, what they agree on, and what is said when one of them is lost."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from elsa.core import ConfigError, ProcessLost, TrainingError, UserError

from .launcher import Place, read_place, starts
from .watchdog import Watchdog

PATIENCE = 10.0  # minutes without a sign of a process
KNOCK = 7_411  # tag of messages that nobody reads


@dataclass(frozen=True)
class Runtime:
    """This process among its peers: rank, world size and device.

    ``control`` is a process group on the CPU for counts and flags, so that agreeing on them never waits for a GPU;
    in ``store`` a process that ends leaves word why; ``watchdog`` notices one that is silent.

    Raises:
        ProcessLost: from whatever all processes do together, where one of them is not there.
    """

    rank: int
    world_size: int
    device: torch.device
    control: Any = None
    store: Any = None
    watchdog: Watchdog | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum over all processes, in float64."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        with self._all_there():
            dist.all_reduce(tensor, group=self.control)
        return tensor.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        return self.sum([float(flag)])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in the order of ranks."""
        if self.world_size == 1:
            return [value]
        everyone: list[Any] = [None] * self.world_size
        with self._all_there():
            dist.all_gather_object(everyone, value, group=self.control)
        return everyone

    def shared(self, names: list[str]) -> list[str]:
        """The names that every process has, in the main process's order."""
        everyone = self.gather(names)
        return [name for name in everyone[0] if all(name in others for others in everyone)]

    def check_same(self, facts: Mapping[str, Any], cure: str) -> None:
        """Raises ConfigError, in every process, where they do not all have the same facts."""
        everyone = self.gather(dict(facts))
        for rank, others in enumerate(everyone):
            for name, value in everyone[0].items():
                if others[name] != value:
                    what = f"{name}: {_short(value)} in process 0, {_short(others[name])} in process {rank}"
                    raise ConfigError(f"processes see different {what}; {cure}")

    def note(self, doing: str) -> None:
        """Tells the watchdog what this process begins, in the order in which all do: "saving" for one."""
        if self.watchdog is not None:
            self.watchdog.note(doing)

    def pulse(self) -> None:
        """Tells the watchdog that this process goes on with it."""
        if self.watchdog is not None:
            self.watchdog.pulse()

    def advise(self, advice: Callable[[], str]) -> None:
        """What the watchdog says beside the blame."""
        if self.watchdog is not None:
            self.watchdog.advice = advice

    def barrier(self) -> None:
        if self.world_size > 1:
            with self._all_there():
                dist.barrier(group=self.control)

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Gives all processes the main process's buffers: each has its own statistics of batch normalisation."""
        if self.world_size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def in_main(self, work: Callable[[], object]) -> None:
        """The main process does it while the others wait; where it raises UserError or OSError, all do."""
        with self.main_first():
            if self.is_main:
                work()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process runs the body before the others do (to prepare files that all read).

        Raises:
            ConfigError: in the others, where the main process raised UserError or OSError.
        """
        if not self.is_main:
            self._go_on(None)
        try:
            yield
        except (UserError, OSError) as error:
            if self.is_main:
                self._go_on(error)
            raise
        if self.is_main:
            self._go_on(None)

    def _go_on(self, refused: Exception | None) -> None:
        """All learn whether the main process has done what they wait for; the main process raises its own error."""
        told = self.gather(None if refused is None else str(refused))[0]
        if told is not None and refused is None:
            raise ConfigError(f"the main process cannot go on: {told}")

    # ---- a process that is not there -------------------------------------------------------------------------------

    @contextmanager
    def _all_there(self) -> Iterator[None]:
        """Whatever the control group cannot do is because another process is gone or silent."""
        try:
            yield
        except RuntimeError as error:
            self.raise_lost(error)
            raise ProcessLost(f"another process gave no answer ({str(error).splitlines()[0]})") from error

    def raise_lost(self, error: BaseException) -> None:
        """Raises what explains ``error`` where other processes have ended: the mistake that one left word of, else
        ProcessLost."""
        gone = self._gone() if self.world_size > 1 else []
        without_store = 0 in gone and "TORCHELASTIC_USE_AGENT_STORE" not in os.environ  # process 0 held it
        words = {rank: None if without_store else self._word(rank) for rank in gone}
        for rank, word in words.items():
            if word and word["why"]:
                kind = ConfigError if word["mistake"] else ProcessLost
                raise kind(f"process {rank} ended: {word['why']}") from error
        if gone:
            first = [rank for rank, word in words.items() if word is None] or gone  # the others left because of these
            listed = ", ".join(map(str, first[:5])) + ", …" * (len(first) > 5)
            raise ProcessLost(f"lost process {listed} of {self.world_size}: it was killed or crashed") from error

    def _gone(self) -> list[int]:
        """Processes that have closed their connection: nothing can be sent to them, be it ever read or not."""
        knocks, gone = [], []
        for rank in range(self.world_size):
            if rank != self.rank:
                knocks.append(torch.zeros(1))
                try:
                    dist.isend(knocks[-1], rank, group=self.control, tag=KNOCK)
                except RuntimeError:
                    gone.append(rank)
        return gone

    def _word(self, rank: int) -> dict[str, Any] | None:
        """What a process left word of; None where it ended without."""
        key = f"left/{rank}"
        with suppress(RuntimeError):
            if self.store.check([key]):
                return json.loads(self.store.get(key))
        return None

    def leave_word(self, error: BaseException) -> None:
        """Tells the others why this process ends; of another's end there is nothing to tell."""
        lines = [] if isinstance(error, ProcessLost) else str(error).splitlines() or [type(error).__name__]
        word = {"why": "".join(lines[:1]), "mistake": isinstance(error, UserError)}
        with suppress(RuntimeError):
            self.store.set(f"left/{self.rank}", json.dumps(word))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:100]} … ({len(value)} entries)"


@contextmanager
def distributed(device: str = "auto", minutes: float = PATIENCE) -> Iterator[Runtime]:
    """Joins the processes that the launcher started (see ``launcher``), and leaves them.

    Args:
        device: "auto" for a GPU where there is one, "cpu", "cuda", "cuda:N" or "mps".
        minutes: without a sign of a process, after which the others end.

    Raises:
        ConfigError: a device that is not there, or a launcher's variables that do not fit.
        ProcessLost: another process has ended.
    """
    place = read_place()
    where = _choose_device(device, place)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if place.world_size == 1:
        yield Runtime(0, 1, where)
        return
    runtime = _connect(place, where, minutes)
    assert runtime.watchdog is not None
    runtime.watchdog.start()
    try:
        with _ended_alone(runtime):
            yield runtime
    except BaseException as error:
        runtime.leave_word(error)
        raise
    finally:
        runtime.watchdog.stop()
    dist.destroy_process_group()  # not after an error: it would wait for the others


@contextmanager
def _ended_alone(runtime: Runtime) -> Iterator[None]:
    """What fails because another process has ended, a gradient's exchange for one, says so."""
    try:
        yield
    except TrainingError:
        raise
    except RuntimeError as error:
        runtime.raise_lost(error)
        raise


def _await_store(address: str, port: int, seconds: float) -> None:
    """Waits until somebody listens there: torch would take a pause afterwards, and then wait as long again.

    Raises:
        TimeoutError: nobody does.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(f"nobody has listened there for {seconds:.0f} s ({error})") from error
        time.sleep(0.1)


def _connect(place: Place, where: torch.device, minutes: float) -> Runtime:
    """The process groups. They are the more patient ones: the watchdog can name who is silent.

    torchrun's store may outlive the processes: where it has one node, each start has keys of its own. Agents of several
    nodes count their starts apart; ``scripts/train_nodes.sh`` has them make a new store each time.
    """
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    backend, bound = ("nccl", where) if where.type == "cuda" else ("gloo", None)
    rank, world = place.rank, place.world_size
    patience = timedelta(minutes=1 + 2 * minutes)
    try:
        if rank:
            _await_store(address, int(port), patience.total_seconds())
        store, _, _ = next(dist.rendezvous("env://", rank, world, timeout=patience))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            store = dist.PrefixStore(f"start/{starts()}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience, device_id=bound)
        control = dist.new_group(backend="gloo", timeout=patience)
    except (RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        at = f"MASTER_ADDR {address}, MASTER_PORT {port}"
        raise ProcessLost(f"process {rank} of {world} cannot join the others at {at}: {reason}") from error
    return Runtime(rank, world, where, control, store, Watchdog(rank, world, store, minutes))


def _choose_device(device: str, place: Place) -> torch.device:
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if device == "mps":
        return _apple_gpu(place)
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cuda") or not (number or "0").isdigit():
        raise ConfigError(f"--device must be auto, cpu, cuda, cuda:N or mps, got {device!r}")
    count = torch.cuda.device_count()
    if place.world_size > 1 and place.local_rank is None and not number and count > 1:
        raise ConfigError(f"LOCAL_RANK is not set, and {count} GPUs are visible: which is this process's?")
    index = int(number or place.local_rank or 0)
    if "SLURM_GPUS_PER_TASK" in os.environ and count == 1 and not number:
        index = 0  # each task sees its own GPU alone
    if not torch.cuda.is_available() or index >= count:
        wanted = f"--device {device}" if number else f"LOCAL_RANK {place.local_rank or 0}"
        raise ConfigError(f"{wanted} asks for GPU {index}; {count} are visible")
    return torch.device("cuda", index)


def _apple_gpu(place: Place) -> torch.device:
    if not torch.backends.mps.is_available():
        raise ConfigError("--device mps asks for Apple's GPU; torch sees none: --device cpu computes without")
    if place.world_size > 1:
        raise ConfigError(
            f"--device mps is for one process, not for {place.world_size}, which cannot exchange gradients there: "
            "start it without torchrun, or with --device cpu"
        )
    return torch.device("mps")
