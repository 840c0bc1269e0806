"""The table on the screen, the same as JSON, and a picture of it."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path

import torch

from elsa.core import check_writable

from .machine import describe, write_results
from .measure import Settings, measure

COLUMNS = (
    ("shape", lambda r: r["name"]),
    ("map", lambda r: f"{r['batch']}×{r['height']}×{r['width']}×{r['channels']}"),
    ("K", lambda r: str(r["kernel"])),
    ("pass", lambda r: r["pass"].replace("forward", "fwd").replace("backward", "bwd")),
    ("type", lambda r: r["dtype"]),
    ("thr", lambda r: number(r["threads"], "{}")),
    ("ms", lambda r: f"{r['milliseconds']['elsa']:.2f}"),
    ("GFLOP/s", lambda r: f"{r['gflops']:.0f}"),
    ("of peak", lambda r: f"{r['share_of_peak']:.0%}"),
    ("of GEMM", lambda r: f"{r['share_of_gemm']:.0%}"),
    ("GB/s", lambda r: f"{r['gigabytes_per_second']:.1f}"),
    ("of copy", lambda r: f"{r['share_of_copy']:.0%}"),
    ("× depthwise", lambda r: number(r["times_depthwise"], "{:.2f}")),
    ("unfold/elsa", lambda r: number(r["faster_than_unfold"], "{:.0f}")),
    ("flex/elsa", lambda r: number(r["faster_than_flex"], "{:.1f}")),
    ("torch/elsa", lambda r: number(r["faster_than_pytorch"], "{:.2f}")),
    ("extra MB", lambda r: number(r["extra_megabytes"], "{:.1f}")),
)
WIDTHS = [max(len(title), 18 if title in ("map", "shape") else 7) for title, _ in COLUMNS]


def benchmark_operator(settings: Settings) -> None:
    """Measures every row, prints it, and writes operator.json and operator.png into the output folder.

    Raises:
        ConfigError: the folder cannot be written.
    """
    check_writable(settings.output)
    gpu = settings.device.type == "cuda"
    info = describe(settings.device)
    print(", ".join(f"{key}: {value}" for key, value in info.items()))
    print(line([title for title, _ in COLUMNS]))
    print("|" + "|".join("-" * (width + 2) for width in WIDTHS) + "|")
    rows = []
    with torch.cuda.device(settings.device) if gpu else contextlib.nullcontext():
        for threads, dtype, batch, shape, which in itertools.product(
            settings.threads, settings.dtypes, settings.batches, settings.shapes, settings.passes
        ):
            rows.append(row := measure(shape, dtype, which, threads, batch, settings))
            print(line([cell(row) for _, cell in COLUMNS]), flush=True)
            for note in row["notes"]:
                print(f"  {shape.name}: {note}")
    write_results(settings.output, "operator", {**info, "rows": rows}, draw)


def number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def line(cells: list[str]) -> str:
    return "| " + " | ".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)) + " |"


def draw(rows: list[dict], path: Path) -> None:
    """Bars of the times relative to PyTorch's: its depthwise convolution, for the Hadamard convolution its product,
    grouped convolution and GELU; or of the milliseconds where those were left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = [row["times_depthwise"] or 1 / (row["faster_than_pytorch"] or float("inf")) for row in rows]
    relative = all(shares)
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.28 * len(rows)), layout="constrained")
    labels = [f"{r['name']}  {r['pass']}  {r['dtype']}  batch {r['batch']}  {_threads(r)}" for r in rows]
    values = shares if relative else [r["milliseconds"]["elsa"] for r in rows]
    colours = ["#4477aa" if r["pass"] == "forward" else "#cc6677" for r in rows]
    axes.barh(labels[::-1], values[::-1], color=colours[::-1])
    if relative:
        axes.axvline(1, color="black", linewidth=0.8)
    beside = "PyTorch's depthwise convolution\n(H.: its product, grouped convolution and GELU)"
    axes.set_xlabel(f"time relative to {beside}" if relative else "milliseconds")
    axes.set_title(f"ELSA's operators, {rows[0]['backend']}")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _threads(row: dict) -> str:
    return f"{row['threads']} thr" if row["threads"] else "GPU"
