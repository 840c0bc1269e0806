"""What classification says of its batch and its memory, for ``planning``, and the plan that comes of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from elsa.data import TrainLoader, image_size
from elsa.engine import Batch, Plan, Precision, Recipe, Runtime, build_optimizer, freeze
from elsa.engine.memory import IMAGES, Memory

from .conclusion import parameters
from .networks import create_network
from .outlook import PRECISIONS, Outlook
from .planning import ALIKE, Settled, Wish, estimated

CLASSES, IMAGES_OF_IMAGENET = 1000, 1_281_167  # of ImageNet-1K
NAMES = ("DATA.BATCH", "TRAIN.ACCUM", "TRAIN.LR_RULE")
RATES = ("LR", "WARMUP_LR", "MIN_LR")


def batch_wish(config: CfgNode, before: Mapping[str, Any] | None = None) -> Wish:
    """What the recipe says of its batch.

    Args:
        before: the checkpoint that a run is resumed from.
    """
    aug, train = config.AUG, config.TRAIN
    mixes = aug.MIX_PROB and (aug.MIXUP or aug.CUTMIX)
    pairs = bool(config.TOKENS.MIX if config.TOKENS.ENABLED else mixes)
    kept = None if before is None else before.get("global_batch", config.DATA.BATCH)
    cures = [] if config.MODEL.GRAD_CHECKPOINTING else ["MODEL.GRAD_CHECKPOINTING=true"]
    cures += [] if train.PARALLEL == "fsdp" else ["TRAIN.PARALLEL=fsdp"]
    return Wish(config.DATA.BATCH, train.ACCUM, train.LR_RULE, train.LR, NAMES, tuple(cures), pairs, kept=kept)


def as_planned(config: CfgNode, batch: Batch) -> CfgNode:
    """The configuration that data, optimizer and schedule are built by; the recipe stays as it is written."""
    planned = config.clone()
    planned.defrost()
    planned.DATA.BATCH, planned.TRAIN.ACCUM = batch.size, batch.accumulate
    for name in RATES:
        planned.TRAIN[name] *= batch.lr_factor
    planned.freeze()
    return planned


def plan_of(
    config: CfgNode,
    settled: Settled,
    precision: Precision,
    runtime: Runtime,
    batches: TrainLoader,
    val_images: int,
    epochs: int,
) -> Plan:
    """The plan of a training, by the configuration ``as_planned``.

    Args:
        epochs: all that the schedule has.
    """
    batch, steps = settled.batch, batches.steps_per_epoch
    return Plan(
        seed=config.TRAIN.SEED,
        device=str(runtime.device),
        precision=str(precision),
        processes=runtime.world_size,
        global_batch=batch.size,
        accumulate=batch.accumulate,
        micro_batch=batch.micro,
        lr=config.TRAIN.LR,
        train_images=batches.images,
        val_images=val_images,
        steps_per_epoch=steps,
        total_steps=epochs * steps,
        evaluate_every=config.EVAL.EVERY * steps,
        save_every=config.LOG.SAVE_STEPS,
        log_every=config.LOG.EVERY,
        adapted=(*precision.slow(), *settled.adapted),
        memory=settled.as_dict(),
        estimate=settled.told,
    )


def memory_of(
    config: CfgNode, model: nn.Module, device: str, dtype: torch.dtype | None, processes: int, parallel: str
) -> Memory:
    """The estimate for a process that trains this model, which may be on the meta device."""
    shape = (IMAGES, config.MODEL.IN_CHANS, *image_size(config))
    options = {"token_logits": True} if config.TOKENS.ENABLED else {}

    def forward(network: nn.Module, empty: Callable[..., Tensor]) -> list[Tensor]:
        found = network(empty(*shape), **options)
        return [logits.float().log_softmax(-1) for logits in (found if isinstance(found, tuple) else (found,))]

    alike = config.clone()  # its groups of parameters are those of the model, its optimizer is not
    alike.defrost()
    alike.TRAIN.NO_DECAY, alike.TRAIN.LAYER_DECAY = (), None
    alike.TRAIN.OPTIMIZER = ALIKE.get(config.TRAIN.OPTIMIZER, config.TRAIN.OPTIMIZER)
    notes = ("torch.compile may need less",) if config.TRAIN.COMPILE else ()
    return estimated(
        model,
        forward,
        lambda probe: build_optimizer(probe, alike),
        device=device,
        dtype=dtype,
        recompute=(lambda network, on: network.set_grad_checkpointing(on)) if config.MODEL.GRAD_CHECKPOINTING else None,
        average=config.TRAIN.EMA_DECAY is not None,
        processes=processes,
        parallel=parallel,
        notes=notes,
    )


def classifier_outlook(recipe: Recipe, args: argparse.Namespace) -> Outlook:
    """For ``foresee``: the network is built on the meta device."""
    config = recipe.config
    with torch.device("meta"):
        network = create_network(config)
    freeze(network, config)
    named = {"float16": "fp16"}.get(config.AMP.DTYPE, "bf16") if config.AMP.ENABLED else "fp32"
    dtype = PRECISIONS[args.precision or named]
    data, train = config.DATA, config.TRAIN
    is_imagenet = "imagenet" in data.ROOT.lower() and config.MODEL.NUM_CLASSES == CLASSES
    parallel = args.parallel or train.PARALLEL
    return Outlook(
        wish=batch_wish(config),
        model=config.MODEL.NAME,
        parameters=parameters(network),
        rates={f"TRAIN.{name}": train[name] for name in RATES},
        images=IMAGES_OF_IMAGENET if is_imagenet and data.DATASET == "folder" else None,
        epochs=train.EPOCHS + train.COOLDOWN_EPOCHS,
        steps=None,
        measured=lambda processes: memory_of(config, network, "cuda", dtype, processes, parallel),
    )
