"""The parts of a training of a detector or segmentor, for the one trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from elsa.core import ConfigError
from elsa.data.decode import TURNED
from elsa.data.mm.loaders import eval_loader, train_loader
from elsa.engine import (
    Parallel,
    Plan,
    Precision,
    Recipe,
    Runtime,
    Step,
    TrainState,
    by_apex,
    fit_precision,
    read_options,
)
from elsa.engine.parallel import blocks

from ..parts import Training
from ..planning import settle_here
from .evaluation import Metric, build_evaluator, check_metric, evaluate
from .gallery import DenseGallery
from .optim import Schedules, build_optimizer
from .planning import as_planned, batch_wish, memory_of
from .recipe import stored
from .session import build_model, check_classes, draw_embedded, mistakes_named, prepare
from .start import initialise

APEX = "ApexOptimWrapper"


class DenseStep(Step):
    """A step of mmdet's and mmseg's models: the sum of the losses that the model gives for its own targets.

    Gradients are clipped in the order of the optimizer's groups, as mmengine does it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.clipped = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.proven = False  # whether the parts of the model fit together

    def count(self, batch: Mapping[str, Any]) -> int:
        return len(batch["inputs"])

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Tensor]]:
        place, runtime = "model, in its first step", self.parallel.runtime
        with self.precision.autocast(), nullcontext() if self.proven else mistakes_named(place, runtime):
            data = self.source.data_preprocessor(batch, True)
            losses = self.model(**data, mode="loss")
            total, terms = self.source.parse_losses(losses)
        self.proven = True
        return total, {name: torch.as_tensor(value) for name, value in terms.items() if name != "loss"}


def build_training(
    recipe: Recipe,
    runtime: Runtime,
    before: Mapping[str, Any] | None,
    trust: bool,
    task: str,
    metric: Metric,
    drawing: Callable[[Mapping[str, Any]], Any],
) -> Training:
    """The parts of a training as the recipe says, for ``training.train``.

    Args:
        before: the checkpoint that the run goes on from.
        drawing: facts of the data set → what draws a picture.
    """
    config = recipe.config
    prepare(config)
    draw_embedded(config, runtime)
    length = config.train_cfg
    options = read_options(lambda name, key, default: config.run.get(name, default))
    wish = batch_wish(config, before)
    wish.divisions(runtime.world_size)  # refused before anything is built
    precision = choose_precision(config, runtime.device)
    model, adapted = build_model(config, runtime)
    device = (runtime.device.type, precision.dtype, runtime.world_size, options.parallel)
    settled = settle_here(wish, runtime, lambda: memory_of(config, model, *device))
    batch, (optim, param_scheduler) = settled.batch, as_planned(config, settled.batch)
    _check_batch_norm(model, batch.micro, runtime.world_size)
    seed, place = config.randomness.seed, (runtime.rank, runtime.world_size)
    max_bad, orientation = config.run.get("max_bad", 0), config.get("image_orientation", TURNED)
    with mistakes_named("train_dataloader"):
        division = (batch.size, batch.accumulate)
        batches = train_loader(config.train_dataloader, division, seed, *place, max_bad, orientation)
    with mistakes_named("val_dataloader"):
        held_out = eval_loader(config.val_dataloader, *place, orientation)
    with mistakes_named("val_evaluator"):
        evaluator = build_evaluator(config.val_evaluator, held_out)
    for loader in (batches.loader, held_out):
        check_classes(config, loader.dataset.metainfo["classes"])
    check_metric(config.val_evaluator, config.run.metric, metric, held_out.dataset.metainfo["classes"])
    if before is None:
        initialise(model, config, held_out.dataset.metainfo["classes"], trust)
    model.to(runtime.device)
    if optim.get("type") == "AmpOptimWrapper" and precision.dtype is None:
        adapted = ("no GPU: float32 instead of mixed precision", *adapted)
    with mistakes_named("optim_wrapper"):
        optimizer = build_optimizer(model, optim, options.parallel)
    with mistakes_named("param_scheduler"):
        schedule = Schedules(optimizer, param_scheduler, batches.steps_per_epoch)
    in_epochs = "max_epochs" in length
    unit = batches.steps_per_epoch if in_epochs else 1
    plan = Plan(
        seed=seed,
        device=str(runtime.device),
        precision=str(precision),
        processes=runtime.world_size,
        global_batch=batch.size,
        accumulate=batch.accumulate,
        micro_batch=batch.micro,
        lr=optim.optimizer.lr,
        train_images=batches.images,
        val_images=len(held_out.dataset),
        steps_per_epoch=batches.steps_per_epoch,
        total_steps=(length.max_epochs if in_epochs else length.max_iters) * unit,
        evaluate_every=length.get("val_interval", 1) * unit,
        save_every=length.get("save_steps", 0),
        log_every=options.log_every,
        adapted=(*adapted, *settled.adapted),
        memory=settled.as_dict(),
        estimate=settled.told,
    )

    def make_step(wrapped: nn.Module, state: TrainState, parallel: Parallel) -> Step:
        clip = (optim.get("clip_grad") or {}).get("max_norm")
        common = dict(source=model, scaler=state.scaler, clip_grad=clip, ema=state.ema, parallel=parallel)
        return DenseStep(wrapped, state.optimizer, precision, **common)

    meta = batches.loader.dataset.metainfo
    facts = {name: _plain(meta[name]) for name in ("classes", "palette", "category_ids") if meta.get(name)}
    gallery = DenseGallery(options.images, drawing(meta), len(held_out), orientation) if options.images else None
    seen = gallery.note if gallery and runtime.is_main else (lambda number, found: None)

    return Training(
        task=task,
        arch=config.model.type,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        precision=precision,
        batches=batches,
        plan=plan,
        make_step=make_step,
        evaluate=lambda counted: evaluate(counted, held_out, evaluator, runtime, config.run.metric, max_bad, seen),
        metric=config.run.metric,
        curves=metric.curves,
        classes=meta["classes"],
        meta={"meta": {"dataset_meta": facts}, "recipe": stored(config)},
        options=options,
        gallery=gallery,
        compiled=backbone_and_neck,
    )


