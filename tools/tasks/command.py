"""What all verbs share: the recipe that is named, options by task, and how a mistake is told."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

import elsa.core
from elsa.core import ConfigError, DataError, did_you_mean, logger
from elsa.core.archive import checkpoint_file
from elsa.data import image_files, left_out
from elsa.engine import Recipe, Runtime
from elsa.models import read_checkpoint

from .outlook import Outlook
from .parts import Training

# Shipped recipes, beside the packages in a checkout and in an installation alike.
CONFIGS = Path(elsa.core.__file__).resolve().parents[1] / "configs"
TASKS = {"classification": "Classification", "detection": "Detection", "segmentation": "Segmentation"}
SCOPES = {"mmdet": "detection", "mmseg": "segmentation"}
DENSE_PACKAGES = ("mmengine", "mmcv", "mmdet", "mmseg", "pycocotools")
RECIPES, WEIGHTS = (".py", ".yaml", ".yml"), (".pt", ".pth", ".safetensors")  # endings
Option = tuple[str, dict[str, Any]]


class Task(Protocol):
    """One of the three tasks. ``options`` are those of its own: {verb: [(flag, arguments of add_argument)]}."""

    name: str
    options: Mapping[str, list[Option]]

    def read(self, path: Path, overrides: list[str]) -> Recipe: ...

    def restore(self, content: Mapping[str, Any], origin: str, overrides: list[str], ours: bool) -> Recipe: ...

    def print_config(self, recipe: Recipe) -> str: ...

    def build(self, recipe: Recipe, *rest: Any) -> Training: ...

    def train(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None: ...

    def evaluate(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None: ...

    def predict(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None: ...

    def visualize(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None: ...

    def show_data(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None: ...

    def export(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None: ...

    def outlook(self, recipe: Recipe, args: argparse.Namespace) -> Outlook: ...

    def count(self, recipe: Recipe) -> dict[str, Any]: ...

    def network(self, recipe: Recipe) -> tuple[nn.Module, tuple[int, int, int]]: ...


def parser(description: str | None, checkpoint: bool) -> argparse.ArgumentParser:
    """CONFIG --trust-checkpoint --set --device --print-config, or [CONFIG] CHECKPOINT and the same."""
    arguments = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    told = "a file, or the name of a shipped recipe: elsa_swin_tiny"
    if checkpoint:
        told += "; without it the recipe that CHECKPOINT holds, with the --set of its training"
    optional: dict[str, Any] = {"nargs": "?"} if checkpoint else {}
    arguments.add_argument("config", type=Path, metavar="CONFIG", help=told, **optional)
    if checkpoint:
        arguments.add_argument(
            "checkpoint", type=Path, metavar="CHECKPOINT", help=".pt, .pth or .safetensors, or a run's folder"
        )
        names = ", ".join(shipped_weights())
        arguments.add_argument(
            "--model", metavar="NAME", help=f"weights that come with this package, for CONFIG and CHECKPOINT: {names}"
        )
    arguments.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="allow the checkpoint, or what a training starts from, to run pickled code; only for files from a source "
        "you trust",
    )
    arguments.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override configuration values, e.g. --set TRAIN.LR=5e-4 DATA.BATCH=512",
    )
    arguments.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    arguments.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    return arguments


def parse(
    verb: str, arguments: argparse.ArgumentParser, only: str | None = None
) -> tuple[Task, Recipe, argparse.Namespace]:
    """The task that CONFIG or CHECKPOINT is of, its recipe, and the arguments; --print-config ends here.

    Args:
        arguments: what all tasks have; the task's own options are added.
        only: the one task that has this verb.

    Raises:
        ConfigError: no such recipe, a mistake in it, or an option that its task has not.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        _add_all_options(verb, arguments)
    words, model = _with_weights(sys.argv[1:]) if "--model" in arguments._option_string_actions else (None, None)
    known, _ = arguments.parse_known_intermixed_args(words)
    _leave_out_config(known)
    if model and known.config is not None:
        raise ConfigError(f"--model {model} is CONFIG and CHECKPOINT in one: there is no place for {known.checkpoint}")
    if known.config is not None:
        path = find_recipe(known.config)
        task, recipe = read(path, known.overrides)
    else:
        task, recipe = restore(known.checkpoint, known.trust_checkpoint, known.overrides)
        path = known.checkpoint.resolve() if known.checkpoint.is_dir() else known.checkpoint.resolve().parent
    if only and task.name != only:
        raise ConfigError(f"{known.config or known.checkpoint}: a recipe of {task.name}; this is for {only}")
    for flag, options in task.options.get(verb, []):
        arguments.add_argument(flag, **options)
    args, rest = arguments.parse_known_intermixed_args(words)
    _leave_out_config(args)
    if rest:
        raise ConfigError(_unknown_option(rest[0], verb, task, arguments))
    if args.print_config:
        print(task.print_config(recipe), end="")
        sys.exit(0)
    args.name = model or path.stem
    if "checkpoint" in args:
        args.checkpoint = checkpoint_file(args.checkpoint)
    return task, recipe, args


