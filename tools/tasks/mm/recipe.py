"""Recipes of detection and segmentation: mmengine configurations of which every key has an effect, or is refused."""

from __future__ import annotations

import ast
import codecs
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from elsa.core import ConfigError, did_you_mean
from elsa.engine import Recipe

from .keys import MAY_CHANGE, READ, RUNNER_ONLY, check_keys
from .overrides import apply_overrides
from .values import read_values_only, refuse_code, refuse_pickles

# In the file that is saved, for mmseg's inference_model, which looks there.
PIPELINE = 'test_pipeline = test_dataloader["dataset"]["pipeline"]\n'


def read_recipe(path: Path, overrides: Iterable[str]) -> Recipe:
    """The recipe of a file, which is executed, with ``--set`` applied.

    Raises:
        ConfigError: no such file, not a configuration, or a key that has no effect.
    """
    read_values_only()
    try:
        if not path.is_file():
            near = did_you_mean(path.name, (other.name for other in path.parent.glob("*.py")))
            raise ConfigError(f"{path} does not exist{near}")
        with path.open("rb") as stream:
            marked = stream.read(3) == codecs.BOM_UTF8
        config = None if marked else Config.fromfile(path)
    except ConfigError:
        raise
    except Exception as error:  # the file is code, and may raise anything
        raise ConfigError(f"{path} is no mmengine configuration: {_first_line(error)}") from error
    if config is None:
        raise ConfigError(f"{path} begins with a byte-order mark; save it as UTF-8 without")
    return _recipe(config, str(path), overrides)


def restore_recipe(content: Mapping[str, Any], origin: str, overrides: Iterable[str], ours: bool = False) -> Recipe:
    """The recipe that a checkpoint holds as values, with ``--set`` applied; nothing of it is executed. Data that the
    code draws are drawn for a file of ours alone.

    Args:
        content: of a checkpoint.
        origin: its path.
        ours: whether it comes with this package.

    Raises:
        ConfigError: none there, or one that could only be read by executing something.
    """
    values = content.get("recipe")
    if isinstance(values, str):  # of a .safetensors file, in words
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            values = ast.literal_eval(values)
    if not isinstance(values, dict):
        raise ConfigError(f"{origin} holds no recipe; name CONFIG before it")
    drawn = values.get("embedded") if ours else None  # its type is a kind of data, not a name of code
    values = {**values, "embedded": None}
    refuse_code(values, origin)
    values["embedded"] = drawn
    read_values_only()
    try:
        import_modules_from_strings(**(values.get("custom_imports") or {}))
        config = Config(values)
    except Exception as error:
        raise ConfigError(f"{origin}: its recipe is damaged ({_first_line(error)}); name CONFIG") from error
    return _recipe(config, origin, overrides)


def stored(config: Config) -> dict[str, Any]:
    """What ``restore_recipe`` takes: nested plain containers."""
    return _plain(config.to_dict())


def _recipe(config: Config, origin: str, overrides: Iterable[str]) -> Recipe:
    try:
        apply_overrides(config, overrides, (*READ, *RUNNER_ONLY))
        check_keys(config, origin)
        for name in [name for name in config if name not in READ]:
            config.pop(name)
        values = config.to_dict()
        refuse_pickles(values)
        text = config.pretty_text.rstrip("\n") + "\n"
        if "pipeline" in config.test_dataloader.dataset:
            text += PIPELINE
        return Recipe(config, "config.py", text, dict(_flat(values)), MAY_CHANGE)
    except RecursionError as error:
        raise ConfigError(f"{origin} has too many levels, or leads back to itself") from error
    except SyntaxError as error:
        raise ConfigError(f"{origin} has values that no file can hold: {_first_line(error)}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
    return value if isinstance(value, (int, float, str, bool, type(None))) else repr(value)


def _flat(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, plain value) of every setting."""
    if isinstance(node, (Mapping, list, tuple)) and node:
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _flat(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (Mapping, list, tuple)):
        yield where, {} if isinstance(node, Mapping) else []
    else:
        yield where, _plain(node)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip("'\"").splitlines()), "") or type(error).__name__
