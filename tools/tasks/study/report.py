"""What a study found: a table, the claims' verdicts, a picture, and the raw numbers."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from elsa.core import DataError, did_you_mean, logger, write_json, write_text

from ..benchmark.measure import Call, gpu_seconds, processor_seconds, shortest
from ..pictures import add_legend, literal, plain, save_figure
from ..plots import COLOURS
from ..runs import whole_name
from .plan import Study
from .runs import Planned
from .statistics import LEVEL, Difference, deviation, paired

PIXELS, BATCH, SECONDS = 2**19, 8, 1.0  # of a timed call, images of it at most, and time for each variant
MARKERS = "osD^vPX*<>"
NOTE = (
    f"Of each variant the last evaluation, not the best. In brackets the {LEVEL:.0%} interval (Student's) of the mean "
    "of the differences between runs of one seed; it is of one comparison, and not widened for their number. A claim "
    "is confirmed where the whole interval is above zero, contradicted where it is below."
)


def report(study: Study, runs: Sequence[Planned], output: Path) -> None:
    """Writes results.json, table.md, table.csv and study.png, and prints the table.

    Raises:
        DataError: no run is finished, or their evaluations have no such metric.
    """
    metric, scores = _scores(study, runs)
    times = _milliseconds(study)
    base = scores[study.baseline]
    rows = []
    for variant in study.variants:
        found = scores[variant.name]
        above = None if variant.name == study.baseline else paired(found, base)
        rows.append({
            "variant": variant.name,
            "seeds": len(found),
            "mean": statistics.fmean(found.values()) if found else None,
            "deviation": deviation(found),
            "difference": None if above is None else vars(above),
            "parameters": variant.size["parameters"],
            "multiply_adds": variant.size["multiply_adds"],
            "milliseconds": times[variant.name],
            "scores": found,
        })  # fmt: skip
    claims = []
    for claim in study.claims:
        above = paired(scores[claim.better], scores[claim.than])
        told = {"difference": vars(above), "verdict": above.verdict} if above else {"verdict": "not run"}
        claims.append({**vars(claim), **told})
    text = "\n".join(_document(study, metric, rows, claims)) + "\n"
    write_json(output / "results.json", {"study": study.name, "title": study.title, "metric": metric,
               "baseline": study.baseline, "variants": rows, "claims": claims, "timed_on": _machine()})  # fmt: skip
    write_text(output / "table.md", text)
    write_text(output / "table.csv", _csv(rows))
    save_figure(draw(study, metric, rows), output / "study.png")
    print(text, end="")
    left = sum(not run.found.finished for run in runs)
    logger.info("%s: table.md, table.csv, study.png, results.json%s", output, f"; {left} runs to go" if left else "")


def _scores(study: Study, runs: Sequence[Planned]) -> tuple[str, dict[str, dict[int, float]]]:
    """The metric's whole name, and {variant: {seed: its value in the last evaluation}} of finished runs."""
    finished = [run for run in runs if run.found.finished]
    if not finished:
        raise DataError("no run is finished: there is nothing to compare")
    metric = study.metric or Counter(run.found.metric for run in finished).most_common(1)[0][0]
    names = [name for run in finished for record in run.found.evaluated for name in record]
    name = whole_name(names, metric)
    if not name:
        raise DataError(f"no evaluation has METRIC {metric}{did_you_mean(metric, set(names)) or ''}")
    scores: dict[str, dict[int, float]] = {variant.name: {} for variant in study.variants}
    for run in finished:
        values = [value for value in run.found.values(name, "eval") if math.isfinite(value)]
        if values:
            scores[run.variant.name][run.seed] = values[-1]
    return name, scores


