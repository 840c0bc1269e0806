"""The shipped recipes with their figures: ``configs/zoo.yaml``, what is computed of it, and whether it is complete."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from elsa.core import ConfigError, Progress, did_you_mean, logger, write_text

from .command import CONFIGS, TASKS, read, shipped_recipes
from .zoo_tables import DOCUMENTS, replace_tables

FIGURES = CONFIGS / "zoo.yaml"
COMPUTED = ("input", "parameters", "multiply_adds")
HEADER = """\
# Figures of the shipped recipes. `elsa zoo --update` computes input (height, width), parameters and multiply_adds (of
# one such image; of a detector or segmentor those of its backbone), and writes the tables of README.md and docs/zoo.md.
# By hand: published, the authors' figures (accuracies in per cent, millions of parameters, billions of multiply-adds);
# measured, what `elsa evaluate` says of our own run, model: the shipped weights that it says it of.
"""
Row = dict[str, Any]


def read_figures() -> dict[str, Row]:
    """The rows of the file as they are: {recipe: row}."""
    return yaml.safe_load(FIGURES.read_text(encoding="utf-8"))


def read_zoo(task: str | None = None) -> dict[str, Row]:
    """The rows of all recipes, or of one task, in the order of the tasks and names.

    Raises:
        ConfigError: a recipe has no row, a row no recipe, or something was not computed.
    """
    rows, recipes = read_figures(), shipped_recipes()
    _refuse_strays(rows, recipes)
    for name in recipes:
        lacking = [key for key in COMPUTED if key not in rows.get(name, {})]
        if lacking:
            raise ConfigError(f"{FIGURES} has no {', '.join(lacking)} of {name}: elsa zoo --update computes it")
    return {name: rows[name] for name, path in recipes.items() if task in (None, path.parent.name)}


def _refuse_strays(rows: Mapping[str, Row], recipes: Mapping[str, Path]) -> None:
    if strays := [name for name in rows if name not in recipes]:
        raise ConfigError(f"{FIGURES} has {strays[0]}, which is no shipped recipe{did_you_mean(strays[0], recipes)}")


def compute(path: Path) -> Row:
    """Input, parameters and multiply-adds of a recipe, from shapes alone."""
    task, recipe = read(path, [])
    return task.count(recipe)


def update() -> None:
    """Computes what is computed, and writes the file and the documents' tables.

    Raises:
        ConfigError: a row without a recipe; the packages of detection and segmentation are missing.
        DataError: a document has no place for the tables.
    """
    rows, recipes = read_figures(), shipped_recipes()
    _refuse_strays(rows, recipes)
    found: dict[str, Row] = {}
    progress = Progress(len(recipes), "counting", "recipes", shown=True)
    try:
        for name, path in recipes.items():
            kept = rows.get(name, {})
            by_hand = {key: dict(kept.get(key) or {}) for key in ("published", "measured")}
            found[name] = {"task": path.parent.name, **by_hand, **compute(path)}
            progress.advance(1)
    finally:
        progress.close()
    assert {row["task"] for row in found.values()} <= set(TASKS)
    text = yaml.safe_dump(found, sort_keys=False, default_flow_style=None, width=200, allow_unicode=True)
    write_text(FIGURES, HEADER + text)
    logger.info("%s has %d recipes", FIGURES, len(found))
    for name in DOCUMENTS:
        path = CONFIGS.parent / name
        if path.is_file():  # in a checkout; an installation has none
            write_text(path, replace_tables(path.read_text(encoding="utf-8"), name, found))
            logger.info("%s has its tables", path)
