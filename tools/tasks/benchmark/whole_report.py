"""What was measured of whole networks: a table, rows for a document, and a picture."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from elsa.core import ConfigError

from .settings import SETTINGS

COLUMNS = (
    ("ms p50", lambda r: f"{1e3 * r['p50']:.1f}"),
    ("p95", lambda r: f"{1e3 * r['p95']:.1f}"),
    ("CPU ms", lambda r: f"{1e3 * r['cpu']['median']:.1f}"),
    ("images/s", lambda r: f"{r['images_per_s']:.2f}"),
    ("MB", lambda r: "–" if r["bytes"] is None else f"{r['bytes'] / 2**20:.0f}"),
    ("of peak", lambda r: f"{r['share_of_peak']:.0%}"),
    ("ours/this", lambda r: ratio(r)),
    ("× fewer", lambda r: f"{r['ratios']['fewer_threads']['median']:.2f}" if "fewer_threads" in r["ratios"] else "–"),
)
WIDTHS = (8, 8, 8, 9, 6, 7, 17, 7)
COLOURS = {True: "#4477aa", False: "#cc6677"}
MARKDOWN = ("network", "pass", "type", "mode", "images", "threads", "ms p50", "CPU ms", "images/s", "MB", "of peak",
            "× fewer", *(f"÷ {text}" for text in SETTINGS.values()), "MB ÷ best")  # fmt: skip


def announce(info: dict[str, Any]) -> None:
    for name, value in info.items():
        if name != "peak":
            print(f"{name}: {value}")
    for dtype, found in info["peak"].items():
        print(f"peak of one core, {dtype}: {1e-9 * found['rate']:.1f} G multiply-adds/s, {found['origin']}")


def ratio(row: dict[str, Any]) -> str:
    """Ours over this one, with the middle half of the rounds."""
    found = row["ratios"].get("ours")
    if found is None:
        return "–"
    found = found[row["clock"]]
    return f"{found['median']:.3f} [{found['low']:.2f}–{found['high']:.2f}]"


def title(row: dict[str, Any]) -> str:
    height, width = row["size"]
    kind = "" if row["task"] == "classifier" else f", {row['task']}"
    return f"{row['network']}{kind}: {row['which']}, {row['mode']}, {row['dtype']}, {row['batch']}×{height}×{width}"


def tell(rows: list[dict[str, Any]]) -> None:
    """The rows of one case."""
    wide = max(len(row["label"]) for row in rows)
    print(f"\n{title(rows[0])}, {rows[0]['gflops_per_image']:.3g} GFLOP per image")
    names = [name for name, _ in COLUMNS]
    for label, threads, cells in [("contestant", "thr", names), *((r["label"], r["threads"], _cells(r)) for r in rows)]:
        told = " | ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
        print(f"| {label:<{wide}} | {threads!s:>3} | {told} |", flush=True)


def _cells(row: dict[str, Any]) -> list[str]:
    return [cell(row) for _, cell in COLUMNS]


def markdown(results: Iterable[dict[str, Any]]) -> list[str]:
    """A table of some measurements: a row for each case and number of threads, with ratios to each setting of the
    counterpart."""
    told = [_line(MARKDOWN), "|" + "---|" * len(MARKDOWN)]
    for result in results:
        for row in result["rows"]:
            if row["ours"]:
                told.append(_line(_document_cells(row, result["rows"])))
    return told


def print_markdown(paths: Iterable[Path]) -> None:
    """Raises ConfigError for a file that ``benchmark.py model`` has not written."""
    results = []
    for path in paths:
        try:
            results.append(json.loads(path.read_text(encoding="utf-8")))
            _ = [row["share_of_peak"] for row in results[-1]["rows"]]
        except OSError as error:
            raise ConfigError(f"--markdown {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--markdown {path} is no model.json of this tool") from error
    print("\n".join(markdown(results)))


def _document_cells(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    same = ("network", "task", "which", "mode", "dtype", "size", "batch", "threads", "processes")
    others = [one for one in rows if not one["ours"] and all(one[name] == row[name] for name in same)]
    of_text = {text: one for text in SETTINGS.values() for one in others if one["label"].endswith(f", {text}")}
    found = {text: ratio(of_text[text]) if text in of_text else "–" for text in SETTINGS.values()}
    best = of_text.get(SETTINGS["best"], {"ratios": {}})
    memory = f"{best['ratios']['bytes']:.2f}" if "bytes" in best["ratios"] else "–"
    height, width = row["size"]
    network = row["network"] if row["task"] == "classifier" else f"{row['network']} ({row['task']})"
    return [network, row["which"], row["dtype"], row["mode"], f"{row['batch']}×{height}×{width}", str(row["threads"]),
            *(cell for (name, _), cell in zip(COLUMNS, _cells(row), strict=True) if name in MARKDOWN),
            *found.values(), memory]  # fmt: skip


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the times, case by case; the middle half of the rounds as a line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = [list(group) for _, group in itertools.groupby(rows, title)]
    height = 1 + 0.3 * len(rows) + 0.4 * len(groups)
    figure, panels = pyplot.subplots(
        len(groups), squeeze=False, figsize=(12, height), layout="constrained",
        gridspec_kw={"height_ratios": [len(group) for group in groups]},
    )  # fmt: skip
    for axes, group in zip(panels[:, 0], groups, strict=True):
        several = len({row["threads"] for row in group}) > 1
        labels = [row["label"] + f", {row['threads']} thr" * several for row in group][::-1]
        times = [row[row["clock"]] for row in group][::-1]
        middle = [1e3 * one["median"] for one in times]
        errors = [
            [1e3 * (one["median"] - one["low"]) for one in times],
            [1e3 * (one["high"] - one["median"]) for one in times],
        ]
        axes.barh(labels, middle, xerr=errors, color=[COLOURS[row["ours"]] for row in group[::-1]], ecolor="#333333")
        for place, row in enumerate(group[::-1]):
            text = f"{row['images_per_s']:.3g} images/s" + f", ours ÷ this {ratio(row)[:5]}" * (not row["ours"])
            axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        axes.set_title(title(group[0]), fontsize=9, loc="left")
        axes.tick_params(labelsize=8)
    clocks = {"cpu": "processor time", "wall": "time"}
    panels[-1, 0].set_xlabel(f"milliseconds ({' or '.join(sorted({clocks[row['clock']] for row in rows}))}), medians")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
