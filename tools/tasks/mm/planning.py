"""What a recipe of detection or segmentation says of its batch and its memory, for ``planning``."""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.nn.functional import interpolate

from elsa.core import ConfigError
from elsa.engine import Batch, Recipe, Runtime
from elsa.engine.memory import IMAGES, Memory
from elsa.engine.options import OPTIONS
from elsa.engine.schema import SCHEMA

from ..complexity import multiply_adds
from ..conclusion import parameters
from ..outlook import PRECISIONS, Outlook
from ..planning import ALIKE, Wish, estimated
from .optim import build_optimizer
from .session import build_model, prepare

NAMES = ("global_batch", "optim_wrapper.accumulative_counts", "run.lr_rule")
# Training images: COCO's with objects of a size that detectors are trained on, as filter_cfg of the recipes says.
WELL_KNOWN = {"instances_train2017.json": 117_266, "CheckedADE20KDataset": 20_210}
# Height and width of the images that the multiply-adds of dense models are usually told of.
COMPARED = {"mmdet": (800, 1280), "mmseg": (512, 2048)}
CHECKPOINTED = "model.backbone.with_cp"


def batch_wish(config: Config, before: Mapping[str, Any] | None = None) -> Wish:
    """What the recipe says of its batch.

    Args:
        before: the checkpoint that a run is resumed from.
    """
    optim, loader = config.optim_wrapper, config.train_dataloader
    kept = None if before is None else before.get("global_batch", config.global_batch)
    cures = [] if config.model.get("backbone", {}).get("with_cp") else [f"{CHECKPOINTED}=True"]
    cures += [] if _option(config, "parallel") == "fsdp" else ["run.parallel=fsdp"]
    return Wish(
        batch=config.global_batch,
        accumulate=optim.get("accumulative_counts"),
        rule=_option(config, "lr_rule"),
        lr=optim.optimizer.lr,
        names=NAMES,
        cures=tuple(cures),
        groups=loader.get("aspect_group") or 1,
        kept=kept,
    )


def _option(config: Config, name: str) -> Any:
    """A setting of ``run``, or its default."""
    return config.run.get(name, SCHEMA[OPTIONS[name]].default)


def as_planned(config: Config, batch: Batch) -> tuple[Any, Any]:
    """``optim_wrapper`` and ``param_scheduler`` with the learning rates of the batch; the recipe stays as written."""
    optim, schedule = copy.deepcopy(config.optim_wrapper), copy.deepcopy(config.param_scheduler)
    optim.optimizer.lr *= batch.lr_factor
    for one in [schedule] if isinstance(schedule, Mapping) else schedule:
        if one.get("eta_min"):
            one["eta_min"] *= batch.lr_factor
    return optim, schedule


def memory_of(
    config: Config, model: nn.Module, device: str, dtype: torch.dtype | None, processes: int, parallel: str
) -> Memory:
    """The estimate for a process that trains this model, which may be on the meta device, with images of the largest
    size that its pipeline makes."""
    height, width = image_size(config)
    shape = (IMAGES, 3, height, width)

    def forward(network: nn.Module, empty: Callable[..., Tensor]) -> list[Any]:
        images = empty(*shape)
        levels = network.extract_feat(images)
        return [levels, *_heads(network, levels, empty, (height, width))]

    optimizer = dict(config.optim_wrapper.optimizer)
    if optimizer.get("opt") in ALIKE:
        optimizer["opt"] = ALIKE[optimizer["opt"]]
    notes = [f"at {height}×{width}"]
    if not hasattr(model, "decode_head"):
        notes.append("the targets and losses of a detector's heads are not included")
    if _option(config, "compile"):
        notes.append("torch.compile may need less")
    with_cp = bool(config.model.get("backbone", {}).get("with_cp"))
    return estimated(
        model,
        forward,
        lambda probe: build_optimizer(probe, {"optimizer": optimizer}, "ddp"),
        device=device,
        dtype=dtype,
        recompute=_switch if with_cp else None,
        average=_option(config, "ema_decay") is not None,
        processes=processes,
        parallel=parallel,
        notes=tuple(notes),
    )


def _switch(model: Any, on: bool) -> None:
    """Recomputation of the backbone's blocks."""
    for part in model.backbone.modules():
        if hasattr(part, "grad_checkpointing"):
            part.grad_checkpointing = on


def _heads(model: Any, levels: Sequence[Tensor], empty: Callable[..., Tensor], size: tuple[int, int]) -> Iterator[Any]:
    """What the heads make of a backbone's (and neck's) maps."""
    for name in ("decode_head", "auxiliary_head"):
        head = getattr(model, name, None)
        for one in head if isinstance(head, nn.ModuleList) else filter(None, [head]):
            logits = interpolate(one(levels), size=size, mode="bilinear", align_corners=one.align_corners)
            yield logits.float().log_softmax(1)
    for name in ("rpn_head", "bbox_head", "mask_head"):
        if (head := getattr(model, name, None)) is not None:
            yield head(levels)
    if (heads := getattr(model, "roi_head", None)) is not None:
        yield from _region_heads(heads, empty)


