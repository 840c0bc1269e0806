"""The keys of a recipe of detection or segmentation, what may stand there, and what is refused with its reason."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache
from types import FunctionType
from typing import Any

from mmengine.config import Config

from elsa.core import ConfigError, did_you_mean
from elsa.data.decode import ORIENTATIONS, TURNED
from elsa.engine.config import coerce
from elsa.engine.options import OPTIONS
from elsa.engine.schema import SCHEMA, Key

NEEDED = (
    *("model", "train_cfg", "train_dataloader", "val_dataloader", "test_dataloader", "val_evaluator"),
    *("test_evaluator", "optim_wrapper", "param_scheduler", "global_batch", "randomness", "run", "default_scope"),
)
NEEDED_BELOW = (("model", "type"), *((f"{split}_dataloader", "dataset") for split in ("train", "val", "test")))
# Everything that is read; other names of a configuration are its own helper variables. The visualizer is read by mm's
# own inferencers, which the same file serves.
READ = (
    *(*NEEDED, "custom_imports", "data_root", "embedded", "image_orientation", "pretrained", "pretrained_ignore"),
    *("tta_model", "tta_pipeline", "visualizer"),
)
MEANT = (
    *NEEDED,
    "embedded",
    "image_orientation",
    "pretrained",
    "pretrained_ignore",
)  # names that others may be misspelt from
# What stands where, in words and as types; None stands for a key that is not there.
KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    **dict.fromkeys(("model", "train_cfg", "optim_wrapper", "randomness", "run"), ("a dict", (dict,))),
    **dict.fromkeys(("train_dataloader", "val_dataloader", "test_dataloader"), ("a dict", (dict,))),
    **dict.fromkeys(("*_dataloader.dataset", "train_dataloader.dataset.dataset"), ("a dict with type", (dict,))),
    **dict.fromkeys(("optim_wrapper.optimizer", "tta_model", "visualizer"), ("a dict", (dict,))),
    **dict.fromkeys(("optim_wrapper.paramwise_cfg", "*.custom_keys"), ("a dict", (dict,))),
    **dict.fromkeys(("val_evaluator", "test_evaluator", "param_scheduler"), ("a dict or a list", (dict, list, tuple))),
    **dict.fromkeys(("param_scheduler.[0-9]", "*_evaluator.[0-9]"), ("a dict with type", (dict,))),
    **dict.fromkeys(("custom_imports", "embedded"), ("a dict", (dict,))),
    "optim_wrapper.clip_grad": ("a dict of max_norm", (dict,)),
    **dict.fromkeys(("tta_pipeline", "*_dataloader.*pipeline"), ("a list of transforms", (list, tuple))),
    **dict.fromkeys(("tta_pipeline.[0-9]", "*_dataloader.*pipeline.[0-9]"), ("a dict with type", (dict,))),
    **dict.fromkeys(("data_root", "default_scope", "run.metric", "pretrained"), ("a string", (str,))),
    **dict.fromkeys(("type", "*.type"), ("a string", (str, type, FunctionType))),
    **dict.fromkeys(("*_dataloader.*data_root", "*_dataloader.*ann_file"), ("a string", (str,))),
    **dict.fromkeys(("pretrained_ignore", "custom_imports.imports"), ("a list of strings", (list, tuple))),
    "run.trackers": ("a list of strings", (list, tuple)),
    **dict.fromkeys(("pretrained_ignore.*", "custom_imports.imports.*"), ("a string", (str,))),
    "*_dataloader.persistent_workers": ("true or false", (bool,)),
    "*_dataloader.*metainfo": ("a dict", (dict,)),
}
# The keys of sections that are ours, not arguments of something that a registry builds.
SECTIONS = {
    "run": ("metric", "max_bad", *OPTIONS),
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
    "vis_backends": "TensorBoard files are in the run's folder",
    "env_cfg": "--device and the launcher (scripts/train_node.sh) choose devices and processes",
    "log_processor": "log lines come every run.log_every steps, and log.jsonl has all numbers",
    "log_level": "lines for people are in train.log",
    "load_from": "pretrained starts from a whole detector or segmentor, model.backbone.pretrained from a backbone, "
    "--resume continues a run",
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
# Of optim_wrapper: the default, and what else there is.
CHOICES = {
    "type": ("OptimWrapper", "AmpOptimWrapper", "ApexOptimWrapper"),
    "dtype": ("float16", "bfloat16"),
    "loss_scale": ("dynamic",),
}
MAY_CHANGE = (
    *("train_dataloader.num_workers", "train_dataloader.persistent_workers", "val_dataloader", "test_dataloader"),
    *("data_root", "run.max_bad", "train_cfg.save_steps", "train_cfg.val_interval"),
    *(f"run.{name}" for name, key in OPTIONS.items() if SCHEMA[key].may_change),
    *("optim_wrapper.accumulative_counts", "test_evaluator", "tta_", "embedded", "custom_imports"),
    *("model.backbone.pretrained", "train_dataloader.dataset.dataset.data_root", "val_evaluator.ann_file"),
    *("pretrained", "visualizer"),
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
    **{f"run.{name}": SCHEMA[key] for name, key in OPTIONS.items() if name != "trackers"},
    "run.trackers*": SCHEMA["LOG.TRACKERS"].item(),
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


def check_keys(config: Config, origin: str) -> None:
    """Refuses what nothing here would read, and what could not be trained with.

    Args:
        origin: the file, for messages.

    Raises:
        ConfigError: the message names file, key and value.
    """
    if missing := [name for name in NEEDED if config.get(name) in (None, "", [], {}, ())]:
        raise ConfigError(f"{origin} lacks {', '.join(missing)}: is it a _base_ file, or one of another project?")
    for name, value in config.items():
        if name in RUNNER_ONLY and value:
            parts = value if isinstance(value, (list, tuple)) else []
            named = [str(part["type"]) for part in parts if isinstance(part, Mapping) and "type" in part]
            what = f"{name} ({', '.join(named)})" if named else name
            raise ConfigError(f"{origin}: {what} is read by mmengine's Runner alone; here {RUNNER_ONLY[name]}")
        if name not in READ and value is not None and (near := difflib.get_close_matches(name, MEANT, 1, 0.85)):
            raise ConfigError(f"{origin}: {name!r} means nothing here; did you mean {near[0]}?")
    values = {name: value for name, value in config.items() if name in READ}
    _check_kinds(values, origin)
    if missing := [f"{top}.{name}" for top, name in NEEDED_BELOW if not config[top].get(name)]:
        raise ConfigError(f"{origin} lacks {', '.join(missing)}")
    for section, known in SECTIONS.items():
        _check_section(config, section, known, origin)
    _check_length(config.train_cfg, origin)
    _check_numbers(values, origin)
    _check_optimization(config, origin)
    if (orientation := config.get("image_orientation", TURNED)) not in ORIENTATIONS:
        raise ConfigError(f"{origin}: image_orientation must be {' or '.join(ORIENTATIONS)}, got {orientation!r:.80}")


def _check_kinds(values: Mapping[str, Any], origin: str) -> None:
    for name, value in nodes(values):
        words, kinds = _kind(name)
        needed = words.endswith("type") or name.rpartition(".")[2].isdecimal()
        if not isinstance(value, kinds) and not (value is None and not needed):
            raise ConfigError(f"{origin}: {name} must be {words}, got {value!r:.80}")
        if words == "a dict with type" and not value.get("type"):
            raise ConfigError(f"{origin}: {name} must be {words}, got {dict(value)!r:.80}")
        if isinstance(value, str) and not (value.isprintable() or name.startswith("model.")):
            locale = "; under LC_ALL=C names are ASCII, under LC_ALL=C.UTF-8 any" if not _is_text(value) else ""
            raise ConfigError(f"{origin}: {name} has characters that cannot be printed: {value!r:.80}{locale}")


def _is_text(value: str) -> bool:
    """Whether a string is no name of a file whose bytes the locale has no characters for."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


