"""Times train steps and evaluation of whole networks, as they are and compiled, side by side in one run."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from elsa.core import ConfigError, check_writable, did_you_mean, seed_everything
from elsa.engine import Precision
from elsa.engine.compiling import compile_errors, compile_parts
from elsa.models import VARIANTS

from .machine import describe, write_results
from .measure import DTYPES, cpu_seconds, gpu_seconds, shortest
from .subjects import CLASSES, inference, random_batch, train_step

COLUMNS = ("model", "pass", "type", "eager ms", "compiled ms", "compiled/eager", "compiling s")
FORMS = ("{:>32}", "{:>5}", "{:>4}", "{:>10}", "{:>11}", "{:>14}", "{:>11}")


@dataclass(frozen=True)
class StepSettings:
    """What is measured, and how.

    Attributes:
        models: timm's names. size: side of the images in pixels.
        threads: of a CPU. seconds: for each contestant.
    """

    device: torch.device
    models: tuple[str, ...]
    dtypes: tuple[str, ...]
    batch: int
    size: int
    threads: int
    seconds: float
    output: Path

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("--models: name at least one of timm.list_models()")
        for name in self.models:
            if not timm.is_model(name):
                near = did_you_mean(name, [*VARIANTS, *timm.list_models()])
                raise ConfigError(f"--models {name!r} is no model{near}")


def benchmark_step(settings: StepSettings) -> None:
    """Measures each model and type, prints a table, and writes step.json into the output folder.

    Raises:
        ConfigError: the folder cannot be written, or a model takes no such images.
        TrainingError: a model cannot be compiled here.
    """
    check_writable(settings.output)
    torch.set_num_threads(settings.threads)
    info = {**describe(settings.device), "threads": settings.threads, "batch": settings.batch, "size": settings.size}
    print(", ".join(f"{key}: {value}" for key, value in info.items()))
    print(_line(COLUMNS))
    rows = []
    for dtype, model in itertools.product(settings.dtypes, settings.models):
        for row in measure_model(model, dtype, settings):
            rows.append(row)
            figures = (f"{row['eager_ms']:.1f}", f"{row['compiled_ms']:.1f}", f"{row['ratio']:.2f}")
            cells = (row["model"], row["pass"], row["dtype"], *figures, f"{row['compile_s']:.0f}")
            print(_line(cells), flush=True)
    write_results(settings.output, "step", {**info, "rows": rows})


def measure_model(name: str, dtype: str, settings: StepSettings) -> list[dict[str, Any]]:
    """A row of the train step and one of evaluation; both models take turns and start from the same weights."""
    seed_everything(0, "benchmark")
    try:
        eager = timm.create_model(name, num_classes=CLASSES, img_size=settings.size).to(settings.device)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"--models {name} with --size {settings.size}: {error}") from error
    networks = {"eager": eager, "compiled": copy.deepcopy(eager)}
    compile_parts([networks["compiled"]])
    batch = random_batch(settings.batch, (settings.size, settings.size), settings.device)
    precision = Precision(settings.device.type, None if dtype == "fp32" else DTYPES[dtype])
    makers = {"train": train_step, "eval": inference}
    clock = gpu_seconds if settings.device.type == "cuda" else cpu_seconds
    rows = []
    for which, make in makers.items():
        calls = {how: make(network, batch, precision) for how, network in networks.items()}
        calls["eager"]()
        began = time.perf_counter()
        with compile_errors():
            calls["compiled"]()
        compiling = time.perf_counter() - began
        best = shortest(calls, settings.seconds, clock)
        rows.append({"model": name, "pass": which, "dtype": dtype, "eager_ms": 1e3 * best["eager"],
                     "compiled_ms": 1e3 * best["compiled"], "ratio": best["compiled"] / best["eager"],
                     "compile_s": compiling})  # fmt: skip
    return rows


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(form.format(cell) for form, cell in zip(FORMS, cells, strict=True)) + " |"
