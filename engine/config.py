"""Configuration of classification: yacs nodes behind a typed table (see schema.py), frozen once resolved."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from elsa.core import ConfigError, did_you_mean

from .plan import Recipe
from .schema import SCHEMA, Key, check_together


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> CfgNode:
    """Defaults, then the file with its BASE files, then ``KEY=VALUE`` overrides; checked and frozen.

    Raises:
        ConfigError: a missing file, bad YAML, an unknown or duplicate key, a wrong type or a value out of range.
    """
    return _resolve(_read_file(Path(path)), str(path), overrides)


def _resolve(given: Mapping[str, Any], origin: str, overrides: Iterable[str]) -> CfgNode:
    values = {name: key.default for name, key in SCHEMA.items()}
    for name, value in given.items():
        _assign(values, name, value, origin)
    for name, text in split_overrides(overrides).items():
        try:
            value = yaml.load(text, _Loader)
        except Misread as error:
            raise ConfigError(f"--set {name}={text:.60}: {error}") from error
        except NOT_YAML as error:
            raise ConfigError(f"--set {name}={text:.60} is no YAML value ({_first_line(error)})") from error
        _assign(values, name, value, origin="--set")
    for problem in check_together(values):
        raise ConfigError(f"{origin}: {problem}")
    return _to_node(values)


def split_overrides(overrides: Iterable[str]) -> dict[str, str]:
    """{KEY: VALUE as text} of ``KEY=VALUE`` each; of a key given twice the last.

    Raises:
        ConfigError: no KEY=VALUE.
    """
    found: dict[str, str] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ConfigError(f"--set needs KEY=VALUE, got {override!r}")
        found[name] = text
    return found


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """``load_config`` as a recipe of classification."""
    return _as_recipe(load_config(path, overrides))


def restore_recipe(values: Mapping[str, Any], origin: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of classification that a checkpoint holds as values, checked as a file's are.

    Args:
        values: {"SECTION.KEY": value}.
        origin: the checkpoint, for messages.

    Raises:
        ConfigError: see ``load_config``.
    """
    return _as_recipe(_resolve({str(name): value for name, value in values.items()}, origin, overrides))


def _as_recipe(config: CfgNode) -> Recipe:
    may_change = tuple(name for name, key in SCHEMA.items() if key.may_change)
    return Recipe(config, "config.yaml", dump(config), plain(config), may_change)


def flatten(config: CfgNode) -> dict[str, Any]:
    """{"SECTION.KEY": value}, in the order of the table."""
    return {name: config[section][key] for name in SCHEMA for section, key in [name.split(".")]}


def dump(config: CfgNode, comments: bool = False) -> str:
    """The configuration as YAML that ``load_config`` reads; with comments, the table's explanations beside it."""
    lines, section = [], ""
    for name, value in flatten(config).items():
        if name.split(".")[0] != section:
            section = name.split(".")[0]
            lines.append(f"{section}:")
        if comments:
            lines.append(f"  # {SCHEMA[name].describe()}")
        text = yaml.safe_dump(_plain(value), default_flow_style=True, width=10**6).removesuffix("...\n").strip()
        lines.append(f"  {name.split('.')[1]}: {text}")
    return "\n".join(lines) + "\n"


