"""How a network and its counterpart scale: over the size of images, the batch, threads and processes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from elsa.core import ConfigError, Progress, check_writable, setup_logging

from .crew import Case, crew
from .machine import cores, describe, write_results
from .rivals import Rival, contestants
from .whole import check_networks, check_threads, drop_path, measure_case, peaks
from .whole_report import announce, ratio

SERIES = ("size", "batch", "threads", "processes")
COLUMNS = ("pass", "over", "at", "contestant", "ms p50", "CPU ms", "images/s", "Mpixel/s", "MB", "ours/this")
Race = tuple[str, Case, tuple[int, ...]]  # name of the series, what is done, numbers of threads
FORMS = ("{:<9}", "{:<9}", "{:>5}", "{:<62}", "{:>9}", "{:>9}", "{:>9}", "{:>9}", "{:>6}", "{:>17}")


@dataclass(frozen=True)
class ScalingSettings:
    """What is measured.

    Attributes:
        sizes: sides of images in pixels, at one image. batches: at the first size.
        threads, processes: at ``batch`` images of the first size; empty on a GPU.
    """

    device: torch.device
    name: str
    against: str | None
    passes: tuple[str, ...]
    dtype: str
    sizes: tuple[int, ...]
    batches: tuple[int, ...]
    batch: int
    threads: tuple[int, ...]
    processes: tuple[int, ...]
    rounds: int
    output: Path

    def __post_init__(self) -> None:
        check_networks([self.name], self.against)
        if self.device.type == "cuda" and (self.threads or self.processes):
            raise ConfigError(f"--threads and --processes have no effect on --device {self.device}")
        if self.threads:
            check_threads(self.threads, self.device)
        if self.processes and max(self.processes) > len(cores()):
            raise ConfigError(f"--processes {max(self.processes)}: this process may use {len(cores())} cores")

    @property
    def alone(self) -> int:
        """Threads where they are not what varies; 0 stands for a GPU's."""
        return 0 if self.device.type == "cuda" else 1


def benchmark_scaling(settings: ScalingSettings) -> None:
    """Measures, tells, and writes scaling.json and scaling.png into the output folder.

    Raises:
        ConfigError: the folder cannot be written, or a network cannot do what is asked for.
        TrainingError: a process was lost.
    """
    check_writable(settings.output)
    rivals = contestants(settings.name, settings.against, ("best",))
    setup_logging(0)
    info = {**describe(settings.device), "peak": peaks(settings.device, (settings.dtype,))}
    announce(info)
    plan = races(settings, rivals)
    turns = sum(len(group) * len(threads) for group, cases in plan for _, _, threads in cases)
    progress, rows = Progress(turns * settings.rounds, "benchmark", "turns", shown=True), []
    print(_line(COLUMNS))
    for group, cases in plan:
        with crew(group, cores(), max(max(threads) for _, _, threads in cases)) as one:
            for series, case, threads in cases:
                found = measure_case(one, case, threads, settings.rounds, progress.advance, info["peak"])
                for row in found:
                    rows.append({"network": settings.name, "series": series, "at": _place(series, row), **row})
                    print(_line(_cells(rows[-1])), flush=True)
    progress.close()
    write_results(settings.output, "scaling", {**info, "rounds": settings.rounds, "rows": rows}, draw)


def races(settings: ScalingSettings, rivals: list[Rival]) -> list[tuple[list[Rival], list[Race]]]:
    """The contestants of each crew, and what they do."""
    alone: tuple[int, ...] = (settings.alone,)

    def case(which: str, side: int, batch: int) -> Case:
        rate = drop_path(settings.name)
        return Case("classifier", (side, side), batch, which, "eager", settings.dtype, str(settings.device), rate)

    first = settings.sizes[0]
    cases: list[Race] = []
    at_once: list[Race] = []
    for which in settings.passes:
        cases += [("size", case(which, side, 1), alone) for side in settings.sizes]
        cases += [("batch", case(which, first, batch), alone) for batch in settings.batches]
        if settings.threads:
            cases.append(("threads", case(which, first, settings.batch), settings.threads))
        at_once.append(("processes", case(which, first, settings.batch), alone))
    several = [
        replace(rival, label=f"{rival.label}, {count} at once", processes=count)
        for rival, count in itertools.product(rivals, settings.processes)
    ]
    return [(rivals, cases), *([(several, at_once)] if several else [])]


def _place(series: str, row: dict[str, Any]) -> int:
    return row["size"][0] if series == "size" else row[series]


def megapixels(row: dict[str, Any]) -> float:
    """Per second."""
    height, width = row["size"]
    return 1e-6 * height * width * row["images_per_s"]


def _cells(row: dict[str, Any]) -> list[str]:
    memory = "–" if row["bytes"] is None else f"{row['bytes'] / 2**20:.0f}"
    return [row["which"], row["series"], str(row["at"]), row["label"], f"{1e3 * row['p50']:.1f}",
            f"{1e3 * row['cpu']['median']:.1f}", f"{row['images_per_s']:.2f}", f"{megapixels(row):.3f}", memory,
            ratio(row)]  # fmt: skip


def _line(cells: Any) -> str:
    return "| " + " | ".join(form.format(cell) for form, cell in zip(FORMS, cells, strict=True)) + " |"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Megapixels per second over each of the series; a pass each has a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    there = [name for name in SERIES if any(row["series"] == name for row in rows)]
    figure, panels = pyplot.subplots(
        1, len(there), squeeze=False, figsize=(4.2 * len(there), 3.8), layout="constrained"
    )
    colours = {True: "#4477aa", False: "#cc6677"}
    for axes, series in zip(panels[0], there, strict=True):
        here = [row for row in rows if row["series"] == series]
        for which, ours in itertools.product(("inference", "train"), (True, False)):
            line = [row for row in here if row["which"] == which and row["ours"] == ours]
            if line:
                places = [row["at"] for row in line]
                style = "o-" if which == "inference" else "s--"
                label = f"{line[0]['model']}, {which}"
                axes.plot(places, [megapixels(row) for row in line], style, color=colours[ours], label=label)
        axes.set_xlabel({"size": "side of the images, pixels (batch 1)"}.get(series, series))
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted({row["at"] for row in here}), [str(at) for at in sorted({row["at"] for row in here})])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
    panels[0, 0].set_ylabel("megapixels per second")
    panels[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
