"""Detection and segmentation put together: mmengine configurations read, checked and fitted to the machine."""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import inspect
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from _classification import environment
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmengine.runner.utils import set_random_seed
from mmengine.utils import import_modules_from_strings

from elsa.data import DataError, write_digits_ade, write_digits_coco
from elsa.engine import ConfigError, Runtime, distributed, logger, setup_logging
from elsa.models.mmcv_ops import MissingOperator, provide

NEEDED = (
    *("model", "train_cfg", "train_dataloader", "val_dataloader", "test_dataloader", "test_evaluator", "optim_wrapper"),
    *("param_scheduler", "global_batch", "randomness", "custom_hooks", "visualizer", "default_scope"),
)
# Data that a configuration's ``embedded`` names by ``type``.
EMBEDDED = {"digits-coco": write_digits_coco, "digits-ade": write_digits_ade}


def read_dense(args: argparse.Namespace) -> Config:
    """The configuration with ``--set`` applied; --print-config ends here.

    Raises:
        ConfigError: no such file, not a configuration, or a key that it does not have.
    """
    path = args.config
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], 1)
        raise ConfigError(f"{path} does not exist" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        config = Config.fromfile(path)
    except (SyntaxError, NameError, KeyError, TypeError, ValueError, OSError, AttributeError) as error:
        raise ConfigError(f"{path} is no mmengine configuration: {error}") from error
    if missing := [name for name in NEEDED if name not in config]:
        raise ConfigError(f"{path} lacks {', '.join(missing)}: is it a _base_ file, or one of another project?")
    known = inspect.signature(Runner).parameters
    for name in config:
        near = [] if name in known else difflib.get_close_matches(name, known, 1, 0.85)
        if near:
            raise ConfigError(f"{path}: {name!r} means nothing to mmengine; did you mean {near[0]}?")
    for override in args.overrides:
        apply_override(config, override)
    if args.print_config:
        print(config.pretty_text, end="")
        sys.exit(0)
    return config


def apply_override(config: Config, override: str) -> None:
    """KEY=VALUE, for keys that exist: mmengine would add others in silence. ``data_root`` moves every path below it."""
    name, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set needs KEY=VALUE, got {override!r}")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "null": None, "none": None}.get(text.lower(), text)
    if name == "data_root" and "data_root" in config:
        return move_paths(config, str(config.data_root), str(value).rstrip("/") + "/")
    *parents, last = name.strip().split(".")
    node: Any = config
    for depth, part in enumerate(parents):
        node = _child(node, part, ".".join(parents[:depth]))
    before = _child(node, last, ".".join(parents))
    numeric = isinstance(before, (int, float)) and not isinstance(before, bool)
    if numeric and (isinstance(value, (str, bool)) or (isinstance(before, int) and isinstance(value, float))):
        raise ConfigError(
            f"--set {name} must be {'an integer' if isinstance(before, int) else 'a number'}, got {text!r}"
        )
    if isinstance(before, bool) and not isinstance(value, bool):
        raise ConfigError(f"--set {name} must be true or false, got {text!r}")
    if isinstance(before, dict) and not isinstance(value, dict):
        raise ConfigError(f"--set {name} is a section with {', '.join(before) or 'no keys'}; set one of its keys")
    node[int(last) if isinstance(node, (list, tuple)) else last] = value
    return None


def _child(node: Any, part: str, where: str) -> Any:
    """The entry of a dictionary or list of a configuration."""
    if isinstance(node, (list, tuple)):
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        raise ConfigError(f"--set {where}.{part}: {where} is a list of {len(node)} entries")
    if where.endswith("model_args"):
        return node.get(part)  # the backbone refuses names that it does not know
    if not isinstance(node, (dict, Config)) or part not in node:
        keys = list(node) if isinstance(node, (dict, Config)) else []
        near = difflib.get_close_matches(part, keys, 1)
        there = f"; did you mean {near[0]}?" if near else f"; there is {', '.join(keys[:8]) or 'nothing below it'}"
        raise ConfigError(f"--set {'.'.join(filter(None, (where, part)))} is no key of the configuration{there}")
    return node[part]


def move_paths(config: Config, old: str, new: str) -> None:
    """Replaces the folder of the data in every path of the configuration."""

    def moved(value: Any) -> Any:
        if isinstance(value, str):
            return new + value.removeprefix(old) if value.startswith(old) else value
        if isinstance(value, dict):
            for key, item in value.items():
                value[key] = moved(item)
            return value
        return type(value)(moved(item) for item in value) if isinstance(value, (list, tuple)) else value

    for name in list(config):
        config[name] = moved(config[name])


@dataclass
class Session:
    """A configuration fitted to this launch, and the process among its peers."""

    config: Config
    runtime: Runtime


@contextmanager
def session(args: argparse.Namespace, config: Config, trains: bool = False) -> Iterator[Session]:
    """Joins the process group, imports what the configuration registers, prepares embedded data, tells mistakes."""
    warnings.filterwarnings("ignore", module=r"mm(engine|cv|det|seg)")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # mmengine has no setting for it
    with distributed(args.device) as runtime:
        setup_logging(runtime)
        import_modules_from_strings(**config.get("custom_imports", dict(imports=[])))
        init_default_scope(config.get("default_scope", "mmengine"))
        fit_to_machine(config, runtime)
        if trains:
            divide_batch(config, runtime)
        if embedded := config.get("embedded"):
            with runtime.main_first():
                write_embedded(config.data_root, **embedded)
        yield Session(config, runtime)


def write_embedded(root: str, type: str, **arguments: int) -> None:
    """Writes embedded data unless they are there.

    Args:
        root: their folder.
        type: a name of EMBEDDED.
        arguments: numbers of scenes and seed, as the function of that name takes them.

    Raises:
        ConfigError: no such data, or a number that they cannot have.
    """
    if type not in EMBEDDED:
        raise ConfigError(f"embedded.type must be {' or '.join(EMBEDDED)}, got {type!r}")
    try:
        EMBEDDED[type](root, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"embedded: {error}") from error


def divide_batch(config: Config, runtime: Runtime) -> None:
    """Global batch divided among the processes and accumulated micro-batches.

    Raises:
        ConfigError: a global batch that cannot be divided.
    """
    accumulate, loader = config.optim_wrapper.accumulative_counts, config.train_dataloader
    loader.batch_size, rest = divmod(config.global_batch, runtime.world_size * accumulate)
    if rest or not loader.batch_size:
        raise ConfigError(
            f"global_batch {config.global_batch} cannot be divided among {runtime.world_size} processes × "
            f"{accumulate} accumulated (optim_wrapper.accumulative_counts); the recipe's learning rate belongs to it"
        )
    if accumulate > 1:
        _count_micro_steps(config, accumulate)


def fit_to_machine(config: Config, runtime: Runtime) -> None:
    """Seeds, launcher, loader processes, and what a CPU cannot do replaced."""
    optim = config.optim_wrapper
    config.train_dataloader.dataset.seed = config.randomness.seed
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        if not config[name].num_workers:
            config[name].persistent_workers = False
    config.launcher = "pytorch" if runtime.world_size > 1 else "none"
    if runtime.device.type == "cpu":
        if optim.type == "AmpOptimWrapper":
            logger.info("no GPU: float32 instead of mixed precision, BN instead of SyncBN")
            config.optim_wrapper = ConfigDict({k: v for k, v in optim.items() if k not in ("dtype", "loss_scale")})
            config.optim_wrapper.type = "OptimWrapper"
        _replace_norms(config.model)
        config.model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)