@cache
def _kind(name: str) -> tuple[str, tuple[type, ...]]:
    return next((kind for pattern, kind in KINDS.items() if fnmatchcase(name, pattern)), ("", (object,)))


@cache
def _number(name: str) -> Key | None:
    return next((key for pattern, key in NUMBERS.items() if fnmatchcase(name, pattern)), None)


def _check_section(config: Config, section: str, known: tuple[str, ...], origin: str) -> None:
    node: Any = config
    for part in section.split("."):
        node = node.get(part) or {}
    for key in node:
        if key not in known:
            there = ELSEWHERE.get(f"{section}.{key}")
            hint = f": {there}" if there else did_you_mean(key, known) or f"; there is {', '.join(known)}"
            raise ConfigError(f"{origin}: {section}.{key} has no effect{hint}")


def _check_length(length: Mapping[str, Any], origin: str) -> None:
    given = [name for name in ("max_epochs", "max_iters") if length.get(name) is not None]
    if len(given) != 1:
        listed = " and ".join(given) or "none"
        raise ConfigError(f"{origin}: train_cfg needs one of max_epochs and max_iters, got {listed}")
    if (loop := length.get("type")) and LOOPS.get(loop) != given[0]:
        raise ConfigError(
            f"{origin}: train_cfg.type is {loop}; there is one trainer, and train_cfg.{given[0]} its length"
        )


