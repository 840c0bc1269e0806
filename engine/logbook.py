"""What a run writes down: console lines or a progress bar, JSON lines, TensorBoard, and trackers where asked for."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from elsa.core import logger, to_json, write_text

from .distributed import Runtime
from .trackers import Tracker

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

LOG_NAME = "log.jsonl"
RSS_UNIT = 2**30 if sys.platform == "darwin" else 2**20  # of ru_maxrss in a GB: bytes on macOS, else KiB


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of a run; lines that are no records, cut short by a crash, are left out."""
    path, records = folder / LOG_NAME, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict) and {"kind", "step"} <= record.keys():
                records.append(record)
    return records


def peak_memory_gb(device: torch.device) -> float:
    """Most memory in use so far: of the GPU where there is one, else of this process; NaN where no one knows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNIT


class Logbook:
    """Writes the records of a run; all but the main process stay silent.

    Args:
        folder: the run's folder.
        from_step: records after this step are dropped: a run that died may have logged more than it saved.
        evaluated: the steps whose evaluations the checkpoint knows; None where it knows all up to ``from_step``.
        total_steps: of the whole run, for the ETA.
        trackers: further places for the numbers.
    """

    def __init__(
        self,
        folder: Path,
        runtime: Runtime,
        total_steps: int,
        from_step: int = 0,
        tensorboard: bool = True,
        evaluated: Iterable[int] | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.runtime, self.total_steps, self.from_step, self.trackers = runtime, total_steps, from_step, trackers
        self.writer, self.stream, self.bar = None, None, None
        self.start, self.before = time.perf_counter(), 0.0
        self.hook: Callable[[threading.ExceptHookArgs], Any] | None = None
        if not runtime.is_main:
            return
        known = None if evaluated is None else set(evaluated)
        kept = [
            record
            for record in read_log(folder)
            if record["step"] <= from_step and (record["kind"] != "eval" or known is None or record["step"] in known)
        ]
        self.before = max((float(record.get("elapsed_s") or 0) for record in kept), default=0.0)
        write_text(folder / LOG_NAME, "".join(to_json(record) + "\n" for record in kept))
        self.stream = (folder / LOG_NAME).open("a", buffering=1, encoding="utf-8")
        if tensorboard:
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1 if from_step else None)
            self.hook, threading.excepthook = threading.excepthook, self._thread_has_ended

    def _thread_has_ended(self, how: threading.ExceptHookArgs) -> None:
        """One line of a disk that does not take what TensorBoard's thread writes, instead of a traceback."""
        if isinstance(how.exc_value, OSError) and type(how.thread).__module__.startswith("tensorboard"):
            logger.warning("TensorBoard's file cannot be written on: %s", how.exc_value.strerror)
        elif self.hook is not None:
            self.hook(how)

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        if self.runtime.is_main and sys.stderr.isatty():
            text = f"epoch {epoch + 1}/{epochs}"
            self.bar = tqdm(total=steps, initial=done, desc=text, unit="step", leave=False, dynamic_ncols=True)

    def advance(self) -> None:
        if self.bar is not None:
            self.bar.update()

    def end_epoch(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def write(self, kind: str, step: int, text: str, where: str = "", **numbers: Any) -> None:
        """One record: a JSON line, scalars ``kind/name`` for TensorBoard and trackers, and ``text`` for people.

        ``where`` tells epoch and step in lines; a progress bar shows them itself. A number may be several by name.
        """
        if self.stream is None:
            return
        elapsed = round(self.before + time.perf_counter() - self.start, 3)
        self.stream.write(to_json({"kind": kind, "step": step, "elapsed_s": elapsed, **numbers}) + "\n")
        scalars = dict(_scalars(kind, numbers))
        if self.writer is not None:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
        for tracker in self.trackers:
            tracker.log(scalars, step)
        if self.bar is not None and kind == "train":
            self.bar.set_postfix_str(text)
        else:
            logger.info("%s%s", where, text)

    def show(self, name: str, step: int, picture: Any) -> None:
        """An image, (H, W, 3) in 0 … 255, for TensorBoard."""
        if self.writer is not None:
            self.writer.add_image(name, picture, step, dataformats="HWC")

    def conclude(self, recipe: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Hyper-parameters with the final numbers, of a training that has reached its end."""
        final = dict(_scalars("", {key: value for key, value in summary.items() if key in ("last", "best")}))
        if self.writer is not None:
            plain = {name: value if isinstance(value, (bool, int, float, str)) else str(value)
                     for name, value in recipe.items()}  # fmt: skip
            for entry in hparams(plain, {f"final/{name}": value for name, value in final.items()}):
                self.writer._get_file_writer().add_summary(entry)  # add_hparams would begin a run beside this one
            for name, value in final.items():
                self.writer.add_scalar(f"final/{name}", value, self.total_steps)
        for tracker in self.trackers:
            tracker.finish(final)
        self.trackers = ()

    def eta(self, step: int) -> str:
        """Time to the end at the mean pace since this process started."""
        done = step - self.from_step
        seconds = (time.perf_counter() - self.start) / max(done, 1) * (self.total_steps - step)
        return tqdm.format_interval(seconds)

    def close(self) -> None:
        self.end_epoch()
        for target in (self.stream, self.writer):
            if target is not None:
                target.close()
        if self.hook is not None:
            threading.excepthook, self.hook = self.hook, None
        for tracker in self.trackers:
            tracker.finish({})


def _scalars(prefix: str, numbers: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(path, number) of numbers that may be nested; learning rates of groups are ``lr/GROUP``."""
    for name, value in numbers.items():
        path = f"{prefix}/{name}".lstrip("/")
        if name == "lr_groups":
            yield from _scalars("lr", value)
        elif isinstance(value, Mapping):
            yield from _scalars(path, value)
        else:
            yield path, value