def backbone_and_neck(model: nn.Module) -> list[nn.Module]:
    """What is compiled: the backbone's blocks, for maps of any size, and the neck. Heads depend on what is found."""
    return [*blocks(model), *([model.neck] if getattr(model, "with_neck", False) else [])]


def _check_batch_norm(model: nn.Module, micro: int, processes: int) -> None:
    """Raises ConfigError where batch norm would see a single number per channel: one image, pooled to 1×1."""
    for name, module in model.named_modules():
        first = next(module.children(), None) if isinstance(module, nn.Sequential) else None
        if micro == 1 and isinstance(first, nn.AdaptiveAvgPool2d) and first.output_size in (1, (1, 1)):
            for norm in module.modules():
                alone = isinstance(norm, nn.BatchNorm2d) or processes == 1
                if isinstance(norm, nn.modules.batchnorm._BatchNorm) and alone:
                    raise ConfigError(
                        f"{name} normalises a map of 1×1 over the images that a process holds at a time, which must be "
                        "two or more: global_batch is too small for so many processes and accumulated micro-batches"
                    )


def choose_precision(config: Config, device: torch.device) -> Precision:
    """That of ``optim_wrapper``: AmpOptimWrapper computes in its ``dtype``, ApexOptimWrapper in float16; a CPU in
    float32 in place of float16, which recipes name for GPUs.

    Raises:
        ConfigError: apex is asked for, and it or a GPU is missing.
    """
    kind, named = config.optim_wrapper.get("type"), config.optim_wrapper.get("dtype", "float16")
    if kind == APEX:
        return by_apex(f"optim_wrapper.type {APEX}", device)
    native = kind == "AmpOptimWrapper" and (named, device.type) != ("float16", "cpu")
    return fit_precision(named if native else None, device)


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
