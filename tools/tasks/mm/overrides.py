"""``--set`` for recipes of detection and segmentation: one entry of a configuration, wherever it stands."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.config import Config

from elsa.core import ConfigError, did_you_mean
from elsa.engine import split_overrides
from elsa.engine.options import OPTIONS

from .keys import RUNNER_ONLY

# Keys that a recipe need not have.
ADDED = (
    *(f"run.{name}" for name in OPTIONS),
    *("optim_wrapper.clip_grad", "optim_wrapper.accumulative_counts", "train_cfg.save_steps"),
    *("pretrained", "pretrained_ignore", "embedded"),
)
FREE = ("embedded", "model_args")  # sections whose keys are arguments


def apply_overrides(config: Config, overrides: Iterable[str], read: Iterable[str]) -> None:
    """KEY=VALUE each, for keys that exist and are among those that are ``read``. ``data_root`` moves every path below
    it, but for ``embedded.root``.

    Raises:
        ConfigError: no such key, a helper variable whose value was copied before, or a value of another kind.
    """
    known = tuple(read)
    for name, text in split_overrides(overrides).items():
        _apply(config, name, _parse(name, text), text, known)


def _parse(name: str, text: str) -> Any:
    words = {"true": True, "false": False, "null": None, "none": None}
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError):  # a word; a set or dict of what cannot be in one
        return words.get(text.strip().lower(), text)
    except (RecursionError, MemoryError):
        raise ConfigError(f"--set {name}: the value has too many levels") from None


def _apply(config: Config, name: str, value: Any, text: str, read: tuple[str, ...]) -> None:
    if name == "data_root" and isinstance(config.get("data_root"), str):
        if not isinstance(value, str) or not value.strip():
            raise ConfigError(f"--set data_root must be a folder, got {text!r:.80}")
        return move_paths(config, config.data_root, value.rstrip("/") + "/")
    *parents, last = name.split(".")
    if (top := name.split(".")[0]) in config and top not in read:
        place = next((found for found in _places(config, config[top], read) if found != top), None)
        rest = name.removeprefix(top)
        there = f"set {place}{rest}, where its value was copied to" if place else "its value is used nowhere as a whole"
        raise ConfigError(f"--set {name} would have no effect: {top} is a helper variable of the file; {there}")
    if top in RUNNER_ONLY and top not in config:
        raise ConfigError(f"--set {name}: it is read by mmengine's Runner alone; here {RUNNER_ONLY[top]}")
    nodes: list[Any] = [config]
    for depth, part in enumerate(parents):
        nodes.append(_child(nodes[-1], part, ".".join(parents[:depth])))
    before = _child(nodes[-1], last, ".".join(parents))
    _check_kind(name, before, value, text)
    # A tuple has to be made anew, and so its parent gets another entry, and so on.
    for node, part in zip(reversed(nodes), reversed([*parents, last]), strict=True):
        if not isinstance(node, tuple):
            node[int(part) if isinstance(node, list) else part] = value
            return None
        value = (*node[: int(part)], value, *node[int(part) + 1 :])
    return None


def _check_kind(name: str, before: Any, value: Any, text: str) -> None:
    numeric = isinstance(before, (int, float)) and not isinstance(before, bool)
    if numeric and (isinstance(value, (str, bool)) or (isinstance(before, int) and isinstance(value, float))):
        kind = "an integer" if isinstance(before, int) else "a number"
        raise ConfigError(f"--set {name} must be {kind}, got {text!r:.80}")
    if isinstance(before, bool) and not isinstance(value, bool):
        raise ConfigError(f"--set {name} must be true or false, got {text!r:.80}")
    if isinstance(before, dict) and before and not isinstance(value, dict) and value is not None:
        raise ConfigError(f"--set {name} is a section with {', '.join(map(str, before))}; set one of its keys")


def _child(node: Any, part: str, where: str) -> Any:
    """The entry of a dictionary or list of a configuration."""
    full = ".".join(filter(None, (where, part)))
    if isinstance(node, (list, tuple)):
        if part.isdecimal() and int(part) < len(node):
            return node[int(part)]
        raise ConfigError(f"--set {full}: {where} is a list of {len(node)} entries")
    if isinstance(node, (dict, Config)) and (where.endswith(FREE) or full in ADDED):
        return node.get(part)  # what takes them refuses names that it does not know
    if not isinstance(node, (dict, Config)) or part not in node:
        keys = [str(key) for key in node] if isinstance(node, (dict, Config)) else []
        there = did_you_mean(part, keys) or f"; there is {', '.join(keys[:8]) or 'nothing below it'}"
        raise ConfigError(f"--set {full} is no key of the configuration{there}")
    return node[part]


def _places(node: Any, wanted: Any, read: tuple[str, ...], where: str = "") -> Iterator[str]:
    """Where in a configuration a value stands."""
    items = node.items() if isinstance(node, (dict, Config)) else enumerate(node)
    for key, value in items:
        place = f"{where}.{key}" if where else str(key)
        if value == wanted and place.split(".")[0] in read:
            yield place
        if isinstance(value, (dict, list, tuple)):
            yield from _places(value, wanted, read, place)


def move_paths(config: Config, old: str, new: str) -> None:
    """Replaces the folder of the data in every path of the configuration, but for where embedded data are drawn."""

    def moved(value: Any) -> Any:
        if isinstance(value, str):
            return new + value.removeprefix(old) if value.startswith(old) else value
        if isinstance(value, dict):
            for key, item in value.items():
                value[key] = moved(item)
            return value
        return type(value)(moved(item) for item in value) if isinstance(value, (list, tuple)) else value

    for name in list(config):
        if name != "embedded":
            config[name] = moved(config[name])
