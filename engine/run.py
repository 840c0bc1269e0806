"""A run's folder: recipe, plan, environment, log, checkpoints, summary. One run at a time writes into it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from elsa.core import (
    CheckpointError,
    ConfigError,
    __version__,
    check_writable,
    lock_file,
    logger,
    make_folder,
    setup_logging,
    sweep,
    write_json,
    write_text,
)

from .checkpoint import BEST, LAST, PREVIOUS, read_run
from .distributed import Runtime
from .launcher import starts
from .logbook import LOG_NAME
from .parallel import Parallel
from .plan import Plan, Recipe
from .shards import FOLDER as SHARDS
from .shards import STATE, complete, folder_name, read_last, read_state, restore
from .step import TrainState

LOG_FILE, LOCK, LAUNCHES = "train.log", ".lock", "environment.json"
PACKAGES = (
    *("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "yacs", "onedl-mmengine", "mmengine"),
    *("mmcv-lite", "mmcv", "onedl-mmcv", "mmdet", "mmsegmentation", "pycocotools"),
)


class RunFolder:
    """``--output`` of a training.

    Args:
        resume: "auto", a checkpoint, a run's folder, or None for a fresh run.
        overwrite: whether to replace a run that is there.
    """

    def __init__(self, path: Path, runtime: Runtime, resume: str | None, overwrite: bool) -> None:
        self.path, self.runtime, self.resume, self.overwrite = path, runtime, resume, overwrite
        self._lock: IO[str] | None = None
        self._stale: list[Path] = []  # what must not be gone on from later

    @contextmanager
    def claimed(self) -> Iterator[RunFolder]:
        """Holds the folder against other runs; one that is not there yet is claimed by ``open``."""
        check_writable(self.path)
        try:
            self.runtime.in_main(self._claim if self.path.is_dir() else lambda: None)
            yield self
        finally:
            if self._lock is not None:
                (self.path / LOCK).unlink(missing_ok=True)
                self._lock.close()

    def _claim(self) -> None:
        """Locks a file in the folder: such a lock ends with the process, whatever ends it, and is not inherited."""
        path = self.path / LOCK
        while True:
            lock = path.open("a+", encoding="utf-8")
            try:
                lock_file(lock)
            except (BlockingIOError, PermissionError) as error:
                lock.seek(0)
                owner = lock.read().strip() or "another process"
                lock.close()
                raise ConfigError(
                    f"--output {self.path} is in use by a run that is still alive ({owner}); wait for it, or choose "
                    "another folder"
                ) from error
            except OSError:  # a file system without locks
                break
            with suppress(FileNotFoundError):
                if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                    break
            lock.close()  # the run that held it has just ended and removed the file
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        self._lock = lock

    def _holds_a_run(self) -> bool:
        return bool(complete(self.path)) or any((self.path / f"{name}.pt").exists() for name in (LAST, PREVIOUS))

    def find(self, recipe: Recipe) -> dict[str, Any] | None:
        """The checkpoint to continue from, or None for a fresh run.

        Raises:
            ConfigError: the folder holds a run and nothing says what to do with it, or the recipe is another.
            CheckpointError: what is there is damaged.
        """
        again = self.runtime.any(starts() > 0)  # a node that was lost and came back counts from none
        if again and self._holds_a_run() and [last["command"] for last in self._launches()[-1:]] == [sys.argv]:
            self.resume, self.overwrite = "auto", False  # torchrun says the same again: the run that it began goes on
        if self.resume is None:
            if self._holds_a_run() and not self.overwrite:
                raise ConfigError(
                    f"{self.path} holds a run; --resume auto continues it, --overwrite replaces it, "
                    "or choose another --output"
                )
            return None
        place = self.path if self.resume == "auto" else Path(self.resume)
        elsewhere = self.path.resolve() not in (place.resolve(), *place.resolve().parents[:2])
        if elsewhere and self._holds_a_run() and not self.overwrite:
            raise ConfigError(
                f"{self.path} holds another run than --resume {self.resume}; --overwrite replaces it, "
                "or choose another --output"
            )
        if (place / STATE).is_file():
            path, content = place, read_state(place, self.runtime)
        elif place.is_dir() or self.resume == "auto":
            found = read_last(place, self.runtime)
            if found is None and self.resume == "auto":
                return None
            if found is None:
                raise CheckpointError(f"--resume {place} has no {LAST}.pt")
            path, content = found
            if path.stem == PREVIOUS and place == self.path:
                self._stale = [place / f"{LAST}.pt"]
        else:
            path, content = place, read_run(place)
        if changed := recipe.differences(content["config"]):
            raise ConfigError(f"{path} belongs to a run with another configuration: {'; '.join(changed[:5])}")
        known = path.name if path.is_dir() else folder_name(content["step"], evaluated=True)
        self._stale += [later for later in complete(self.path) if later.name > known]
        return content

    def check_data(self, content: Mapping[str, Any], data: Mapping[str, Any]) -> None:
        """Raises ConfigError where the training data are not those of the checkpoint."""
        before = content["data"]
        for name, now in data.items():
            if (was := before.get(name)) != now:
                if isinstance(now, list) and isinstance(was, list):
                    odd = [f"{a} there, {b} now" for a, b in zip(was, now, strict=False) if a != b]
                    was, now = len(was), f"{len(now)}{': ' * bool(odd)}{', '.join(odd[:3])}"
                raise ConfigError(
                    f"the checkpoint belongs to a run on other data: {name} {was} there, {now} now. To start from its "
                    "weights, name it as the pretrained file of a new run"
                )

    def restore(self, state: TrainState, content: Mapping[str, Any], parallel: Parallel) -> None:
        """Puts the checkpoint's state into ``state``; all processes must have read the same.

        Raises:
            ConfigError: it does not fit, or the processes read different files.
        """
        try:
            state.load_state_dict(restore(dict(content), state, parallel))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            self.runtime.raise_lost(error)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(f"the checkpoint does not fit this run: {reason}") from error
        logger.info("resumed after step %d: %d whole epochs", state.step, state.epoch)

    def _launches(self) -> list[Any]:
        """What earlier launches noted; nothing where the file is damaged."""
        try:
            before = json.loads((self.path / LAUNCHES).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        return before if isinstance(before, list) else []

    def open(self, recipe: Recipe, plan: Plan, environment: Mapping[str, Any], fresh: bool) -> None:
        """Recipe, plan and environment on disk before the first step; what killed runs left is cleared away.

        Raises:
            ConfigError: another run has taken the folder since it was looked at.
        """
        self.runtime.in_main(lambda: self._write(recipe, plan, environment, fresh))
        setup_logging(self.runtime.rank, self.path / LOG_FILE)

    def _write(self, recipe: Recipe, plan: Plan, environment: Mapping[str, Any], fresh: bool) -> None:
        make_folder(self.path)
        if self._lock is None:
            self._claim()
            if self._holds_a_run() and not self.overwrite:  # begun and ended since ``find``
                raise ConfigError(f"{self.path} holds a run that began meanwhile; --resume auto continues it")
        if left := [*sweep(self.path), *sweep(self.path / SHARDS)]:
            logger.info("removed what a killed run left: %s", ", ".join(left))
        if fresh and self.overwrite:
            names = [f"{name}.{kind}" for name in (LAST, PREVIOUS, BEST) for kind in ("pt", "safetensors")]
            for name in (*names, LOG_NAME, "curves.png"):
                (self.path / name).unlink(missing_ok=True)
            for name in ("tensorboard", SHARDS):
                shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "summary.json").unlink(missing_ok=True)  # one that ended early may go on
        for path in self._stale:  # the next save must not make last.pt the previous one
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        before = [] if fresh else self._launches()
        launch = {"time": time.strftime("%Y-%m-%d %H:%M:%S"), **environment}
        write_json(self.path / LAUNCHES, [*before, launch])
        write_text(self.path / recipe.file, recipe.text)
        write_json(self.path / "plan.json", plan.as_dict())


def describe_environment(runtime: Runtime) -> dict[str, Any]:
    """Versions, hardware, command and git state, for the run's folder."""
    installed = {part.metadata["Name"]: part.version for part in metadata.distributions()}
    gpu = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "elsa": __version__,
        "packages": {**{name: installed[name] for name in PACKAGES if name in installed}, "torch": torch.__version__},
        "platform": platform.platform(),
        "device": gpu or platform.processor() or platform.machine(),
        "world_size": runtime.world_size,
        "threads": torch.get_num_threads(),
        "git": _git_state(),
    }


def _git_state() -> dict[str, str] | None:
    """Commit and uncommitted changes of the code that runs; None where it is no git checkout."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "changes": git("status", "--porcelain")}
    except (OSError, subprocess.CalledProcessError):
        return None