def _region_heads(heads: Any, empty: Callable[..., Tensor]) -> Iterator[Any]:
    """What heads of regions make of as many regions as are sampled at most."""
    stages = heads.train_cfg if isinstance(heads.train_cfg, (list, tuple)) else [heads.train_cfg]
    boxes, masks = (_stages(getattr(heads, name, None)) for name in ("bbox_head", "mask_head"))
    extractors = (_stages(getattr(heads, name, None)) for name in ("bbox_roi_extractor", "mask_roi_extractor"))
    of_boxes, of_masks = extractors
    for number, stage in enumerate(stages):
        sampler = stage.sampler
        for found, used, share in ((boxes, of_boxes, 1.0), (masks, of_masks or of_boxes, sampler.pos_fraction)):
            if found:
                extractor = used[number % len(used)]
                count = IMAGES * int(sampler.num * share)
                side = extractor.roi_layers[0].output_size
                regions = empty(count, extractor.out_channels, *side).requires_grad_()
                yield regions, found[number % len(found)](regions)


def _stages(part: Any) -> list[Any]:
    return [] if part is None else list(part) if isinstance(part, nn.ModuleList) else [part]


def image_size(config: Config) -> tuple[int, int]:
    """Height and width of the largest training image, padded as the model wants it.

    Raises:
        ConfigError: the pipeline does not say.
    """
    before = config.model.get("data_preprocessor") or {}
    dataset = config.train_dataloader.dataset
    pipeline = dataset.dataset.get("pipeline") or [] if "dataset" in dataset else dataset.get("pipeline") or []
    found = before.get("size") or _size_after(pipeline, None)
    if found is None:
        raise ConfigError("train_dataloader's pipeline has no Resize or RandomCrop that says how large images are")
    step = before.get("pad_size_divisor") or 1
    height, width = (-(-side // step) * step for side in found)
    return height, width


def _size_after(pipeline: Sequence[Any], size: tuple[int, int] | None) -> tuple[int, int] | None:
    """(height, width) of the largest image that steps make of one of ``size``; None where nothing says."""
    for one in pipeline:
        kind = str(one["type"])
        if kind == "RandomChoice":
            ends = [_size_after(branch, size) for branch in one["transforms"]]
            size = max((end for end in ends if end), key=_area, default=size)
        elif "Resize" in kind and (scales := one.get("scales") or one.get("scale")):
            scales = [scales] if isinstance(scales[0], int) else scales
            most = max((one.get("ratio_range") or (1, 1))[1], 1)
            sides = [sorted(int(side * most) for side in scale) for scale in scales]
            size = max(((short, long) for short, long in sides), key=_area)
        elif kind == "RandomCrop" and one.get("crop_type", "absolute").startswith("absolute"):
            crop = one["crop_size"]
            height, width = (crop, crop) if isinstance(crop, int) else crop
            longest = max(height, width)
            size = (longest, longest) if one.get("crop_type") == "absolute_range" else (height, width)
    return size


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def dense_outlook(recipe: Recipe, args: argparse.Namespace) -> Outlook:
    """For ``foresee``: the model is built on the meta device, as for a GPU."""
    config = recipe.config
    model = _without_memory(config)
    optim, length = config.optim_wrapper, config.train_cfg
    mixed = {"bfloat16": "bf16"}.get(optim.get("dtype"), "fp16") if optim.get("type") == "AmpOptimWrapper" else "fp32"
    dtype, parallel = PRECISIONS[args.precision or mixed], args.parallel or _option(config, "parallel")
    schedules = [config.param_scheduler] if isinstance(config.param_scheduler, Mapping) else config.param_scheduler
    ends = {f"eta_min of {one['type']}": one["eta_min"] for one in schedules if one.get("eta_min")}
    return Outlook(
        wish=batch_wish(config),
        model=config.model.type,
        parameters=parameters(model),
        rates={"optim_wrapper.optimizer.lr": optim.optimizer.lr, **ends},
        images=_known_images(config),
        epochs=length.get("max_epochs"),
        steps=length.get("max_iters"),
        measured=lambda processes: memory_of(config, model, "cuda", dtype, processes, parallel),
    )


def _without_memory(config: Config) -> nn.Module:
    prepare(config)
    with torch.device("meta"):
        return build_model(config, Runtime(0, 1, torch.device("cuda")))[0]


def count_dense(config: Config) -> dict[str, Any]:
    """Height and width of an image as detectors and segmentors are usually compared, and as they are tested where the
    images are drawn; parameters of the whole, multiply-adds of the backbone."""
    model, size = _without_memory(config), _compared_size(config)
    return {
        "input": list(size),
        "parameters": parameters(model),
        "multiply_adds": multiply_adds(model.backbone, (3, *size)),
    }


def compared_backbone(config: Config) -> tuple[nn.Module, tuple[int, int, int]]:
    """The backbone, freshly initialised, and the image of which its multiply-adds are counted."""
    prepare(config)
    return build_model(config, Runtime(0, 1, torch.device("cpu")))[0].backbone, (3, *_compared_size(config))


def _compared_size(config: Config) -> tuple[int, int]:
    size = COMPARED[config.default_scope]
    if config.get("embedded"):
        size = _size_after(config.test_dataloader.dataset.pipeline, None) or size
    return size


def _known_images(config: Config) -> int | None:
    """Training images of well known data, and of those that are drawn."""
    if embedded := config.get("embedded"):
        return embedded.get("train")
    dataset = config.train_dataloader.dataset.get("dataset") or {}
    names = itertools.chain([str(dataset.get("ann_file", "")).rpartition("/")[2]], [str(dataset.get("type"))])
    return next((WELL_KNOWN[name] for name in names if name in WELL_KNOWN), None)
