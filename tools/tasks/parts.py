"""The parts of a training, which a task gives and the trainer is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from elsa.data import TrainLoader
from elsa.engine import Evaluation, Options, Parallel, Plan, Precision, Schedule, Step, TrainState

from .gallery import Gallery


@dataclass
class Training:
    """What a task gives to be trained.

    Attributes:
        task, arch: names for people and for the checkpoint.
        make_step: the model as it is called (distributed), the state, how it is spread → the step.
        evaluate: a module with the weights that count → the evaluation.
        metric: what the best checkpoint has most of; curves: beginnings of the names that curves.png draws.
        classes: class names, in the order of the labels; meta: further entries of the checkpoint.
        evaluate_ema: whether the average of the weights counts where one is kept.
        gallery: draws what is shown beside the numbers.
        compiled: a network whose images have any size → its parts that TRAIN.COMPILE compiles; None: of one size.
    """

    task: str
    arch: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    batches: TrainLoader
    plan: Plan
    make_step: Callable[[nn.Module, TrainState, Parallel], Step]
    evaluate: Callable[[nn.Module], Evaluation]
    metric: str
    curves: Sequence[str]
    classes: Sequence[str]
    options: Options
    meta: Mapping[str, Any] = field(default_factory=dict)
    evaluate_ema: bool = True
    gallery: Gallery | None = None
    compiled: Callable[[nn.Module], list[nn.Module]] | None = None

    @property
    def data(self) -> dict[str, Any]:
        """What must be the same when the run is resumed."""
        return {"images": self.plan.train_images, "classes": list(self.classes)}
