"""What runs left in their folders, read for comparison; whatever is missing or damaged there is told, never fatal."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from elsa.core import ConfigError, DataError, make_folder, write_json, write_text
from elsa.engine import read_log
from elsa.engine.logbook import LOG_NAME

TASKS = {"mmdet": "detection", "mmseg": "segmentation"}  # by the scope of a recipe
COLUMNS = ("run", "task", "model", "state", "metric", "best", "last", "steps", "hours", "images_per_s", "data_wait",
           "memory_gb")  # fmt: skip
TABLES = (".csv", ".json")
DEEPEST = 3  # levels below a folder in which runs are looked for


@dataclass
class Run:
    """One run.

    Attributes:
        name: the part of its path that tells it from the others.
        train, evaluated: records of its log, in the order of steps.
        total_steps: of its plan; 0 where that is not known.
        notes: what is not as it should be.
    """

    folder: Path
    name: str = ""
    task: str = "unknown"
    model: str = "unknown"
    metric: str = ""
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluated: list[dict[str, Any]] = field(default_factory=list)
    total_steps: int = 0
    finished: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return max((record["step"] for record in (*self.train, *self.evaluated)), default=0)

    @property
    def state(self) -> str:
        if self.finished:
            return "finished"
        if not self.steps:
            return "no log"
        return f"step {self.steps} of {self.total_steps}" if self.total_steps else f"step {self.steps}"

    def values(self, name: str, kind: str = "train") -> list[float]:
        """A number of each record; NaN where it is missing."""
        return [number(record.get(name)) for record in (self.train if kind == "train" else self.evaluated)]

    def row(self, metric: str) -> dict[str, Any]:
        """What the table says of it; None where that is not known."""
        scores = [score for score in self.values(metric, "eval") if math.isfinite(score)]
        elapsed = [seconds for seconds in self.values("elapsed_s") if math.isfinite(seconds)]
        known = {name: [value for value in self.values(name) if math.isfinite(value)]
                 for name in ("images_per_s", "data_wait", "memory_gb")}  # fmt: skip
        return {
            "run": self.name,
            "task": self.task,
            "model": self.model,
            "state": self.state,
            "metric": metric,
            "best": max(scores, default=None),
            "last": scores[-1] if scores else None,
            "steps": self.steps,
            "hours": max(elapsed) / 3600 if elapsed else None,
            "images_per_s": statistics.median(known["images_per_s"]) if known["images_per_s"] else None,
            "data_wait": statistics.mean(known["data_wait"]) if known["data_wait"] else None,
            "memory_gb": max(known["memory_gb"], default=None),
        }


def whole_name(names: Sequence[str], wanted: str) -> str:
    """The metric of the evaluations' ``names`` that is called so, or ends so: itself, else the most frequent; "" where
    there is none."""
    matching = [name for name in names if name == wanted or name.endswith((f"/{wanted}", f"_{wanted}"))]
    return min(set(matching), key=lambda name: (name != wanted, -matching.count(name), name), default="")


def number(value: Any) -> float:
    """NaN for what is no number."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def find_runs(places: Sequence[Path]) -> list[Run]:
    """The runs in these folders or below them, each once, in the order given.

    Raises:
        ConfigError: a place that is not there.
        DataError: no run anywhere.
    """
    folders: dict[Path, None] = {}
    for place in places:
        if not place.is_dir():
            raise ConfigError(f"{place} is no folder: name runs, or a folder that holds some")
        found = list(_below(place, DEEPEST))
        folders.update(dict.fromkeys(folder.resolve() for folder in found or [place]))
    runs = [read_run(folder) for folder in folders]
    if not any(run.train or run.evaluated for run in runs):
        told = "; ".join(f"{run.folder}: {'; '.join(run.notes)}" for run in runs[:3])
        raise DataError(f"no run with a log is there ({told})")
    for run, name in zip(runs, _names([run.folder for run in runs]), strict=True):
        run.name = name
    return runs


def _below(folder: Path, levels: int) -> Iterator[Path]:
    """Folders with a log, or with a plan whose log is missing."""
    if (folder / LOG_NAME).exists() or (folder / "plan.json").exists():
        yield folder
    elif levels:
        with suppress(OSError):
            for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
                yield from _below(inner, levels - 1)


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as it takes to tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return names


def read_run(folder: Path) -> Run:
    run = Run(folder)
    try:
        records = read_log(folder)
        lines = len((folder / LOG_NAME).read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError as error:
        run.notes.append(f"{LOG_NAME} cannot be read ({error.strerror})")
        records, lines = [], 0
    good = [record for record in records if type(record["step"]) is int and record["kind"] in ("train", "eval")]
    if lines > len(good):
        run.notes.append(f"{lines - len(good)} of {lines} lines of {LOG_NAME} are damaged and left out")
    if not good and not run.notes:
        run.notes.append(f"{LOG_NAME} is empty")
    good.sort(key=lambda record: record["step"])
    run.train = [record for record in good if record["kind"] == "train"]
    run.evaluated = [record for record in good if record["kind"] == "eval"]
    plan, summary = _json(folder / "plan.json", run), _json(folder / "summary.json", run)
    run.finished = bool(summary)
    run.total_steps = plan["total_steps"] if isinstance(plan.get("total_steps"), int) else 0
    _read_recipe(run)
    for name in ("task", "model", "metric"):
        if isinstance(summary.get(name), str):
            setattr(run, name, summary[name])
    return run


def _json(path: Path, run: Run) -> dict[str, Any]:
    """A file of a run that it may not have yet."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        run.notes.append(f"{path.name} is damaged")
        return {}
    return content


def _read_recipe(run: Run) -> None:
    """Task, model and metric by the recipe that the run saved; nothing of it is executed."""
    try:
        if (path := run.folder / "config.yaml").exists():
            model = yaml.safe_load(path.read_text(encoding="utf-8"))["MODEL"]["NAME"]
            run.task, run.model, run.metric = "classification", str(model), "top1"
        elif (path := run.folder / "config.py").exists():
            values = dict(_assigned(ast.parse(path.read_text(encoding="utf-8"))))
            run.task = TASKS.get(values.get("default_scope", ""), "unknown")
            run.model, run.metric = values.get("model.type", "unknown"), values.get("run.metric", "")
    except (OSError, ValueError, KeyError, TypeError, SyntaxError, RecursionError, yaml.YAMLError):
        run.notes.append(f"{path.name} is damaged")


def _assigned(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Strings that a recipe assigns: to ``name``, and in ``name = dict(key="…")`` to ``name.key``."""
    for node in tree.body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        name, value = node.targets[0].id, node.value
        parts = [(name, value)]
        if isinstance(value, ast.Call):
            parts = [(f"{name}.{keyword.arg}", keyword.value) for keyword in value.keywords]
        for path, part in parts:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield path, part.value


# ---- the table -----------------------------------------------------------------------------------------------------


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines for people."""
    forms = {
        "best": ".4g",
        "last": ".4g",
        "hours": ".2f",
        "images_per_s": ".4g",
        "data_wait": ".0%",
        "memory_gb": ".1f",
    }
    heads = {"images_per_s": "img/s", "data_wait": "wait", "memory_gb": "GB"}
    cells = [[heads.get(name, name) for name in COLUMNS]]
    for row in rows:
        cells.append(["–" if (value := row[name]) is None else format(value, forms.get(name, "")) for name in COLUMNS])
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    for line in cells:
        yield "  ".join(
            text.ljust(width) if column < 5 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """As CSV or JSON, by the name's ending."""
    make_folder(path.parent, "--table")
    if path.suffix == ".json":
        write_json(path, list(rows))
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
