"""Recipes of detection and segmentation: mmengine configurations of which every key has an effect, or is refused."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mmengine.config import Config

from elsa.core import ConfigError, did_you_mean
from elsa.engine import Recipe, split_overrides
from elsa.engine.config import coerce
from elsa.engine.schema import SCHEMA, Key

NEEDED = (
    *("model", "train_cfg", "train_dataloader", "val_dataloader", "test_dataloader", "val_evaluator"),
    *("test_evaluator", "optim_wrapper", "param_scheduler", "global_batch", "randomness", "run", "default_scope"),
)
# Everything that is read; other names of a configuration are its own helper variables.
READ = (*NEEDED, "custom_imports", "data_root", "embedded", "tta_model", "tta_pipeline")
# The keys of sections that are ours, not arguments of something that a registry builds.
SECTIONS = {
    "run": ("metric", "log_every", "max_bad", "ema_decay"),
    "randomness": ("seed",),
    "train_cfg": ("type", "max_epochs", "max_iters", "val_interval", "save_steps"),
    "train_dataloader": ("dataset", "num_workers", "persistent_workers", "aspect_group"),
    "val_dataloader": ("dataset", "num_workers", "persistent_workers", "batch_size"),
    "test_dataloader": ("dataset", "num_workers", "persistent_workers", "batch_size"),
    "optim_wrapper": (
        *(
            "type",
            "dtype",
            "loss_scale",
            "accumulative_counts",
            "clip_grad",
            "optimizer",
            "paramwise_cfg",
            "constructor",
        ),
    ),
    "optim_wrapper.clip_grad": ("max_norm",),
}
# What only mmengine's Runner would read, and where its function lives here.
RUNNER_ONLY = {
    "custom_hooks": "there are no hooks: run.metric, run.log_every, run.max_bad and run.ema_decay (the weights' moving "
    "average) do what hooks did",
    "default_hooks": "checkpoints are train_cfg.save_steps and the end of each epoch, log lines run.log_every",
    "visualizer": "curves and TensorBoard files are in the run's folder; tools/evaluate.py has --pictures",
    "vis_backends": "TensorBoard files are in the run's folder",
    "env_cfg": "--device and the launcher (scripts/train_node.sh) choose devices and processes",
    "log_processor": "log lines come every run.log_every steps, and log.jsonl has all numbers",
    "log_level": "lines for people are in train.log",
    "load_from": "model.backbone.pretrained starts from weights, --resume continues a run",
    "resume": "it is the option --resume",
    "auto_scale_lr": "the learning rate belongs to global_batch, which is divided among the processes",
    "launcher": "torchrun or scripts/train_node.sh launch several processes",
    "work_dir": "it is the option --output",
    "experiment_name": "the run is named by --output",
    "model_wrapper_cfg": "models are distributed by torch's DistributedDataParallel",
    "val_cfg": "evaluation is a whole pass over val_dataloader, every train_cfg.val_interval",
    "test_cfg": "evaluation is a whole pass over test_dataloader",
    "runner_type": "there is one trainer",
    "sync_buffer": "all processes evaluate the main process's buffers",
}
LOOPS = {"EpochBasedTrainLoop": "max_epochs", "IterBasedTrainLoop": "max_iters"}
SPLITTING = "global_batch is the batch, in an order that depends on the seed alone"
ELSEWHERE = {
    "train_dataloader.batch_size": SPLITTING,
    "train_dataloader.sampler": SPLITTING,
    "train_dataloader.batch_sampler": f"{SPLITTING}; aspect_group puts images of like orientation together",
    "train_cfg.dynamic_intervals": "train_cfg.val_interval is the same all along",
    "train_cfg.val_begin": "the first evaluation comes after train_cfg.val_interval",
    "randomness.deterministic": "runs on a CPU are deterministic",
}
MAY_CHANGE = (
    *("train_dataloader.num_workers", "train_dataloader.persistent_workers", "val_dataloader", "test_dataloader"),
    *("data_root", "run.log_every", "run.max_bad", "train_cfg.save_steps", "train_cfg.val_interval"),
    *("optim_wrapper.accumulative_counts", "test_evaluator", "tta_", "embedded", "custom_imports"),
    *("model.backbone.pretrained", "train_dataloader.dataset.dataset.data_root", "val_evaluator.ann_file"),
)

_OF_255: dict[str, Any] = dict(high=255.0, instead="numbers of images in 0 … 1 are to be multiplied by 255")
_EMA, _CLIP = SCHEMA["TRAIN.EMA_DECAY"], SCHEMA["TRAIN.CLIP_GRAD"]
# Where a number stands → its range, as in classification where the two share it.
NUMBERS = {
    "global_batch": SCHEMA["DATA.BATCH"],
    "train_cfg.max_epochs": SCHEMA["TRAIN.EPOCHS"],
    "train_cfg.max_iters": Key(1, "", low=1, high=10**9),
    "train_cfg.val_interval": SCHEMA["EVAL.EVERY"],
    "train_cfg.save_steps": SCHEMA["LOG.SAVE_STEPS"],
    "run.log_every": SCHEMA["LOG.EVERY"],
    "run.max_bad": SCHEMA["DATA.MAX_BAD"],
    "run.ema_decay": replace(_EMA, nullable=False, instead=f"{_EMA.instead}; None for none"),
    "randomness.seed": SCHEMA["TRAIN.SEED"],
    "*_dataloader.num_workers": SCHEMA["DATA.WORKERS"],
    "*_dataloader.batch_size": SCHEMA["DATA.EVAL_BATCH"],
    "train_dataloader.aspect_group": SCHEMA["DATA.BATCH"],
    "optim_wrapper.accumulative_counts": SCHEMA["TRAIN.ACCUM"],
    "optim_wrapper.clip_grad.max_norm": replace(_CLIP, nullable=False, instead="clip_grad=None for none"),
    "optim_wrapper.optimizer.lr": SCHEMA["TRAIN.LR"],
    "optim_wrapper.optimizer.fallback_lr_scale": Key(1.0, "", above=0.0, high=1000.0),
    "optim_wrapper.optimizer.betas*": SCHEMA["TRAIN.BETAS"].item(),
    "optim_wrapper.optimizer.eps*": SCHEMA["TRAIN.EPS"],
    "optim_wrapper.optimizer.momentum": SCHEMA["TRAIN.MOMENTUM"],
    "optim_wrapper.optimizer.weight_decay": SCHEMA["TRAIN.WEIGHT_DECAY"],
    "optim_wrapper.paramwise_cfg.*_mult": Key(1.0, "", low=0.0, high=1000.0),
    "param_scheduler*.start_factor": Key(1.0, "", above=0.0, high=1.0),
    "param_scheduler*.factor": Key(1.0, "", above=0.0, high=1.0),
    "param_scheduler*.gamma": Key(1.0, "", above=0.0, high=10.0),
    "param_scheduler*.eta_min": SCHEMA["TRAIN.MIN_LR"],
    "model.data_preprocessor.mean*": Key(0.0, "", low=0.0, **_OF_255),
    "model.data_preprocessor.std*": Key(1.0, "", low=1.0, **_OF_255),
    "model.*drop_path_rate": SCHEMA["MODEL.DROP_PATH"],
    "model.*dropout_ratio": SCHEMA["MODEL.DROP"],
}
# Where None may stand instead: it is as if the key were not there.
OPTIONAL = (
    *("train_cfg.max_*", "run.ema_decay", "train_dataloader.aspect_group", "optim_wrapper.optimizer.*"),
    *("param_scheduler*", "model.*"),
)


def read_recipe(path: Path, overrides: Iterable[str]) -> Recipe:
    """The recipe of a file with ``--set`` applied.

    Raises:
        ConfigError: no such file, not a configuration, or a key that has no effect.
    """
    if not path.is_file():
        near = did_you_mean(path.name, (other.name for other in path.parent.glob("*.py")))
        raise ConfigError(f"{path} does not exist{near}")
    try:
        config = Config.fromfile(path)
    except (SyntaxError, NameError, KeyError, TypeError, ValueError, OSError, AttributeError, ImportError) as error:
        raise ConfigError(f"{path} is no mmengine configuration: {str(error).splitlines()[0]}") from error
    if missing := [name for name in NEEDED if not config.get(name)]:
        raise ConfigError(f"{path} lacks {', '.join(missing)}: is it a _base_ file, or one of another project?")
    for name, text in split_overrides(overrides).items():
        apply_override(config, name, text)
    check_keys(config, path)
    helpers = [name for name in config if name not in READ]
    for name in helpers:
        config.pop(name)
    values = dict(_flat(config.to_dict()))
    return Recipe(config, "config.py", config.pretty_text, values, MAY_CHANGE)


def check_keys(config: Config, path: Path) -> None:
    """Refuses what nothing here would read."""
    for name, value in config.items():
        if name in RUNNER_ONLY and value:
            named = [part["type"] for part in value if "type" in part] if isinstance(value, (list, tuple)) else []
            what = f"{name} ({', '.join(map(str, named))})" if named else name
            raise ConfigError(f"{path}: {what} is read by mmengine's Runner alone; here {RUNNER_ONLY[name]}")
        if name not in READ and value is not None and (near := difflib.get_close_matches(name, NEEDED, 1, 0.85)):
            raise ConfigError(f"{path}: {name!r} means nothing here; did you mean {near[0]}?")
    for section, known in SECTIONS.items():
        node: Any = config
        for part in section.split("."):
            node = node.get(part) or {}
        if not isinstance(node, Mapping):
            raise ConfigError(f"{path}: {section} must be a dict of {', '.join(known)}, got {node!r}")
        for key in node:
            if key not in known:
                there = ELSEWHERE.get(f"{section}.{key}")
                hint = f": {there}" if there else did_you_mean(key, known) or f"; there is {', '.join(known)}"
                raise ConfigError(f"{path}: {section}.{key} has no effect{hint}")
    length = config.train_cfg
    given = [name for name in ("max_epochs", "max_iters") if length.get(name)]
    if len(given) != 1:
        raise ConfigError(
            f"{path}: train_cfg needs one of max_epochs and max_iters, got {' and '.join(given) or 'none'}"
        )
    if (loop := length.get("type")) and LOOPS.get(loop) != given[0]:
        raise ConfigError(
            f"{path}: train_cfg.type is {loop}; there is one trainer, and train_cfg.{given[0]} its length"
        )
    check_numbers(config, path)


def check_numbers(config: Config, path: Path) -> None:
    """Refuses numbers and names with which nothing could be trained."""
    optim = config.optim_wrapper
    for name, value in _flat({name: value for name, value in config.to_dict().items() if name in READ}):
        key = next((key for pattern, key in NUMBERS.items() if fnmatchcase(name, pattern)), None)
        if key and not (value is None and any(fnmatchcase(name, pattern) for pattern in OPTIONAL)):
            _check_number(key, name, value, path)
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{path}: {name} is no number (nan)")
    optimizer = optim.get("optimizer")
    if not isinstance(optimizer, Mapping) or optimizer.get("lr") is None:
        raise ConfigError(f"{path}: optim_wrapper.optimizer.lr, the learning rate for global_batch, is missing")
    schedule = config.param_scheduler
    for one in [schedule] if isinstance(schedule, Mapping) else schedule:
        if (one.get("eta_min") or 0.0) > optimizer.lr:
            raise ConfigError(f"{path}: eta_min {one.eta_min} of {one.type} in param_scheduler is larger than "
                              f"optim_wrapper.optimizer.lr {optimizer.lr}")  # fmt: skip
    if (clip := optim.get("clip_grad")) is not None and not (isinstance(clip, Mapping) and clip):
        raise ConfigError(f"{path}: optim_wrapper.clip_grad must be dict(max_norm=…), or None for none, got {clip!r}")
    if optim.get("type", "OptimWrapper") not in ("OptimWrapper", "AmpOptimWrapper"):
        raise ConfigError(f"{path}: optim_wrapper.type must be OptimWrapper (float32) or AmpOptimWrapper, "
                          f"got {optim.type!r}")  # fmt: skip
    if optim.get("dtype", "float16") not in ("float16", "bfloat16"):
        raise ConfigError(f"{path}: optim_wrapper.dtype must be float16 or bfloat16, got {optim.dtype!r}")
    if optim.get("loss_scale", "dynamic") != "dynamic":
        raise ConfigError(f"{path}: optim_wrapper.loss_scale must be 'dynamic', got {optim.loss_scale!r}")
    if not config.run.get("metric"):
        raise ConfigError(f"{path}: run.metric must name what the best checkpoint has most of, e.g. coco/bbox_mAP")


def _check_number(key: Key, name: str, value: Any, path: Path) -> None:
    try:
        number = coerce(key, value)
    except ValueError as error:
        raise ConfigError(f"{path}: {name} {error}") from None
    if type(number) is not type(value) and not isinstance(value, int):  # it stays as it was written
        raise ConfigError(f"{path}: {name} must be the number {number}, got {value!r}")


def apply_override(config: Config, name: str, text: str) -> None:
    """KEY=VALUE, for keys that exist and are read. ``data_root`` moves every path below it.

    Raises:
        ConfigError: no such key, a helper variable whose value was copied before, or a value of another kind.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = {"true": True, "false": False, "null": None, "none": None}.get(text.lower(), text)
    if name == "data_root" and "data_root" in config:
        return move_paths(config, str(config.data_root), str(value).rstrip("/") + "/")
    *parents, last = name.split(".")
    if (top := name.split(".")[0]) in config and top not in (*READ, *RUNNER_ONLY):
        place = next((found for found in _places(config, config[top]) if found != top), None)
        rest = name.removeprefix(top)
        there = f"set {place}{rest}, where its value was copied to" if place else "its value is used nowhere as a whole"
        raise ConfigError(f"--set {name} would have no effect: {top} is a helper variable of the file; {there}")
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
        raise ConfigError(
            f"--set {name} must be {'an integer' if isinstance(before, int) else 'a number'}, got {text!r}"
        )
    if isinstance(before, bool) and not isinstance(value, bool):
        raise ConfigError(f"--set {name} must be true or false, got {text!r}")
    if isinstance(before, dict) and not isinstance(value, dict) and value is not None:
        raise ConfigError(f"--set {name} is a section with {', '.join(before) or 'no keys'}; set one of its keys")


