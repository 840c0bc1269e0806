"""Whole networks in turns: ours and its counterpart, each process of its own, round by round."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from elsa.core import ConfigError, Progress, check_writable, setup_logging
from elsa.engine.compiling import check_compiler
from elsa.engine.utilisation import BACKWARD
from elsa.models import VARIANTS

from .crew import Case, Crew, Turns, crew
from .machine import cores, describe, write_results
from .peak import peak_rate
from .rivals import BASELINES, Rival, check_name, contestants, is_ours
from .whole_report import announce, draw, tell

MODES = ("eager", "compiled", "frozen")
PASSES = ("inference", "train")


@dataclass(frozen=True)
class WholeSettings:
    """What is measured, and how.

    Attributes:
        names: networks of ours. against: the counterpart of each; None: of the table, "none": without.
        settings: of the counterpart, see SETTINGS. passes, modes, dtypes, threads: all combinations are measured.
        task: "classifier" or "backbone". size: (height, width). rounds: turns of each contestant.
    """

    device: torch.device
    names: tuple[str, ...]
    against: str | None
    settings: tuple[str, ...]
    passes: tuple[str, ...]
    modes: tuple[str, ...]
    dtypes: tuple[str, ...]
    task: str
    size: tuple[int, int]
    batch: int
    threads: tuple[int, ...]
    rounds: int
    output: Path

    def __post_init__(self) -> None:
        check_networks(self.names, self.against)
        check_threads(self.threads, self.device)
        if "frozen" in self.modes and "train" in self.passes:
            raise ConfigError("--mode frozen makes constants of the weights, which cannot train: --passes inference")
        if set(self.modes) != {"eager"}:
            check_compiler(self.device)

    def rivals(self) -> dict[str, list[Rival]]:
        return {name: contestants(name, self.against, self.settings) for name in self.names}

    def cases(self, name: str) -> list[Case]:
        every = itertools.product(self.passes, self.modes, self.dtypes)
        device = str(self.device)
        return [Case(self.task, self.size, self.batch, which, mode, dtype, device, drop_path(name))
                for which, mode, dtype in every]  # fmt: skip


def check_networks(names: Sequence[str], against: str | None) -> None:
    """Raises ConfigError for a network that is none of ours, and a counterpart that is no model."""
    if not names:
        raise ConfigError(f"name at least one network of ours: {', '.join(VARIANTS)}")
    for name in names:
        check_name(name, "NAME")
        if not is_ours(name):
            ours = ", ".join([*VARIANTS, *BASELINES])
            raise ConfigError(f"NAME {name!r} is timm's; name one of ours ({ours}), and timm's with --against")
    if against not in (None, "none"):
        check_name(str(against), "--against")


def check_threads(threads: Sequence[int], device: torch.device) -> None:
    """Raises ConfigError for more threads than there are cores; 0 stands for a GPU's."""
    there = len(cores())
    if device.type == "cuda":
        if tuple(threads) != (0,):
            raise ConfigError(f"--threads has no effect on --device {device}")
    elif max(threads) > there:
        raise ConfigError(f"--threads {max(threads)}: this process may use {there} cores")


def drop_path(name: str) -> float:
    """Of ours; the counterpart gets the same."""
    return VARIANTS[BASELINES.get(name, name)].drop_path_rate


def benchmark_model(settings: WholeSettings) -> None:
    """Measures every network and combination, tells, and writes model.json and model.png into the output folder.

    Raises:
        ConfigError: the folder cannot be written, or a network cannot do what is asked for.
        TrainingError: a process was lost.
    """
    check_writable(settings.output)
    setup_logging(0)
    info = {**describe(settings.device), "peak": peaks(settings.device, settings.dtypes)}
    announce(info)
    plan = [(name, rivals, settings.cases(name)) for name, rivals in settings.rivals().items()]
    turns = sum(len(rivals) * len(cases) for _, rivals, cases in plan) * settings.rounds * len(settings.threads)
    rows: list[dict[str, Any]] = []
    progress = Progress(turns, "benchmark", "turns", shown=True)
    for name, rivals, cases in plan:
        with crew(rivals, cores(), max(settings.threads), len(settings.threads) > 1) as one:
            for case in cases:
                found = measure_case(one, case, settings.threads, settings.rounds, progress.advance, info["peak"])
                rows += [{"network": name, **row} for row in found]
                tell(rows[-len(found) :])
    progress.close()
    write_results(settings.output, "model", {**info, "rounds": settings.rounds, "rows": rows}, draw)


