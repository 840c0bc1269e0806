"""What a training leaves at its end: curves, a summary for machines, and the last lines for people."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from elsa.core import logger, write_json
from elsa.engine import Logbook, Recipe, Runtime, TrainState, peak_memory_gb, read_log

from .parts import Training
from .pictures import draw_curves

# Beginnings of names in a recipe of detection or segmentation that say where data and pictures come from.
NO_HYPER_PARAMETERS = ("custom_imports", "train_dataloader", "val_", "test_", "tta_", "visualizer")
MADE = ("best.pt", "best.safetensors", "last.pt", "shards", "curves.png", "log.jsonl", "tensorboard")


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def described(arch: str, network: nn.Module) -> str:
    """The size of a network for people, and how much of it learns where that is not all."""
    whole = parameters(network)
    learning = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    return f"{arch}: {whole / 1e6:.2f} M parameters{f', of which {learning:,} learn' if learning < whole else ''}"


def conclude(
    training: Training,
    folder: Path,
    state: TrainState,
    finished: bool,
    seconds: float,
    runtime: Runtime,
    logbook: Logbook,
    recipe: Recipe,
) -> None:
    """Curves, a summary for machines, and the last lines for people."""
    if state.history:
        title = f"{training.arch}: {folder.name}"
        draw_curves(read_log(folder), folder / "curves.png", title, training.curves, training.metric)
    if not finished:
        logger.info("stopped after step %d and saved; go on with --resume auto", state.step)
        return
    last, plan = state.history[-1], training.plan
    best_epoch = -(-state.best_step // plan.steps_per_epoch)
    early = state.step < plan.total_steps
    summary = {
        "task": training.task,
        "model": training.arch,
        "parameters": parameters(state.model),
        "iterations": state.step,
        "stopped_early": early,
        "epochs": state.epoch,
        "metric": training.metric,
        "last": last,
        "best": {training.metric: state.best, "iteration": state.best_step, "epoch": best_epoch},
        "unreadable": list(training.batches.bad.names),
        "skipped": state.skipped,
        "seconds_of_this_launch": round(seconds, 1),
        "peak_memory_gb": round(peak_memory_gb(runtime.device), 2),
    }
    write_json(folder / "summary.json", summary)
    hyper = {name: value for name, value in recipe.values.items() if not name.startswith(NO_HYPER_PARAMETERS)}
    logbook.conclude(hyper, summary)
    if early:
        epochs = (state.last_eval - state.best_step) / plan.steps_per_epoch
        logger.info("ended early, after %d of %d steps: no better %s for %.4g epochs",
                    state.step, plan.total_steps, training.metric, epochs)  # fmt: skip
    logger.info("finished: %s %.4g in the end, best %.4g after step %d (epoch %d); %.0f s, %.2f GB", training.metric,
                last[training.metric], state.best, state.best_step, best_epoch, seconds,
                summary["peak_memory_gb"])  # fmt: skip
    made = [name for name in MADE if (folder / name).exists()]
    logger.info("%s/ has %s", folder, ", ".join(made))
