"""What a study asks: a recipe, its variants, the seeds, and the claims that are put to the test."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from elsa.core import ConfigError, did_you_mean
from elsa.engine import Recipe

from ..command import CONFIGS, Task, find_recipe, read

KEYS = ("TITLE", "RECIPE", "SET", "SEEDS", "METRIC", "BASELINE", "VARIANTS", "CLAIMS")
NEEDED = ("RECIPE", "SEEDS", "BASELINE", "VARIANTS")
SEED = {"classification": "TRAIN.SEED", "detection": "randomness.seed", "segmentation": "randomness.seed"}


@dataclass(frozen=True)
class Claim:
    """That one variant is better than another, in words."""

    claim: str
    better: str
    than: str


@dataclass(frozen=True)
class Variant:
    """What differs from the recipe, the recipe with it, and its input, parameters and multiply-adds."""

    name: str
    overrides: tuple[str, ...]
    recipe: Recipe
    size: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A study as its file has it, checked.

    Attributes:
        name, text: of the file.
        overrides: of every variant.
        metric: a number of the evaluations; "" is what the best checkpoint has most of.
    """

    name: str
    text: str
    title: str
    task: Task
    recipe: Path
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    metric: str
    baseline: str
    variants: tuple[Variant, ...]
    claims: tuple[Claim, ...]

    def settings(self, variant: Variant, seed: int) -> list[str]:
        """KEY=VALUE of a run."""
        return [*self.overrides, *variant.overrides, f"{SEED[self.task.name]}={seed}"]


def shipped_studies() -> dict[str, Path]:
    return {file.stem: file for file in sorted((CONFIGS / "studies").glob("*.yaml"))}


def find_study(given: Path) -> Path:
    """A file, or the name of a shipped study.

    Raises:
        ConfigError: neither; the message has the nearest name, or all.
    """
    if given.is_file():
        return given
    shipped = shipped_studies()
    if str(given) in shipped:
        return shipped[str(given)]
    hint = did_you_mean(str(given), shipped) or f"; shipped are {', '.join(shipped)}"
    raise ConfigError(f"{given} is no file and no shipped study{hint}")


def read_study(path: Path) -> Study:
    """Reads a study, and builds each variant's network from shapes alone: mistakes are known before anything runs.

    Raises:
        ConfigError: a key, value or override that cannot be, variants that are one, or a recipe with a mistake.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is no study in YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is no study: it must be KEY: VALUE, with {', '.join(NEEDED)}")
    for key in content:
        if key not in KEYS:
            hint = did_you_mean(str(key), KEYS) or f"; there are {', '.join(KEYS)}"
            raise ConfigError(f"{path}: {key} is no key{hint}")
    for key in NEEDED:
        if key not in content:
            raise ConfigError(f"{path} lacks {key}; it needs {', '.join(NEEDED)}")
    recipe = find_recipe(Path(_string(path, "RECIPE", content["RECIPE"])))
    common, seeds = _overrides(path, "SET", content.get("SET") or []), _seeds(path, content["SEEDS"])
    variants = []
    if not isinstance(content["VARIANTS"], dict) or len(content["VARIANTS"]) < 2:
        raise ConfigError(f"{path}: VARIANTS must be NAME: [KEY=VALUE, …], two or more")
    for name, given in content["VARIANTS"].items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w+-][\w+.-]*", name):
            raise ConfigError(f"{path}: VARIANTS {name!r} must be letters, digits and + - _ ., for it names a folder")
        own = _overrides(path, f"VARIANTS {name}", given or [])
        try:
            task, resolved = read(recipe, [*common, *own])
            size = task.count(resolved)
        except ConfigError as error:
            raise ConfigError(f"{path}: variant {name}: {error}") from error
        if SEED[task.name] in (one.partition("=")[0] for one in (*common, *own)):
            raise ConfigError(f"{path}: {SEED[task.name]} is set by SEEDS, and SET or VARIANTS {name} has it too")
        for other in variants:
            if other.recipe.values == resolved.values:
                raise ConfigError(f"{path}: the variants {other.name} and {name} are the same")
        variants.append(Variant(name, own, resolved, size))
    names = [variant.name for variant in variants]
    return Study(
        name=path.stem,
        text=text,
        title=_string(path, "TITLE", content.get("TITLE", path.stem)),
        task=task,
        recipe=recipe,
        overrides=common,
        seeds=seeds,
        metric=_string(path, "METRIC", content.get("METRIC", "")),
        baseline=_variant(path, "BASELINE", content["BASELINE"], names),
        variants=tuple(variants),
        claims=tuple(_claims(path, content.get("CLAIMS") or [], names)),
    )


def _string(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{path}: {key} must be text, got {value!r}")
    return value


def _seeds(path: Path, given: Any) -> tuple[int, ...]:
    good = isinstance(given, list) and given and all(type(seed) is int and 0 <= seed < 2**31 for seed in given)
    if not good or len(set(given)) < len(given):
        raise ConfigError(f"{path}: SEEDS must be a list of different whole numbers from 0 on, got {given!r}")
    return tuple(given)


def _overrides(path: Path, key: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or not all(isinstance(one, str) and "=" in one for one in given):
        raise ConfigError(f"{path}: {key} must be a list of KEY=VALUE, got {given!r}")
    return tuple(given)


def _variant(path: Path, key: str, given: Any, names: Sequence[str]) -> str:
    if given not in names:
        hint = did_you_mean(str(given), names) or f"; there are {', '.join(names)}"
        raise ConfigError(f"{path}: {key} {given} is no variant{hint}")
    return str(given)


def _claims(path: Path, given: Any, names: Sequence[str]) -> list[Claim]:
    if not isinstance(given, list):
        raise ConfigError(f"{path}: CLAIMS must be a list of {{claim, better, than}}")
    claims = []
    for one in given:
        if not isinstance(one, Mapping) or set(one) != {"claim", "better", "than"}:
            raise ConfigError(f"{path}: each of CLAIMS has claim, better and than, got {one!r}")
        better, than = (_variant(path, f"CLAIMS {key}", one[key], names) for key in ("better", "than"))
        if better == than:
            raise ConfigError(f"{path}: CLAIMS compares {better} with itself")
        claims.append(Claim(_string(path, "CLAIMS claim", one["claim"]), better, than))
    return claims