def _leave_out_config(args: argparse.Namespace) -> None:
    """Of CHECKPOINT IMAGE IMAGE …, in which the parser takes the first for CONFIG, makes what it is."""
    several, first = isinstance(getattr(args, "images", None), list), args.config
    if several and first is not None and not is_recipe(first) and (first.suffix in WEIGHTS or first.is_dir()):
        args.config, args.checkpoint, args.images = None, first, [args.checkpoint, *args.images]


def read(path: Path, overrides: list[str]) -> tuple[Task, Recipe]:
    """The recipe of a file, and the task that it is of: YAML is classification, Python mmengine's for the others."""
    if path.suffix != ".py":
        task = load_task("classification")
        return task, task.read(path, overrides)
    require_dense_packages()
    recipe = load_task("detection").read(path, overrides)
    scope = recipe.config.default_scope
    if scope not in SCOPES:
        raise ConfigError(f"{path}: default_scope must be {' or '.join(SCOPES)}, got {scope!r}")
    return load_task(SCOPES[scope]), recipe


def restore(checkpoint: Path, trust: bool, overrides: list[str]) -> tuple[Task, Recipe]:
    """The recipe that a checkpoint holds as values, and the task that it is of.

    Raises:
        ConfigError: it holds none.
        CheckpointError: it cannot be read.
    """
    if is_recipe(checkpoint):
        raise ConfigError(f"CHECKPOINT is missing: {checkpoint} is a recipe")
    content = read_checkpoint(checkpoint, trust)
    config = content.get("config")
    config = config if isinstance(config, dict) else {}
    name = content.get("task") or ("classification" if "MODEL.NAME" in config else None)
    if not config or name not in list(TASKS):
        raise ConfigError(f"{checkpoint} holds no recipe; name CONFIG before it")
    if name != "classification":
        require_dense_packages()
    task = load_task(name)
    ours = checkpoint.resolve() in [file.resolve() for file in shipped_weights().values()]
    recipe = task.restore(content, str(checkpoint), overrides, ours)
    if name != "classification" and SCOPES.get(scope := recipe.config.default_scope) != name:
        raise ConfigError(f"{checkpoint} is of {name}, but its recipe has default_scope {scope!r}; name CONFIG")
    return task, recipe


def load_task(name: str) -> Task:
    return getattr(importlib.import_module(f"elsa.tools.tasks.{name}"), TASKS[name])()


def find_recipe(path: Path) -> Path:
    """The file, or the shipped recipe of that name.

    Raises:
        ConfigError: neither; the message has the nearest name.
    """
    shipped = shipped_recipes()
    if path.suffix in WEIGHTS:
        raise ConfigError(f"{path} is a checkpoint, where CONFIG is meant: a recipe comes before the checkpoint")
    try:
        if path.exists() or path.suffix in RECIPES:
            return path
    except OSError as error:  # a name that no file can have
        raise ConfigError(f"{path!s:.80}: {error.strerror}") from error
    if path.name == str(path) and path.name in shipped:
        return shipped[path.name]
    raise ConfigError(f"{path} is neither a file nor a shipped recipe{did_you_mean(path.name, shipped)}")