def _check_numbers(values: Mapping[str, Any], origin: str) -> None:
    for name, value in nodes(values):
        if isinstance(value, float) and math.isnan(value):
            raise ConfigError(f"{origin}: {name} is no number (nan)")
        key = _number(name)
        if key is None and isinstance(value, float) and math.isinf(value):
            raise ConfigError(f"{origin}: {name} is {value}, which the file that is saved could not hold")
        if key is None or (value is None and any(fnmatchcase(name, pattern) for pattern in OPTIONAL)):
            continue
        if isinstance(value, (list, tuple)) and any(pattern[:-1] == name for pattern in NUMBERS):
            continue  # its items are looked at
        try:
            number = coerce(key, value)
        except ValueError as error:
            raise ConfigError(f"{origin}: {name} {error}") from None
        if type(number) is not type(value) and not isinstance(value, int):  # it stays as it was written
            raise ConfigError(f"{origin}: {name} must be the number {number}, got {value!r:.80}")


def _check_optimization(config: Config, origin: str) -> None:
    optim = config.optim_wrapper
    optimizer = optim.get("optimizer") or {}
    if optimizer.get("lr") is None:
        raise ConfigError(f"{origin}: optim_wrapper.optimizer.lr, the learning rate for global_batch, is missing")
    schedule = config.param_scheduler
    for one in [schedule] if isinstance(schedule, Mapping) else schedule:
        if (one.get("eta_min") or 0.0) > optimizer.lr:
            raise ConfigError(f"{origin}: eta_min {one.eta_min} of {one.type} in param_scheduler is larger than "
                              f"optim_wrapper.optimizer.lr {optimizer.lr}")  # fmt: skip
    if (clip := optim.get("clip_grad")) is not None and not clip:
        raise ConfigError(f"{origin}: optim_wrapper.clip_grad must be dict(max_norm=…), or None for none, got {clip!r}")
    for name, (default, *others) in CHOICES.items():
        if (value := optim.get(name, default)) not in (default, *others):
            allowed = " or ".join((default, *others))
            raise ConfigError(f"{origin}: optim_wrapper.{name} must be {allowed}, got {value!r:.80}")
    if optim.get("type") == "ApexOptimWrapper":
        if optim.get("dtype") == "bfloat16":
            raise ConfigError(f"{origin}: optim_wrapper.type ApexOptimWrapper computes in float16, not in bfloat16")
        for name, value in (("parallel", "fsdp"), ("compile", True)):
            if config.run.get(name) == value:
                raise ConfigError(f"{origin}: optim_wrapper.type ApexOptimWrapper works without run.{name} {value} "
                                  "only: write AmpOptimWrapper")  # fmt: skip
    if not config.run.get("metric"):
        raise ConfigError(f"{origin}: run.metric must name what the best checkpoint has most of, e.g. coco/bbox_mAP")
    if config.get("pretrained_ignore") and not config.get("pretrained"):
        raise ConfigError(f"{origin}: pretrained_ignore has no effect without pretrained, the file that it is about")
    if (config.get("visualizer") or {}).get("vis_backends"):
        raise ConfigError(f"{origin}: visualizer.vis_backends is read by mmengine's Runner alone; here "
                          f"{RUNNER_ONLY['vis_backends']}")  # fmt: skip


def nodes(node: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting, sections and lists included."""
    if where:
        yield where, node
    if isinstance(node, (Mapping, list, tuple)):
        for key, value in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from nodes(value, f"{where}.{key}" if where else str(key))
