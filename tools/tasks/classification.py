"""Classification: how each verb is done for it."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from tqdm import tqdm
from yacs.config import CfgNode

from elsa.core import ConfigError, DataError, check_writable, logger, make_folder, write_json
from elsa.data import (
    Batch,
    UnreadableImage,
    build_mix,
    build_mix_token,
    class_weights,
    decode,
    eval_loader,
    eval_transform,
    image_size,
    token_targets,
    train_loader,
)
from elsa.engine import (
    Evaluation,
    Metrics,
    Parallel,
    Precision,
    Recipe,
    Runtime,
    TokenLabelLoss,
    TokenLabelStep,
    TrainState,
    TrainStep,
    WeightedCrossEntropy,
    build_optimizer,
    build_schedule,
    choose_precision,
    dump,
    evaluate,
    freeze,
    load_recipe,
    read_options,
    restore_recipe,
)

from .checkpoints import in_short
from .classifier_evaluation import OPTIONS, evaluate_checkpoint
from .classifier_plan import as_planned, batch_wish, classifier_outlook, memory_of, plan_of
from .command import find_images
from .complexity import count_classifier
from .exporting import classifier as exporting
from .gallery import ClassifierGallery
from .networks import build_model, create_network, load_classifier, open_data, start_from_pretrained, token_grid
from .outlook import Outlook
from .parts import Training
from .pictures import class_text, draw_grid, told
from .planning import settle_here
from .training import train
from .visualize.classifier import look_at_classifier
from .visualize.sheet import show_batches

MOST_DRAWN = 100


class Classification:
    """Image classification by timm's models and ours; recipes are YAML."""

    name = "classification"
    options: ClassVar = {
        "evaluate": OPTIONS,
        "predict": [("--top", dict(type=int, metavar="K", help="classes listed per image; default 5"))],
        "export": exporting.OPTIONS,
    }

    def read(self, path: Path, overrides: list[str]) -> Recipe:
        return load_recipe(path, overrides)

    def restore(self, content: Mapping[str, Any], origin: str, overrides: list[str], ours: bool) -> Recipe:
        return restore_recipe(content["config"], origin, overrides)

    def print_config(self, recipe: Recipe) -> str:
        return dump(recipe.config, comments=True)

    def build(self, recipe: Recipe, *rest: Any) -> Training:
        return build_training(recipe, *rest)

    def train(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        train(self.build, recipe, args, runtime)

    def evaluate(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        evaluate_checkpoint(recipe, args, runtime)

    def predict(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        classify_images(recipe.config, args, runtime)

    def visualize(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        look_at_classifier(recipe.config, args, runtime)

    def show_data(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        show_batches(recipe.config, args, runtime)

    def export(self, recipe: Recipe, args: argparse.Namespace, runtime: Runtime) -> None:
        exporting.export_classifier(recipe, args, runtime)

    def outlook(self, recipe: Recipe, args: argparse.Namespace) -> Outlook:
        return classifier_outlook(recipe, args)

    def count(self, recipe: Recipe) -> dict[str, Any]:
        return count_classifier(recipe.config)

    def network(self, recipe: Recipe) -> tuple[nn.Module, tuple[int, int, int]]:
        config = recipe.config
        return create_network(config), (config.MODEL.IN_CHANS, *image_size(config))


# ---- training ------------------------------------------------------------------------------------------------------


def build_training(recipe: Recipe, runtime: Runtime, before: Mapping[str, Any] | None, trust: bool) -> Training:
    """The parts of a training as the recipe says; ``before``: the checkpoint that it goes on from."""
    written = recipe.config
    options = read_options(lambda name, key, default: recipe.values[key])
    precision = choose_precision(written, runtime.device, training=True)
    wish = batch_wish(written, before)
    wish.divisions(runtime.world_size)  # refused before anything is built
    train_source, val_source = open_data(written, runtime, "train", "val")
    model = build_model(written)
    freeze(model, written)
    place = (runtime.device.type, precision.dtype, runtime.world_size, options.parallel)
    settled = settle_here(wish, runtime, lambda: memory_of(written, model, *place))
    batch, config = settled.batch, as_planned(written, settled.batch)
    batches = train_loader(config, train_source, runtime.rank, runtime.world_size)
    weights = class_weights(config, train_source)
    if weights is not None:
        logger.info("class weights from %.3g to %.3g", weights.min(), weights.max())
    held_out = eval_loader(config, val_source, runtime.rank, runtime.world_size)
    if before is None:
        start_from_pretrained(model, config, train_source, trust)
    if getattr(train_source, "order_is_open", False):
        listed = in_short(train_source.classes, 5)
        logger.info("class folders are sorted as text, %s; DATA.CLASSES=natural sorts them by their numbers", listed)
    model.to(runtime.device)
    optimizer = build_optimizer(model, config)
    schedule, epochs = build_schedule(optimizer, config, batches.steps_per_epoch)
    plan = plan_of(config, settled, precision, runtime, batches, held_out.total, epochs)
    classes = getattr(train_source, "classes", [])
    return Training(
        task="classification",
        arch=config.MODEL.NAME,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        precision=precision,
        batches=batches,
        plan=plan,
        make_step=lambda wrapped, state, parallel: build_step(
            config, wrapped, state, parallel, precision, batch.micro, weights
        ),
        evaluate=lambda counted: _as_evaluation(
            evaluate(counted, held_out, held_out.total, runtime, precision, held_out.bad)
        ),
        metric="top1",
        curves=("top1", "top5"),
        classes=classes,
        options=options,
        gallery=ClassifierGallery(config, val_source, classes, precision) if options.images else None,
        evaluate_ema=config.EVAL.WEIGHTS != "model",
    )


def _as_evaluation(metrics: Metrics) -> Evaluation:
    text = f"top-1 {metrics.top1:.2f} % top-5 {metrics.top5:.2f} % loss {metrics.loss:.4f}"
    return Evaluation(metrics.as_dict(), metrics.count, text)


def build_step(
    config: CfgNode,
    wrapped: nn.Module,
    state: TrainState,
    parallel: Parallel,
    precision: Precision,
    micro: int,
    weights: Tensor | None,
) -> TrainStep:
    """The optimization step: token labeling where TOKENS says so, else mixup, cutmix and cross entropy as AUG says.

    Args:
        wrapped: the model as it is called. micro: images per process and micro-batch.
        weights: of the classes in the cross entropy, or None.
    """
    common = dict(
        source=state.model,
        scaler=state.scaler,
        clip_grad=config.TRAIN.CLIP_GRAD,
        ema=state.ema,
        parallel=parallel,
    )
    tokens, smoothing = config.TOKENS, config.AUG.SMOOTHING
    if not tokens.ENABLED:
        mix = build_mix(config, micro)
        smoothing = 0.0 if mix else smoothing
        criterion: nn.Module = nn.CrossEntropyLoss(label_smoothing=smoothing)
        if weights is not None:
            criterion = WeightedCrossEntropy(weights.to(parallel.runtime.device), smoothing)
        return TrainStep(wrapped, state.optimizer, criterion, precision, mix=mix, **common)

    grid, classes = token_grid(config, state.model), config.MODEL.NUM_CLASSES

    def targets(batch: Batch, device: torch.device) -> tuple[Tensor, ...]:
        labels = None if batch.tokens is None else batch.tokens.to(device)
        return token_targets(labels, batch.targets.to(device, non_blocking=True), classes, grid, smoothing)

    return TokenLabelStep(
        wrapped,
        state.optimizer,
        TokenLabelLoss(tokens.CLASS_WEIGHT, tokens.PATCH_WEIGHT, tokens.GROUND_TRUTH),
        precision,
        token_targets=targets,
        draw_box=build_mix_token(config, micro, grid),
        **common,
    )


# ---- prediction ----------------------------------------------------------------------------------------------------


def classify_images(config: CfgNode, args: argparse.Namespace, runtime: Runtime) -> None:
    """The classes of each image, as JSON and as a picture; of one that cannot be read the JSON has the reason.

    Raises:
        DataError: not one can be read.
    """
    classes = config.MODEL.NUM_CLASSES
    top = min(5, classes) if args.top is None else args.top
    if not 1 <= top <= classes:
        raise ConfigError(f"--top must be between 1 and MODEL.NUM_CLASSES {classes}, got {top}")
    check_writable(args.output)
    paths = find_images(args.images)
    model, names = load_classifier(config, args.checkpoint, args.trust_checkpoint)
    told_of = dict(classify(model.to(runtime.device).eval(), config, paths, runtime.device, top))
    rows = [(path, told_of[path]) for path in paths if not isinstance(told_of[path], str)]
    if not rows:
        places = ", ".join(map(str, args.images))
        raise DataError(f"none of the {len(paths)} images of {places} can be read: {next(iter(told_of.values()))}")
    results = [
        {"image": str(path), "error": found}
        if isinstance(found := told_of[path], str)
        else {"image": str(path), "top": [{"class": names[index], "confidence": share} for index, share in found]}
        for path in paths
    ]
    make_folder(args.output)
    write_json(args.output / "predictions.json", results)
    drawn = rows[:MOST_DRAWN]
    cells = ((decode(path), class_text(names[top[0][0]], top[0][1]), "black") for path, top in drawn)
    draw_grid(cells, args.output / "predictions.png", f"{config.MODEL.NAME}: {args.checkpoint.name}", len(rows))
    for path, found in rows[:10]:
        logger.info("%s: %s", path, ", ".join(f"{names[index]} {share:.1%}" for index, share in found))
    logger.info("%d of %d images classified: predictions.json and predictions.png%s in %s",
                len(rows), len(paths), told(len(drawn), len(rows)), args.output)  # fmt: skip


@torch.inference_mode()
def classify(
    model: nn.Module, config: CfgNode, paths: list[Path], device: torch.device, top: int
) -> Iterator[tuple[Path, list[tuple[int, float]] | str]]:
    """(path, [(class index, confidence), …]) of each image, or why it cannot be read."""
    transform, precision = eval_transform(config), choose_precision(config, device)
    mode = "RGB" if config.MODEL.IN_CHANS == 3 else "L"
    remaining = iter(tqdm(paths, desc="classifying", unit="image", disable=None, leave=False))
    while part := list(itertools.islice(remaining, config.DATA.EVAL_BATCH)):
        readable, images = [], []
        for path in part:
            try:
                images.append(transform(decode(path, mode)))
                readable.append(path)
            except UnreadableImage as error:
                logger.warning("skipping %s", error)
                yield path, error.reason
        if not images:
            continue
        with precision.autocast():
            logits = model(torch.stack(images).to(device))
        shares, indices = logits.float().softmax(1).topk(top)
        for path, index, share in zip(readable, indices.tolist(), shares.tolist(), strict=True):
            yield path, list(zip(index, share, strict=True))