def shipped_recipes() -> dict[str, Path]:
    return {file.stem: file for kind in TASKS for file in sorted((CONFIGS / kind).glob("*.*"))}


def shipped_weights() -> dict[str, Path]:
    return {file.stem: file for file in sorted((CONFIGS / "weights").glob("*.safetensors"))}


def _with_weights(words: list[str]) -> tuple[list[str], str | None]:
    """The words of a command line with the file of ``--model NAME`` in its place, and the name.

    Raises:
        ConfigError: no such weights; the message has the nearest name, or all.
    """
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--model")
    asked, others = early.parse_known_args(words)
    if asked.model is None:
        return words, None
    shipped = shipped_weights()
    if asked.model not in shipped:
        hint = did_you_mean(asked.model, shipped) or f"; there are {', '.join(shipped) or 'none'}"
        raise ConfigError(f"--model {asked.model}: no such weights come with this package{hint}")
    return [str(shipped[asked.model]), *others], asked.model


def is_recipe(path: Path) -> bool:
    """Whether a path must be CONFIG, as it is named like one."""
    return path.suffix in RECIPES or (str(path) in shipped_recipes() and not path.exists())


def require_dense_packages() -> None:
    """Says what to run where the packages for detection and segmentation are not installed."""
    if missing := [name for name in DENSE_PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"detection and segmentation need {', '.join(missing)}, not installed: bash scripts/setup.sh --dense"
        )


def _add_all_options(verb: str, arguments: argparse.ArgumentParser) -> None:
    """For --help: the options of every task that can be loaded, under its name."""
    for name in TASKS:
        if name != "classification" and any(importlib.util.find_spec(package) is None for package in DENSE_PACKAGES):
            continue
        group = arguments.add_argument_group(f"{name} alone")
        for flag, options in load_task(name).options.get(verb, []):
            if flag not in arguments._option_string_actions:
                group.add_argument(flag, **options)


def _unknown_option(option: str, verb: str, task: Task, arguments: argparse.ArgumentParser) -> str:
    others = [name for name in TASKS if name != task.name]
    having = []
    if task.name != "classification" or all(importlib.util.find_spec(name) for name in DENSE_PACKAGES):
        having = [n for n in others if option.split("=")[0] in dict(load_task(n).options.get(verb, []))]
    if having:
        return f"{option} is an option of {' and '.join(having)}; {verb} of {task.name} has no use for it"
    known = [flag for flag in arguments._option_string_actions if flag.startswith("--")]
    return f"unknown argument {option!r}{did_you_mean(option, known)}"


def require_one_process(verb: str, runtime: Runtime) -> None:
    """Refuses a launcher's several processes, which would all write the same files."""
    if runtime.world_size > 1:
        raise ConfigError(f"{verb} works in one process, and is started {runtime.world_size} times: no torchrun")


def find_images(places: Sequence[Path]) -> list[Path]:
    """The images, and all images below the folders, each once.

    Raises:
        DataError: nothing there.
    """
    return list(dict.fromkeys(path for place in places for path in _images_of(place)))


def _images_of(place: Path) -> list[Path]:
    try:
        if place.is_file():
            return [place]
        if not place.is_dir():
            raise DataError(f"{place} does not exist")
    except OSError as error:
        raise DataError(f"{place} cannot be entered: {error.strerror}") from error
    if not (paths := image_files(place)):
        raise DataError(f"{place} has no images by their names (.jpg, .png …)")
    if others := left_out(place, paths):
        listed = ", ".join(f"{count} {ending}" for ending, count in others.items())
        logger.info("%s: %d images; left out by their names: %s", place, len(paths), listed)
    return paths