def _child(node: Any, part: str, where: str) -> Any:
    """The entry of a dictionary or list of a configuration."""
    if isinstance(node, (list, tuple)):
        if part.isdigit() and int(part) < len(node):
            return node[int(part)]
        raise ConfigError(f"--set {where}.{part}: {where} is a list of {len(node)} entries")
    if where.endswith("model_args"):
        return node.get(part)  # the backbone refuses names that it does not know
    if f"{where}.{part}" in ("run.ema_decay", "optim_wrapper.clip_grad", "train_cfg.save_steps"):
        return node.get(part)  # keys that a recipe need not have
    if not isinstance(node, (dict, Config)) or part not in node:
        keys = list(node) if isinstance(node, (dict, Config)) else []
        there = did_you_mean(part, keys) or f"; there is {', '.join(keys[:8]) or 'nothing below it'}"
        raise ConfigError(f"--set {'.'.join(filter(None, (where, part)))} is no key of the configuration{there}")
    return node[part]


def _places(node: Any, wanted: Any, where: str = "") -> Iterator[str]:
    """Where in a configuration a value stands."""
    items = node.items() if isinstance(node, (dict, Config)) else enumerate(node)
    for key, value in items:
        place = f"{where}.{key}" if where else str(key)
        if value == wanted and place.split(".")[0] in READ:
            yield place
        if isinstance(value, (dict, list, tuple)):
            yield from _places(value, wanted, place)


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


def _flat(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, plain value) of every setting."""
    if isinstance(node, (Mapping, list, tuple)) and node:
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _flat(value, f"{where}.{key}" if where else str(key))
    elif isinstance(node, (Mapping, list, tuple)):
        yield where, {} if isinstance(node, Mapping) else []
    else:
        yield where, node if isinstance(node, (int, float, str, bool, type(None))) else repr(node)
