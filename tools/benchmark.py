"""Measures the ELSA operator: ``python tools/benchmark.py op``.

All contestants of a row run in turns within one loop, and the shortest of many repetitions counts, so that other load
on the machine disturbs them alike; only the ratios within one run are to be relied on. Beside the operator are timed:
the published formula (unfold), PyTorch's depthwise K×K convolution (the static counterpart, in its better memory
format), 2-D neighbourhood attention by flex_attention, and a matrix product as the measure of the machine's peak.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import torch
from _contestants import DEFAULT_GROUPS, GROUPS, Shape, depthwise, flex, operator, training_step, unfold

from elsa.kernels import backend_info

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
CONTESTANTS = ("unfold", "depthwise", "flex")


# ---- measuring -----------------------------------------------------------------------------------------------------


def shortest(calls: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Seconds of the fastest repetition of each. They take turns of some 20 ms, at least two calls, so that each finds
    its own data in the caches; a slow one has fewer turns."""
    best = dict.fromkeys(calls, float("inf"))
    spent = dict.fromkeys(calls, 0.0)
    while min(spent.values()) < seconds:
        for name, call in calls.items():
            turn, repetitions = 0.0, 0
            while spent[name] < seconds and (turn < 0.02 or repetitions < 2):
                start = time.perf_counter()
                call()
                elapsed = time.perf_counter() - start
                best[name] = min(best[name], elapsed)
                turn, repetitions = turn + elapsed, repetitions + 1
            spent[name] += turn
    return best


def peak_extra_memory(call: Callable[[], None]) -> int | None:
    """Bytes by which one call raises the process's resident memory (Linux; None elsewhere)."""

    def status(field: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1]) << 10

    call()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left with the allocator would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = status("VmRSS")
        call()
        return max(0, status("VmHWM") - before)
    except (OSError, AttributeError, StopIteration):
        return None


def measure(shape: Shape, dtype_name: str, backward: bool, threads: int, options: argparse.Namespace) -> dict:
    """One row of the table."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dtype, batch = DTYPES[dtype_name], options.batch
    notes = []
    makers = {"elsa": lambda: operator(shape, batch, dtype, options.backend)}
    if "depthwise" in options.contestants:
        for layout in (torch.contiguous_format, torch.channels_last):
            makers[f"depthwise {str(layout)[6:]}"] = lambda layout=layout: depthwise(shape, batch, dtype, layout)
    patches = shape.multiply_adds(batch) * dtype.itemsize
    if "unfold" in options.contestants and patches * 4 <= options.memory << 30:
        makers["unfold"] = lambda: unfold(shape, batch, dtype)
    elif "unfold" in options.contestants:
        notes.append(f"unfold left out: about {patches * 4 / 2**30:.1f} GiB (--memory {options.memory})")
    if "flex" in options.contestants:
        makers["flex"] = lambda: flex(shape, batch, dtype)

    calls = {}
    for name, make in makers.items():
        try:
            calls[name] = training_step(*make(), backward)
            calls[name]()
        except RuntimeError as error:  # a contestant that cannot do this type or pass here
            if name == "elsa":
                raise
            calls.pop(name, None)
            notes.append(f"{name} cannot run: {str(error).strip().splitlines()[0][:100]}")
    matrix = torch.randn(1024, 1024).to(dtype)
    calls["gemm"] = lambda: torch.mm(matrix, matrix)
    times = shortest(calls, options.seconds)

    sums = 1 + (2 + shape.mul + shape.add) * backward
    rate = shape.multiply_adds(batch) * sums / times["elsa"]
    row = {**asdict(shape), "batch": batch, "dtype": dtype_name, "threads": threads, "notes": notes}
    row["pass"] = "forward+backward" if backward else "forward"
    row["milliseconds"] = {name: 1e3 * seconds for name, seconds in times.items()}
    row |= {"gflops": 2e-9 * rate, "share_of_gemm": rate * times["gemm"] / 1024**3}
    static = min((t for name, t in times.items() if name.startswith("depthwise")), default=None)
    row |= {"times_depthwise": times["elsa"] / static if static else None}
    for name in ("unfold", "flex"):
        row[f"faster_than_{name}"] = times[name] / times["elsa"] if name in times else None
    row["extra_megabytes"] = None
    if not backward and (peak := peak_extra_memory(calls["elsa"])) is not None:
        output = batch * shape.height * shape.width * shape.channels * dtype.itemsize
        row["extra_megabytes"] = max(0, peak - output) / 2**20
    return row


# ---- report --------------------------------------------------------------------------------------------------------

COLUMNS = (
    ("shape", lambda r: r["name"]),
    ("map", lambda r: f"{r['batch']}×{r['height']}×{r['width']}×{r['channels']}"),
    ("K", lambda r: str(r["kernel"])),
    ("pass", lambda r: {"forward": "fwd", "forward+backward": "fwd+bwd"}[r["pass"]]),
    ("type", lambda r: r["dtype"]),
    ("thr", lambda r: str(r["threads"])),
    ("ms", lambda r: f"{r['milliseconds']['elsa']:.2f}"),
    ("GFLOP/s", lambda r: f"{r['gflops']:.0f}"),
    ("of GEMM", lambda r: f"{r['share_of_gemm']:.0%}"),
    ("× depthwise", lambda r: number(r["times_depthwise"], "{:.2f}")),
    ("unfold/elsa", lambda r: number(r["faster_than_unfold"], "{:.0f}")),
    ("flex/elsa", lambda r: number(r["faster_than_flex"], "{:.1f}")),
    ("extra MB", lambda r: number(r["extra_megabytes"], "{:.1f}")),
)


def number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def line(cells: list[str], widths: list[int]) -> str:
    return "| " + " | ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)) + " |"


def draw(rows: list[dict], path: Path) -> None:
    """Bars of the times relative to the depthwise convolution, or of the milliseconds where that was left out."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    relative = all(row["times_depthwise"] for row in rows)
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.28 * len(rows)), layout="constrained")
    labels = [f"{r['name']}  {r['pass']}  {r['dtype']}  {r['threads']} thr" for r in rows]
    values = [r["times_depthwise"] if relative else r["milliseconds"]["elsa"] for r in rows]
    colours = ["#4477aa" if r["pass"] == "forward" else "#cc6677" for r in rows]
    axes.barh(labels[::-1], values[::-1], color=colours[::-1])
    if relative:
        axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time relative to PyTorch's depthwise convolution" if relative else "milliseconds")
    axes.set_title(f"ELSA attention, batch {rows[0]['batch']}, {rows[0]['backend']}")
    figure.savefig(path, dpi=150)


