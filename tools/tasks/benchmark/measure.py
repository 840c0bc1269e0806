"""Times all contestants of one row side by side, on a CPU's clock or by a GPU's events."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from elsa.core import ConfigError
from elsa.kernels import backend_info

from .contestants import copy, depthwise, flex, hadamard, matrix_product, operator, timed_pass, unfold
from .peak import peak_rate
from .shapes import HadamardShape, Shape

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PASSES = {"forward": "forward", "backward": "forward+backward", "gradients": "backward"}  # and their names in rows
BURST = 20  # calls between two events of a GPU: one alone would be timed with the gap before its launch
Call = Callable[[], None]


@dataclass(frozen=True)
class Settings:
    """What is measured, and how. ``threads`` of a GPU's rows is None: they have no say there."""

    device: torch.device
    shapes: tuple[Shape | HadamardShape, ...]
    contestants: tuple[str, ...]
    passes: tuple[str, ...]
    dtypes: tuple[str, ...]
    threads: tuple[int | None, ...]
    batches: tuple[int, ...]
    seconds: float
    memory: int
    backend: str
    output: Path

    def __post_init__(self) -> None:
        if self.backend in ("cpu", "cuda") and self.backend != self.device.type:
            raise ConfigError(f"--backend {self.backend} cannot run on --device {self.device}")
        if self.backend != "auto" and (reason := backend_info()[self.backend]) != "available":
            raise ConfigError(f"--backend {self.backend} cannot run: {reason}")
        if self.device.type == "cuda" and self.threads != (None,):
            raise ConfigError(f"--threads has no effect on --device {self.device}")


def cpu_seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def processor_seconds(call: Call) -> float:
    """Of one thread: other programs do not count."""
    start = time.process_time()
    call()
    return time.process_time() - start


def gpu_seconds(call: Call) -> float:
    """Per call of a burst on the current device, whose work queues up behind the first event."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(BURST):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / BURST


def shortest(calls: dict[str, Call], seconds: float, clock: Callable[[Call], float]) -> dict[str, float]:
    """Seconds of the fastest repetition of each. They take turns of some 20 ms, at least two repetitions, so that each
    finds its own data in the caches; a slow one has fewer turns."""
    best = dict.fromkeys(calls, float("inf"))
    spent = dict.fromkeys(calls, 0.0)
    while min(spent.values()) < seconds:
        for name, call in calls.items():
            turn, repetitions = 0.0, 0
            while spent[name] < seconds and (turn < 0.02 or repetitions < 2):
                start = time.perf_counter()
                best[name] = min(best[name], clock(call))
                turn, repetitions = turn + time.perf_counter() - start, repetitions + 1
            spent[name] += turn
    return best


def timed_calls(call: Call, count: int, device: torch.device) -> tuple[list[float], list[float]]:
    """Seconds of each of ``count`` calls: on the wall, of a GPU between events in its queue; and of all of this
    process's threads on their processors."""
    walls, processors, events = [], [], []
    gpu = device.type == "cuda"
    for _ in range(count):
        start, wall = time.process_time(), time.perf_counter()
        if gpu:
            events.append(torch.cuda.Event(enable_timing=True))
            events[-1].record()
        call()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - start)
    if gpu:
        events.append(torch.cuda.Event(enable_timing=True))
        events[-1].record()
        events[-1].synchronize()
        walls = [one.elapsed_time(other) / 1e3 for one, other in itertools.pairwise(events)]
    return walls, processors


def trim() -> None:
    """Gives back what earlier calls left with the C library's allocator: it would hide what later ones take."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident(device: torch.device) -> int | None:
    """Bytes in use: the process's (Linux; None elsewhere), or the GPU's tensors."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def reset_high_water(device: torch.device) -> bool:
    """Whether this system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def high_water(device: torch.device) -> int | None:
    """The most bytes in use since ``reset_high_water``."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1]) << 10
    except (OSError, StopIteration):
        return None


def peak_extra_memory(call: Call, device: torch.device) -> int | None:
    """Bytes by which one call raises the memory in use; None where the system does not tell."""
    call()
    trim()
    if not reset_high_water(device) or (before := resident(device)) is None:
        return None
    call()
    return max(0, (high_water(device) or 0) - before)


