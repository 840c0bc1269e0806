"""Runs compared in one picture: a row of panels for each task, with loss, metric, learning rate and pace."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from elsa.core import ConfigError, did_you_mean, logger, make_folder

from .pictures import add_legend, literal, plain, save_figure
from .runs import TABLES, Run, find_runs, table, whole_name, write_table

# Okabe and Ito's colours, which people with any colour vision tell apart, but for yellow; then again with dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
AXES = {"step": "step", "epoch": "epoch", "time": "hours"}
SMOOTH = 50  # a curve is smoothed over so large a part of it
NO_METRICS = ("kind", "step", "epoch", "elapsed_s", "seconds", "lr")
PANELS = ("loss", "metric", "lr", "images_per_s")


def compare(places: Sequence[Path], output: Path, metric: str | None, x: str, report: Path | None) -> None:
    """The picture and the table.

    Args:
        metric: a number of the evaluations, or the end of its name; None: what each task's best checkpoint has most of.
        x: step, epoch or time.
        report: where the table goes too, .csv or .json.

    Raises:
        ConfigError: a file of another kind, or a metric that no run has.
        DataError: no run is there.
    """
    if output.suffix != ".png":
        raise ConfigError(f"--output must be a .png, got {output}")
    if report is not None and report.suffix not in TABLES:
        raise ConfigError(f"--table must be a {' or '.join(TABLES)}, got {report}")
    runs = find_runs(places)
    for run in runs:
        for note in run.notes:
            logger.warning("%s: %s", run.name, note)
    drawn = [run for run in runs if run.train or run.evaluated]
    if len(drawn) > (most := len(COLOURS) * len(DASHES)):
        raise ConfigError(f"{len(drawn)} runs are more than {most}, which could be told apart; name fewer")
    metrics = {task: _metric(task, [run for run in drawn if run.task == task], metric) for task in _tasks(drawn)}
    if metric and not any(metrics.values()):
        names = {name for run in drawn for record in run.evaluated for name in record if name not in NO_METRICS}
        hint = did_you_mean(metric, {part for name in names for part in (name, name.rpartition("/")[2])})
        hint = hint or f"; there is {', '.join(sorted(names)[:9])}"
        raise ConfigError(f"--metric {metric}: no evaluation has it{hint}")
    make_folder(output.parent)
    save_figure(draw(drawn, metrics, x), output)
    rows = [run.row(metrics.get(run.task) or "") for run in runs]
    for line in table(rows):
        print(line)
    if report is not None:
        write_table(rows, report)
    logger.info("%s: %d runs%s", output, len(drawn), "" if report is None else f"; table in {report}")


def _tasks(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.task for run in runs))


def _metric(task: str, runs: Sequence[Run], wanted: str | None) -> str:
    """The number that these runs are compared by; "" where they have none."""
    names = [name for run in runs for name in {name for record in run.evaluated for name in record}]
    if wanted:
        return whole_name(names, wanted)
    own = Counter(run.metric for run in runs if run.metric)
    chosen = own.most_common(1)[0][0] if own else ""
    for run in runs:
        if run.metric and run.metric != chosen:
            logger.warning("%s: its best is by %s; the %s runs are compared by %s", run.name, run.metric, task, chosen)
    return chosen


def draw(runs: Sequence[Run], metrics: Mapping[str, str], x: str) -> Figure:
    styles = [(colour, dash) for dash, colour in itertools.product(DASHES, COLOURS)]
    tasks = _tasks(runs)
    columns = min(4, max(1, 160 // (10 + max(len(plain(run.name)) for run in runs))))
    lines = -(-len(runs) // columns)
    figure = Figure(figsize=(16, 3.4 * len(tasks) + 0.4 + 0.22 * lines), layout="constrained")
    rows = figure.subplots(len(tasks), len(PANELS), squeeze=False)
    handles: dict[int, Any] = {}
    for axes, task in zip(rows, tasks, strict=True):
        for index, run in enumerate(runs):
            if run.task == task:
                colour, dash = styles[index]
                handles[index] = _draw_run(axes, run, metrics[task], x, dict(color=colour, linestyle=dash))
        titles = ("training loss, smoothed", metrics[task] or "no metric", "learning rate", "images/s")
        for axis, title in zip(axes, titles, strict=True):
            literal(axis.set_title(" ", fontsize=10), title)
            axis.set_xlabel(AXES[x])
            axis.grid(alpha=0.3)
        literal(axes[0].set_ylabel(" "), task)
        for axis in axes[2:]:
            axis.set_ylim(bottom=0)
        axes[2].ticklabel_format(axis="y", scilimits=(-2, 3))
    names = [plain(run.name) for run in runs]
    add_legend(figure, [handles[index] for index in range(len(runs))], names,
               loc="outside lower center", ncols=columns, fontsize=9, handlelength=3.5)  # fmt: skip
    return figure


def _draw_run(axes: Sequence[Any], run: Run, metric: str, x: str, style: Mapping[str, Any]) -> Any:
    """The curves of a run; returns what stands for it in the legend."""
    loss, score, rate, pace = axes
    at, evaluated_at = _positions(run, x)
    raw = np.array(run.values("loss"))
    loss.plot(at, raw, color=style["color"], alpha=0.15, linewidth=0.8)
    [handle] = loss.plot(at, smoothed(raw), linewidth=1.6, **style)
    if metric:
        scores = np.array(run.values(metric, "eval"))
        score.plot(evaluated_at, scores, marker=".", ms=4, linewidth=1.4, **style)
        if np.isfinite(scores).any():
            best = int(np.nanargmax(scores))
            score.plot(evaluated_at[best], scores[best], "*", ms=12, color=style["color"], markeredgecolor="white")
    rate.plot(at, run.values("lr"), linewidth=1.4, **style)
    pace.plot(at, run.values("images_per_s"), linewidth=1.2, **style)
    return handle


def _positions(run: Run, x: str) -> tuple[list[float], list[float]]:
    """Where the records of steps and of evaluations stand on the axis."""
    name, unit = {"step": ("step", 1), "epoch": ("epoch", 1), "time": ("elapsed_s", 3600)}[x]
    at, evaluated_at = ([value / unit for value in run.values(name, kind)] for kind in ("train", "eval"))
    if not any(map(math.isfinite, at + evaluated_at)):
        logger.warning("%s: its log has no %s and is not drawn", run.name, name)
    return at, evaluated_at


def smoothed(values: np.ndarray) -> np.ndarray:
    """An exponential mean, of which the beginning counts no more than its part; gaps stay gaps."""
    keep = max(0.0, 1 - SMOOTH / max(len(values), 1)) if len(values) > SMOOTH else 0.5
    total = weight = 0.0
    result = np.full(len(values), np.nan)
    for place, value in enumerate(values):
        if math.isfinite(value):
            total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
            result[place] = total / weight
    return result