def benchmark_operator(options: argparse.Namespace) -> None:
    rows, widths = [], [max(len(title), 18 if title in ("map", "shape") else 7) for title, _ in COLUMNS]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {json.dumps(backend_info())}")
    print(line([title for title, _ in COLUMNS], widths))
    print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    shapes = [shape for group in options.shapes for shape in GROUPS[group]]
    for threads in options.threads:
        for dtype in options.dtypes:
            for shape in shapes:
                for backward in [name == "backward" for name in options.passes]:
                    row = measure(shape, dtype, backward, threads, options) | {"backend": options.backend}
                    rows.append(row)
                    print(line([cell(row) for _, cell in COLUMNS], widths), flush=True)
                    for note in row["notes"]:
                        print(f"  {shape.name}: {note}")
    options.output.mkdir(parents=True, exist_ok=True)
    info = {"torch": torch.__version__, "backends": backend_info(), "cpus": os.cpu_count(), "rows": rows}
    (options.output / "operator.json").write_text(json.dumps(info, indent=1) + "\n")
    draw(rows, options.output / "operator.png")
    print(f"wrote {options.output / 'operator.json'} and {options.output / 'operator.png'}")


# ---- command line --------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def subset(allowed: dict | tuple, everything: bool = False) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = list(allowed) if everything and text == "all" else [name for name in text.split(",") if name]
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(allowed)}")
        if not names:
            raise argparse.ArgumentTypeError(f"name at least one of {', '.join(allowed)}")
        return names

    return parse


def at_least(kind: type, least: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not value >= least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return value

    return parse


def thread_counts(text: str) -> list[int]:
    everything = torch.get_num_threads()
    return list(dict.fromkeys(everything if part == "all" else at_least(int, 1)(part) for part in text.split(",")))


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, parser_class=Parser)
    op = verbs.add_parser("op", help="the operator")
    add = op.add_argument
    groups = f"groups of shapes, or all: {', '.join(GROUPS)} (default {','.join(DEFAULT_GROUPS)})"
    add("--shapes", type=subset(GROUPS, True), default=list(DEFAULT_GROUPS), metavar="A,B", help=groups)
    beside = f"of {', '.join(CONTESTANTS)}; flex compiles for each shape (default unfold,depthwise)"
    add(
        "--contestants",
        type=subset((*CONTESTANTS, "none")),
        default=["unfold", "depthwise"],
        metavar="A,B",
        help=beside,
    )
    passes = "forward, backward (= forward and backward together), or both (default)"
    add("--passes", type=subset(("forward", "backward")), default=["forward", "backward"], metavar="A,B", help=passes)
    add("--dtypes", type=subset(DTYPES), default=list(DTYPES), metavar="A,B", help="fp32, bf16 (default both)")
    add("--threads", type=thread_counts, default="1,all", metavar="N,all", help="(default 1,all)")
    add("--batch", type=at_least(int, 1), default=2)
    add("--seconds", type=at_least(float, 0.0), default=0.3, help="per contestant and row (default 0.3)")
    add("--memory", type=at_least(int, 0), default=4, help="GiB that the unfold formula may take (default 4)")
    add("--backend", choices=("auto", "cpu", "reference"), default="auto")
    add("--output", type=Path, default=Path("runs/benchmark"), help="folder for operator.json and .png")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    benchmark_operator(parse_arguments(sys.argv[1:]))