def _milliseconds(study: Study) -> dict[str, float]:
    """Of an image's inference, the shortest of interleaved calls, on one core or this machine's GPU."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls, batches = {}, {}
        for variant in study.variants:
            network, shape = study.task.network(variant.recipe)
            batch = max(1, min(BATCH, PIXELS // math.prod(shape[1:])))
            calls[variant.name], batches[variant.name] = _call(network, (batch, *shape), device), batch
        with torch.no_grad():
            for call in calls.values():
                call()
            times = shortest(calls, SECONDS, gpu_seconds if gpu else processor_seconds)
    finally:
        torch.set_num_threads(before)
    return {name: 1e3 * seconds / batches[name] for name, seconds in times.items()}


def _call(network: torch.nn.Module, shape: tuple[int, ...], device: torch.device) -> Call:
    network, images = network.eval().to(device), torch.randn(shape, device=device)
    return lambda: network(images)


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    from elsa.kernels import backend_info

    return f"one core, {backend_info().get('cpu_instruction_set', 'plain')}"


# ---- as text -------------------------------------------------------------------------------------------------------


def _document(study: Study, metric: str, rows: Sequence[dict], claims: Sequence[dict]) -> Iterator[str]:
    yield f"| variant | seeds | {metric} | − {study.baseline} | parameters (M) | multiply-adds (G) | ms an image |"
    yield "|---|---|---|---|---|---|---|"
    places = 2 if any(score > 1 for row in rows for score in row["scores"].values()) else 4  # per cent, or of 1
    for row in rows:
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.{places}f}"
        mean = "–" if row["mean"] is None else f"{row['mean']:.{places}f}{spread}"
        yield (
            f"| {row['variant']} | {row['seeds']} | {mean} | {_interval(row['difference'], places)} "
            f"| {row['parameters'] / 1e6:.3f} | {row['multiply_adds'] / 1e9:.4g} | {row['milliseconds']:.3g} |"
        )
    if claims:
        yield from ("", "| claim | difference | verdict |", "|---|---|---|")
    for claim in claims:
        yield f"| {claim['claim']} | {_interval(claim.get('difference'), places)} | {claim['verdict']} |"
    yield from ("", NOTE)


def _interval(difference: dict[str, Any] | None, places: int) -> str:
    if difference is None:
        return "–"
    found = Difference(**difference)
    if math.isinf(found.high):
        return f"{found.mean:+.{places}f}"
    return f"{found.mean:+.{places}f} [{found.low:+.{places}f}, {found.high:+.{places}f}]"


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    """Each seed's score is a row, for other programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("variant", "seed", "score", "parameters", "multiply_adds", "milliseconds"))
    for row in rows:
        for seed, score in row["scores"].items():
            writer.writerow((row["variant"], seed, score, row["parameters"], row["multiply_adds"], row["milliseconds"]))
    return text.getvalue()


# ---- as a picture --------------------------------------------------------------------------------------------------


def draw(study: Study, metric: str, rows: Sequence[dict[str, Any]]) -> Figure:
    """Score against multiply-adds and against time: means with their deviations, and each run as a dot."""
    figure = Figure(figsize=(11, 5 + 0.22 * -(-len(rows) // 4)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = ("multiply-adds of an image (G)", f"ms of an image, {_machine()}")
    handles = []
    for axis, key, unit, title in zip(axes, ("multiply_adds", "milliseconds"), (1e9, 1), titles, strict=True):
        handles = []
        for number, row in enumerate(rows):
            if row["mean"] is None:
                continue
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            at = row[key] / unit
            scores = list(row["scores"].values())
            axis.plot([at] * len(scores), scores, ".", color=colour, alpha=0.45, ms=4)
            handles.append(axis.errorbar(at, row["mean"], yerr=row["deviation"], fmt=marker, color=colour, ms=8,
                           capsize=3, markeredgecolor="white"))  # fmt: skip
        literal(axis.set_xlabel(" "), title)
        axis.grid(alpha=0.3)
    literal(axes[0].set_ylabel(" "), metric)
    literal(figure.suptitle(" ", fontsize=11), plain(study.title, 110))
    names = [plain(row["variant"]) for row in rows if row["mean"] is not None]
    add_legend(figure, handles, names, loc="outside lower center", ncols=4, fontsize=9)
    return figure