def _count_micro_steps(config: Config, accumulate: int) -> None:
    """mmengine counts micro-batches; recipes count optimizer steps."""
    if config.train_cfg.get("max_iters"):
        config.train_cfg.max_iters *= accumulate
        config.train_cfg.val_interval *= accumulate
    for scheduler in config.param_scheduler:
        if not scheduler.get("by_epoch", True):
            scheduler.update({key: scheduler[key] * accumulate for key in ("begin", "end") if key in scheduler})


def _replace_norms(node: Any) -> None:
    """SyncBN needs a GPU; BN has the same tensors."""
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        if isinstance(value, dict) and value.get("type") == "SyncBN":
            value["type"] = "BN"
        _replace_norms(value)


@contextmanager
def mistakes_named(runs: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """What mmengine's registries raise for a wrong value in a configuration becomes one line.

    An error after ``runs`` turned true is no mistake of the configuration, and keeps its traceback. pycocotools' prints
    are left out: the log has the same numbers.
    """
    try:
        with redirect_stdout(io.StringIO()):
            yield
    except (ConfigError, DataError):
        raise
    except (TypeError, ValueError, KeyError, AssertionError, FileNotFoundError, MissingOperator) as error:
        if isinstance(error.__cause__, (ConfigError, DataError)):
            raise error.__cause__ from error
        if runs():
            raise
        raise ConfigError(str(error).strip("'\"").splitlines()[0] if str(error) else repr(error)) from error


def dense_environment(runtime: Runtime) -> dict[str, Any]:
    """What a run says about the machine, the mm packages and whose operators they use."""
    names = ("onedl-mmengine", "mmengine", "mmcv-lite", "mmcv", "onedl-mmcv", "mmdet", "mmsegmentation", "pycocotools")
    installed = {part.metadata["Name"]: part.version for part in metadata.distributions()}
    versions = {name: installed[name] for name in names if name in installed}
    return {**environment(runtime), "dense": versions, "mmcv_operators": "torchvision" if provide() else "mmcv"}


def build_model(config: Config) -> torch.nn.Module:
    """The detector or segmentor, the same for the same seed."""
    set_random_seed(config.randomness.seed)
    with mistakes_named():
        return MODELS.build(copy.deepcopy(config.model))  # mmdet writes into what it is given


def build_loaders(config: Config, *names: str) -> list[Any]:
    with mistakes_named():
        loaders = [Runner.build_dataloader(config[name], seed=config.randomness.seed) for name in names]
    for loader in loaders:
        check_classes(config, loader.dataset.metainfo["classes"])
    return loaders


def check_classes(config: Config, classes: Iterable[str]) -> None:
    """Raises ConfigError where a head, or the weights of its loss, have another number of classes than the data."""
    classes = tuple(classes)

    def heads(node: Any, where: str) -> Iterator[tuple[str, int]]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
        for key, value in items:
            if key == "num_classes":
                yield f"{where}.{key}", value
            if key == "class_weight" and value and node.get("type") == "ClassWeightedLoss":
                yield f"the length of {where}.{key}", len(value)
            yield from heads(value, f"{where}.{key}")

    for name, count in heads(
        {k: v for k, v in config.model.items() if k.endswith("head") and k != "rpn_head"}, "model"
    ):
        if count != len(classes):
            listed = ", ".join(classes[:4])
            raise ConfigError(f"{name} is {count}, but the data has {len(classes)} classes ({listed}, …)")


class DenseRunner(Runner):
    """mmengine's Runner around what is built and initialised already; the run's folder is ours alone."""

    def build_logger(self, log_level: str = "INFO", log_file: str | None = None, **options: Any) -> MMLogger:
        """Without a file beside our log."""
        return MMLogger.get_instance(self._experiment_name, log_level=log_level, **options)

    def dump_config(self) -> None:
        """config.py was written before the first step."""

    def _init_model_weights(self) -> None:
        """Done before, so that a missing pretrained file is told before anything is written."""


def build_runner(config: Config, folder: Path, model: torch.nn.Module, **loaders: Any) -> Runner:
    """A runner of the splits whose loaders are given."""
    config.work_dir = str(folder)
    with mistakes_named():
        runner_config = config.copy()
        for name in ("train", "val", "test"):
            if f"{name}_dataloader" not in loaders:
                for part in ("dataloader", "cfg", "evaluator"):
                    runner_config[f"{name}_{part}"] = None
        if "train_dataloader" not in loaders:
            runner_config.optim_wrapper = runner_config.param_scheduler = None
        arguments = {name: runner_config.get(name) for name in inspect.signature(Runner).parameters if name in config}
        arguments.update(loaders, model=model, cfg=config)
        runner = DenseRunner(**arguments)
    if runner.rank == 0:
        Path(runner.log_dir).rmdir()
    return runner