def makers_of(
    shape: Shape | HadamardShape, batch: int, dtype: torch.dtype, settings: Settings
) -> tuple[dict[str, Callable], list[str]]:
    """What makes each contestant's function and inputs, by name, and notes on those left out."""
    size: Any = (shape, batch, dtype, settings.device)
    makers: dict[str, Callable] = {}
    notes: list[str] = []
    if isinstance(shape, HadamardShape):
        makers["elsa"] = lambda: hadamard(*size, settings.backend)
        for layout in (torch.contiguous_format, torch.channels_last):
            makers[f"pytorch {str(layout)[6:]}"] = lambda layout=layout: hadamard(*size, "reference", layout)
        return makers, notes
    makers["elsa"] = lambda: operator(*size, settings.backend)
    if "depthwise" in settings.contestants:
        for layout in (torch.contiguous_format, torch.channels_last):
            makers[f"depthwise {str(layout)[6:]}"] = lambda layout=layout: depthwise(*size, layout)
    if "unfold" in settings.contestants:
        needed = 4 * shape.multiply_adds(batch) * dtype.itemsize
        if needed <= settings.memory << 30:
            makers["unfold"] = lambda: unfold(*size)
        else:
            notes.append(f"unfold left out: about {needed / 2**30:.1f} GiB (--memory {settings.memory})")
    if "flex" in settings.contestants:
        makers["flex"] = lambda: flex(*size)
    return makers, notes


def measure(
    shape: Shape | HadamardShape, dtype_name: str, which: str, threads: int | None, batch: int, settings: Settings
) -> dict[str, Any]:
    """One row of the table; a GPU must be the current device."""
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    dtype = DTYPES[dtype_name]
    makers, notes = makers_of(shape, batch, dtype, settings)
    calls = {}
    for name, make in makers.items():
        try:
            calls[name] = timed_pass(*make(), which)
            calls[name]()
        except RuntimeError as error:  # a contestant that cannot do this type or pass here
            if name == "elsa":
                raise
            calls.pop(name, None)
            notes.append(f"{name} cannot run: {str(error).strip().splitlines()[0][:100]}")
    calls["gemm"], products = matrix_product(dtype, settings.device)
    calls["copy"], moved = copy(settings.device)
    clocks = {None: gpu_seconds, 1: processor_seconds}
    times = shortest(calls, settings.seconds, clocks.get(threads, cpu_seconds))

    row = {**asdict(shape), "batch": batch, "dtype": dtype_name, "threads": threads, "notes": notes}
    row |= {"backend": settings.backend, "pass": PASSES[which]}
    row["milliseconds"] = {name: 1e3 * seconds for name, seconds in times.items()}
    forward, backward = which != "gradients", which != "forward"
    rate = shape.multiply_adds(batch) * (forward + shape.gradients * backward) / times["elsa"]
    of_forward, of_backward = shape.traffic(batch)
    bandwidth = (of_forward * forward + of_backward * backward) * dtype.itemsize / times["elsa"]
    peak = peak_rate(settings.device, str(dtype)[6:]).rate * (threads or 1)
    row |= {"gflops": 2e-9 * rate, "share_of_gemm": rate * times["gemm"] / products, "share_of_peak": rate / peak}
    row |= {"gigabytes_per_second": 1e-9 * bandwidth, "share_of_copy": bandwidth * times["copy"] / moved}
    static = min((t for name, t in times.items() if name.startswith("depthwise")), default=None)
    row["times_depthwise"] = times["elsa"] / static if static else None
    for rival in ("unfold", "flex", "pytorch"):
        best = min((seconds for name, seconds in times.items() if name.startswith(rival)), default=None)
        row[f"faster_than_{rival}"] = best / times["elsa"] if best else None
    row["extra_megabytes"] = None
    if which == "forward" and (most := peak_extra_memory(calls["elsa"], settings.device)) is not None:
        output = batch * shape.height * shape.width * shape.channels * dtype.itemsize
        row["extra_megabytes"] = max(0, most - output) / 2**20
    return row