def peaks(device: torch.device, dtypes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Multiply-adds per second of a core, or of a GPU, by type."""
    return {dtype: peak_rate(device, dtype)._asdict() for dtype in dtypes}


def measure_case(
    one: Crew, case: Case, threads: Sequence[int], rounds: int, advance: Callable[[], None], peak: dict[str, Any]
) -> list[dict[str, Any]]:
    """A row for each contestant and number of threads."""
    ready = one.prepare(case, threads[0])
    found = one.race(rounds, threads, advance)
    rows = []
    for rival, answer, of_threads in zip(one.rivals, ready, found, strict=True):
        for count, turns in zip(threads, of_threads, strict=True):
            row = {**asdict(rival), **asdict(case), "threads": count, "bytes": answer["bytes"],
                   "first_seconds": answer["first_seconds"], "parameters": answer["parameters"]}  # fmt: skip
            rows.append(row | summary(row, turns, answer["flops"], peak[case.dtype]["rate"]))
    for row in rows:
        row["ratios"] = ratios(row, rows)
    return rows


def summary(row: dict[str, Any], turns: Turns, flops: float, peak: float) -> dict[str, Any]:
    """What the turns of a row amount to. A round's time is the median of its calls.

    ``clock`` is what ratios and shares go by: processor time where one thread computes, which other programs disturb
    least, else time on the wall.
    """
    alone = row["device"] == "cpu" and row["threads"] == 1 and row["processes"] == 1
    calls = sorted(itertools.chain.from_iterable(turns.wall))
    times = {name: [statistics.median(calls) for calls in getattr(turns, name)] for name in ("wall", "cpu")}
    clock = "cpu" if alone else "wall"
    seconds = statistics.median(times[clock])
    work = flops * (1 + BACKWARD * (row["which"] == "train")) * row["batch"]
    return {
        "clock": clock,
        "rounds": times,
        "p50": quantile(calls, 0.5),
        "p95": quantile(calls, 0.95),
        "wall": spread(times["wall"]),
        "cpu": spread(times["cpu"]),
        "images_per_s": row["batch"] * row["processes"] / statistics.median(times["wall"]),
        "gflops_per_image": 1e-9 * work / row["batch"],
        "share_of_peak": work / 2 / seconds / (peak * (row["threads"] or 1)),
    }


def ratios(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Quotients of the times of one round: of ours and this one's, and of one thread's and this one's."""
    found: dict[str, Any] = {}
    same = ("threads", "processes")
    ours = next(one for one in rows if one["ours"] and all(one[name] == row[name] for name in same))
    fewest = next(one for one in rows if one["label"] == row["label"])
    if not row["ours"]:
        found["ours"] = {clock: quotients(ours["rounds"][clock], row["rounds"][clock]) for clock in ("wall", "cpu")}
        if ours["bytes"] and row["bytes"]:
            found["bytes"] = ours["bytes"] / row["bytes"]
    if row["threads"] != fewest["threads"]:
        found["fewer_threads"] = quotients(fewest["rounds"]["wall"], row["rounds"]["wall"])
    return found


def quotients(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    return spread([one / other for one, other in zip(above, below, strict=True)])


def spread(numbers: Sequence[float]) -> dict[str, float]:
    """The median, and the quarters beside it."""
    ordered = sorted(numbers)
    return {"median": quantile(ordered, 0.5), "low": quantile(ordered, 0.25), "high": quantile(ordered, 0.75)}


def quantile(ordered: Sequence[float], share: float) -> float:
    """Between two numbers linearly."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