def plain(config: CfgNode) -> dict[str, Any]:
    """``flatten`` with containers that any checkpoint or JSON file can hold."""
    return {name: _plain(value) for name, value in flatten(config).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value


# What PyYAML raises for text that is none, beside its own errors: impossible dates, numbers, tags and depths.
NOT_YAML = (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError)


class Misread(Exception):
    """YAML that plain loaders take otherwise than people mean it."""


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice in one mapping, of which plain YAML keeps the last; 1:30, which it reads as 90; 010,
    which it reads as 8."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise Misread(f"the key in line {line} is no word")
            if key_node.value in seen:
                raise Misread(f"key {key_node.value!r} is given twice, in lines {seen[key_node.value]} and {line}")
            seen[key_node.value] = line
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text, is_float = str(node.value), node.tag.endswith(":float")
        number = super().construct_yaml_float(node) if is_float else super().construct_yaml_int(node)
        if ":" in text or re.fullmatch(r"[-+]?0[0-7_]+", text):
            where = f"line {node.start_mark.line + 1}: " if self.stream else ""
            raise Misread(
                f"{where}YAML reads {text} as {number}: write the number that is meant without "
                f"{':' if ':' in text else 'a 0 before it'}, or '{text}' in quotes for the word"
            )
        return number


for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _read_file(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """{"SECTION.KEY": value} of a file over its BASE files."""
    path = path.resolve()
    if path in chain:
        raise ConfigError(f"{path}: BASE leads back to itself through {chain[-1]}")
    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, _Loader)
    except FileNotFoundError as error:
        near = did_you_mean(path.name, (other.name for other in path.parent.glob("*.yaml")))
        named = f", named as BASE by {chain[-1]}" if chain else ""
        raise ConfigError(f"config {path} does not exist{named}{near}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    except Misread as error:
        raise ConfigError(f"{path}: {error}") from error
    except NOT_YAML as error:
        raise ConfigError(f"config {path} is no YAML: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"config {path} must be a mapping of sections, got {type(content).__name__}")

    given = content.pop("BASE", [])
    bases = [given] if isinstance(given, str) else given
    if not isinstance(bases, list) or not all(isinstance(base, str) and base.isprintable() for base in bases):
        raise ConfigError(f"{path}: BASE must be a file or a list of files, got {given!r}")
    values: dict[str, Any] = {}
    for base in bases:
        values.update(_read_file(path.parent / base, (*chain, path)))
    for section, entries in content.items():
        if section not in _sections():
            raise ConfigError(f"{path}: {_unknown(str(section))}")
        if not isinstance(entries, dict):
            raise ConfigError(f"{path}: section {section} must be a mapping of keys, got {entries!r}")
        for key, value in entries.items():
            name = f"{section}.{key}"
            if name not in SCHEMA:
                raise ConfigError(f"{path}: {_unknown(name)}")
            values[name] = value
    return values


def _assign(values: dict[str, Any], name: str, value: Any, origin: str) -> None:
    parent = ".".join(name.split(".")[:2])
    if name not in SCHEMA and parent in SCHEMA and isinstance(SCHEMA[parent].default, dict) and name.count(".") == 2:
        value, name = {**values[parent], name.split(".")[2]: value}, parent  # MODEL.KWARGS.lam=1
    if name not in SCHEMA:
        raise ConfigError(f"{origin}: {_unknown(name)}")
    try:
        values[name] = coerce(SCHEMA[name], value)
    except ValueError as error:
        raise ConfigError(f"{origin}: {name} {error}") from None


def coerce(key: Key, value: Any) -> Any:
    """The value as the key's type, checked against its range.

    Raises:
        ValueError: the message reads on after the key's name.
    """
    kind = type(key.default) if key.kind is None else key.kind
    if value is None and key.nullable:
        return None
    if (kind in (tuple, dict) or key.listed) and isinstance(value, str):
        value = _literal(value) if not key.listed or value.lstrip()[:1] in ("(", "[") else value
    if (kind is tuple or key.listed) and isinstance(value, (list, tuple)):
        return tuple(coerce(key.item(), item) for item in value)
    if kind is dict and isinstance(value, dict):
        _check_argument(value)
        return dict(value)
    value = _scalar(kind, value)
    if type(value) is not kind:
        none = f"; {key.none()}" if key.none() else ""
        expected = key.allowed() if key.listed else _article(kind)
        raise ValueError(f"must be {expected}, got {'null' if value is None else _short(value)}{none}")
    if key.choices and value not in key.choices:
        near = did_you_mean(value, map(str, key.choices))
        raise ValueError(f"must be one of {key.allowed()}, got {_short(value)}{near}")
    if isinstance(value, str) and ("\0" in value or not (value.strip() or key.empty)):
        raise ValueError(f"must be a name, got {_short(value)}: {key.help}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and not key.allows(value):
        raise ValueError(f"must be {key.range() or 'a finite number'}, got {_short(value)}{key.hints()}")
    return value


def _scalar(kind: type, value: Any) -> Any:
    """What people write for a value of that type, as that type; all else as it is."""
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 1e-3 as a string
        with suppress(ValueError):
            return float(value)
    if kind is float and type(value) is int:
        return float(value) if abs(value) < 2**1000 else math.inf  # whatever its sign, out of any range
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return value


def _check_argument(value: Any, where: str = "") -> None:
    """Raises ValueError unless an argument of the model is made of finite numbers, words, true, false and null."""
    if where.count(".") > 20:  # or without end, as YAML's aliases can be
        raise ValueError("has more than 20 levels")
    if isinstance(value, (dict, list, tuple)):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_argument(item, f"{where}.{name}")
    elif not isinstance(value, (bool, int, float, str, type(None))):
        raise ValueError(f"has {where.lstrip('.')} {_short(value)}: there may be numbers, words, lists and mappings")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"has {where.lstrip('.')} {value}: numbers must be finite")


def _short(value: Any) -> str:
    text = "a number of thousands of digits" if isinstance(value, int) and abs(value) > 10**1000 else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _article(kind: type) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
    return names.get(kind, "a list" if kind is tuple else "a mapping")


def _sections() -> list[str]:
    return list(dict.fromkeys(name.split(".")[0] for name in SCHEMA))


def _unknown(name: str) -> str:
    if "." not in name:
        leaf = next((f"; did you mean {key}?" for key in SCHEMA if key.endswith(f".{name}")), "")
        hint = did_you_mean(name, _sections()) or leaf
        return f"unknown section {name!r}{hint}; sections are {', '.join(_sections())}"
    same_leaf = [key for key in SCHEMA if key.split(".")[1] == name.split(".")[1]]
    hint = f"; did you mean {same_leaf[0]}?" if same_leaf else did_you_mean(name.upper(), SCHEMA, 0.5)
    return f"unknown key {name!r}{hint}"


def _to_node(values: dict[str, Any]) -> CfgNode:
    root = CfgNode()
    for name, value in values.items():
        section, key = name.split(".")
        if section not in root:
            root[section] = CfgNode()
        root[section][key] = value
    root.freeze()
    return root
