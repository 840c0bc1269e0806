"""The share of each part of a network's blocks, stage by stage."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elsa.core import ConfigError, Progress, check_writable, setup_logging
from elsa.kernels import backend_info

from .anatomy import OUTSIDE, PARTS, UNASSIGNED
from .crew import Case, crew
from .machine import cores, describe, write_results
from .rivals import contestants
from .whole import check_networks, check_threads, drop_path
from .whole_report import title

COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bb5566", "#999999", "#333333")


@dataclass(frozen=True)
class PartsSettings:
    """What is measured: a network of ours, in all combinations of ``passes`` and ``dtypes``; ``rounds`` calls each."""

    device: torch.device
    name: str
    passes: tuple[str, ...]
    dtypes: tuple[str, ...]
    size: tuple[int, int]
    batch: int
    threads: int
    rounds: int
    output: Path

    def __post_init__(self) -> None:
        check_networks([self.name], "none")
        check_threads([self.threads], self.device)
        if (reason := backend_info()[self.device.type]) != "available":
            raise ConfigError(f"parts are told apart by the compiled operator, which cannot run here: {reason}")


def benchmark_parts(settings: PartsSettings) -> None:
    """Measures, tells, and writes parts.json and parts.png into the output folder.

    Raises:
        ConfigError: the folder cannot be written, or the network cannot do what is asked for.
        TrainingError: its process was lost.
    """
    check_writable(settings.output)
    setup_logging(0)
    info = describe(settings.device)
    cases = [(which, dtype) for which in settings.passes for dtype in settings.dtypes]
    progress, rows = Progress(len(cases) * settings.rounds, "benchmark", "calls", shown=True), []
    with crew(contestants(settings.name, "none", ()), cores(), settings.threads) as one:
        for which, dtype in cases:
            case = Case("classifier", settings.size, settings.batch, which, "eager", dtype, str(settings.device),
                        drop_path(settings.name))  # fmt: skip
            one.prepare(case, settings.threads)
            measured = []
            for _ in range(settings.rounds):
                measured.append(one.profile(settings.threads))
                progress.advance()
            rows.append({"network": settings.name, "threads": settings.threads, **case.__dict__, **typical(measured)})
            tell(rows[-1])
    progress.close()
    write_results(settings.output, "parts", {**info, "rounds": settings.rounds, "rows": rows}, draw)


def typical(calls: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Each part's median over some calls, so that what interrupts one of them does not count; and their sum."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for parts in calls:
        for one in parts:
            found[one["stage"], one["part"]].append(one["seconds"])
    medians = {key: statistics.median(seconds) for key, seconds in sorted(found.items())}
    whole = sum(medians.values())
    of_stage: dict[str, float] = defaultdict(float)
    for (stage, _), seconds in medians.items():
        of_stage[stage] += seconds
    parts = [{"stage": stage, "part": part, "seconds": seconds, "share": seconds / whole,
              "share_of_stage": seconds / of_stage[stage] if stage else None}
             for (stage, part), seconds in medians.items()]  # fmt: skip
    of_calls = statistics.median(sum(one["seconds"] for one in parts) for parts in calls)
    unassigned = medians[OUTSIDE, UNASSIGNED] / whole
    return {"seconds": whole, "seconds_of_a_call": of_calls, "parts": parts, "unassigned": unassigned}


def tell(row: dict[str, Any]) -> None:
    """Parts of blocks by stage, each with its share of the stage; then the rest, with its share of the whole."""
    stages = sorted({one["stage"] for one in row["parts"]} - {OUTSIDE})
    of = {(one["stage"], one["part"]): one for one in row["parts"]}
    print(f"\n{title(row)}: {1e3 * row['seconds']:.1f} ms, {row['unassigned']:.1%} of it unassigned")
    print(f"| {'part of a block':<21} | " + " | ".join(f"{stage:>16}" for stage in stages) + " |  whole |")
    for part in PARTS:
        found = [of.get((stage, part)) for stage in stages]
        if any(found):
            cells = [f"{1e3 * one['seconds']:7.2f} ms  {one['share_of_stage']:4.0%}" if one else "–" for one in found]
            whole = sum(one["share"] for one in found if one)
            print(f"| {part:<21} | " + " | ".join(f"{cell:>16}" for cell in cells) + f" | {whole:6.1%} |")
    sums = [sum(one["seconds"] for one in row["parts"] if one["stage"] == stage) for stage in stages]
    cells = [f"{1e3 * one:7.2f} ms  100%" for one in sums]
    print(f"| {'all':<21} | " + " | ".join(f"{cell:>16}" for cell in cells) + f" | {sum(sums) / row['seconds']:6.1%} |")
    outside = [one for one in row["parts"] if one["stage"] == OUTSIDE]
    print("; ".join(f"{one['part']} {1e3 * one['seconds']:.2f} ms {one['share']:.1%}" for one in outside), flush=True)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """For each measurement the stages as bars of their parts, and one of everything outside of blocks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(rows), squeeze=False, figsize=(11, 3.2 * len(rows)), layout="constrained")
    for axes, row in zip(panels[:, 0], rows, strict=True):
        stages = sorted({one["stage"] for one in row["parts"]} - {OUTSIDE})
        for part, colour in zip(PARTS, COLOURS, strict=True):
            of = {one["stage"]: one for one in row["parts"] if one["part"] == part and one["stage"]}
            left = [_before(row, stage, part) for stage in stages]
            width = [1e3 * of[stage]["seconds"] if stage in of else 0 for stage in stages]
            if of:
                axes.barh(stages, width, left=left, color=colour, label=part)
        axes.invert_yaxis()
        outside = [one for one in row["parts"] if not one["stage"]]
        told = ", ".join(f"{one['part']} {1e3 * one['seconds']:.1f}" for one in outside)
        axes.set_title(
            f"{title(row)}: {1e3 * row['seconds']:.0f} ms\noutside of blocks: {told}", fontsize=9, loc="left"
        )
        axes.set_xlabel("milliseconds")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _before(row: dict[str, Any], stage: str, part: str) -> float:
    """Milliseconds of the parts of a stage that stand left of one."""
    before = PARTS[: PARTS.index(part)]
    return 1e3 * sum(one["seconds"] for one in row["parts"] if one["stage"] == stage and one["part"] in before)
