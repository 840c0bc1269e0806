"""Optional trackers of experiments, wandb and trackio: they get the numbers of log.jsonl, and never end a training."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from elsa.core import ConfigError, logger, write_json

FILE = "trackers.json"  # in the run's folder: {tracker: what names this run there}
NO_PROJECT = "elsa"


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def finish(self, summary: Mapping[str, Any]) -> None:
        """The end of this launch; ``summary`` is empty where the training is not finished."""
        ...


class Wandb:
    """Weights & Biases; WANDB_MODE=offline writes files into the run's folder, for ``wandb sync``."""

    def __init__(self, folder: Path, project: str, name: str, key: str, config: Mapping[str, Any]) -> None:
        package = importlib.import_module("wandb")
        settings = package.Settings(console="off")  # the log is train.log
        self.run = package.init(project=project, name=name, id=key, resume="allow", dir=str(folder),
                                config=dict(config), settings=settings)  # fmt: skip

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.run.log(dict(numbers), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(summary))
        self.run.finish()


class Trackio:
    """trackio, whose files are local unless TRACKIO_SPACE_ID names a Space; a run is known by its name there."""

    def __init__(self, folder: Path, project: str, name: str, key: str, config: Mapping[str, Any]) -> None:
        self.package = importlib.import_module("trackio")
        self.package.init(project=project, name=f"{name}-{key}", resume="allow", config=dict(config))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self.package.log(dict(numbers), step=step)

    def finish(self, summary: Mapping[str, Any]) -> None:
        if summary:
            self.package.log({f"summary/{name}": value for name, value in summary.items()})
        self.package.finish()


KINDS: dict[str, Callable[..., Tracker]] = {"wandb": Wandb, "trackio": Trackio}


def check_installed(names: Sequence[str]) -> None:
    """Raises ConfigError where a package is missing; a folder of its name, as wandb makes one, is none."""
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise ConfigError(f"tracker {name}: the package is not installed; pip install {name}")


class Safely:
    """A tracker of which the first failure is one warning, and the last that is heard of it."""

    def __init__(self, name: str, make: Callable[[], Tracker]) -> None:
        self.name = name
        self.tracker: Tracker | None = None
        self._try(lambda: setattr(self, "tracker", make()))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.log(numbers, step))

    def finish(self, summary: Mapping[str, Any]) -> None:
        if (tracker := self.tracker) is not None:
            self._try(lambda: tracker.finish(summary))

    def _try(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # a network, an account, a disk: nothing that a training depends on
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("tracker %s gets no more numbers: %.200s", self.name, reason)
            self.tracker = None


def open_trackers(names: Sequence[str], folder: Path, config: Mapping[str, Any], fresh: bool) -> list[Tracker]:
    """The trackers, with project and run named after the folder, PROJECT/RUN.

    Args:
        config: the recipe's values.
        fresh: whether the run is new; one that goes on keeps what names it there.
    """
    if not names:
        return []
    path, known = folder / FILE, {}
    if not fresh:
        with suppress(OSError, ValueError):
            known = json.loads(path.read_text(encoding="utf-8"))
    keys = {name: str(known.get(name) or secrets.token_hex(4)) for name in names}
    write_json(path, {**known, **keys})
    whole = Path(os.path.abspath(folder))
    project = whole.parent.name or NO_PROJECT
    return [Safely(name, partial(KINDS[name], folder, project, whole.name, keys[name], config)) for name in keys]
