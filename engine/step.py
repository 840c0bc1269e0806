"""One optimization step, and the state that a training run carries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .distributed import Runtime
from .parallel import Parallel
from .precision import Precision

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class StepRecord:
    """What one step did: mean loss and gradient norm before clipping (scalars on the device), lr, images; the terms
    that the loss is the sum of, where there are several."""

    loss: Tensor
    grad_norm: Tensor
    lr: float
    images: int
    terms: dict[str, Tensor] = field(default_factory=dict)


class Step(ABC):
    """batch → forward → loss → backward → clip → optimizer → average of the weights.

    Args:
        model: the module that is called, possibly wrapped in DistributedDataParallel or compiled.
        clip_grad: largest gradient norm, or None.
        ema: average of the weights, or None; it follows ``source``.
        source: the bare model.
        parallel: how the model is spread over the processes.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        *,
        source: nn.Module,
        scaler: torch.amp.GradScaler | None = None,
        clip_grad: float | None = None,
        ema: ModelEmaV3 | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self.model, self.optimizer, self.precision = model, optimizer, precision
        self.source, self.clip_grad, self.ema = source, clip_grad, ema
        self.scaler = scaler or precision.grad_scaler()
        self.device = next(source.parameters()).device
        self.parallel = parallel or Parallel(Runtime(0, 1, self.device))
        self.clipped = list(source.parameters())  # whose gradients' norm is limited; the norm is a sum in this order

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of one micro-batch, and its terms by name where there are several."""

    @abstractmethod
    def count(self, batch: Any) -> int:
        """Images of a micro-batch."""

    def __call__(self, micro_batches: Sequence[Any]) -> StepRecord:
        """One optimizer step on the mean loss of the micro-batches."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses, terms, count = [], [], 0
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with self.parallel.micro_step(self.model, last):
                loss, parts = self.loss(batch)
                self.scaler.scale(loss / len(micro_batches)).backward()
            losses.append(loss.detach())
            terms.append(parts)
            count += self.count(batch)

        self.scaler.unscale_(self.optimizer)
        limit = float("inf") if self.clip_grad is None else self.clip_grad
        grad_norm = self.parallel.clip(self.clipped, limit)
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.source)
        shared = [name for name in terms[0] if all(name in parts for parts in terms)]
        means = {name: torch.stack([parts[name].detach() for parts in terms]).mean() for name in shared}
        return StepRecord(torch.stack(losses).mean(), grad_norm.detach(), lr, count, means)


class TrainStep(Step):
    """A step of classification on micro-batches that have ``images`` (B, C, H, W) and ``targets`` (B,).

    Args:
        criterion: takes logits and class indices or class probabilities.
        mix: mixup or cutmix: images, class indices → images, class probabilities; or None.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        criterion: nn.Module,
        precision: Precision,
        *,
        mix: Mix | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, optimizer, precision, **options)
        self.criterion, self.mix = criterion, mix

    def count(self, batch: Any) -> int:
        return len(batch.targets)

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        images = batch.images.to(self.device, non_blocking=True)
        targets = batch.targets.to(self.device, non_blocking=True)
        if self.mix is not None:
            images, targets = self.mix(images, targets)
        with self.precision.autocast():
            logits = self.model(images)
        return self.criterion(logits.float(), targets), {}


class TokenLabelStep(TrainStep):
    """A step of token labeling: the model gives the logits of the class token and of the patch tokens.

    Args:
        token_targets: a micro-batch and the device → what the criterion takes as targets.
        draw_box: draws the box of mix-token, (top, left, bottom, right) in tokens; None mixes nothing.
    """

    def __init__(
        self,
        *args: Any,
        token_targets: Callable[[Any, torch.device], tuple[Tensor, ...]],
        draw_box: Callable[[], Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.token_targets, self.draw_box = token_targets, draw_box

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        targets = self.token_targets(batch, self.device)
        box, kept = None, 1.0
        if self.draw_box is not None:
            box = self.draw_box()
            top, left, bottom, right = box.tolist()
            kept = 1 - (bottom - top) * (right - left) / targets[-1].shape[1]
            box = box.to(self.device, non_blocking=True)
        with self.precision.autocast():
            images = batch.images.to(self.device, non_blocking=True)
            of_class, of_patches = self.model(images, mix_box=box, token_logits=True)
        return self.criterion(of_class.float(), of_patches.float(), targets, kept), {}


class Schedule(Protocol):
    """Learning rates as a function of the step."""

    def set(self, step: int) -> None:
        """Sets the optimizer's learning rates for the step after ``step`` steps; called with rising steps."""

    def state_dict(self) -> dict[str, Any]:
        """Plain containers; empty where the step alone determines the rates."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class TrainState:
    """Everything that a resumed run needs beside its recipe. Random numbers need nothing: see seed_everything.

    Attributes:
        step: optimizer steps done since the start; epoch: whole epochs among them.
        last_eval: the step of the last evaluation.
        loss_sum, loss_steps: of the epoch under way.
        best, best_step: highest metric so far.
        history: one dictionary per evaluation.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None = None
    schedule: Schedule | None = None
    epoch: int = 0
    step: int = 0
    last_eval: int = 0
    loss_sum: float = 0.0
    loss_steps: int = 0
    best: float = float("-inf")
    best_step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    COUNTERS = ("epoch", "step", "last_eval", "loss_sum", "loss_steps", "best", "best_step", "history")

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors only, so that the file can be read without executing anything."""
        content = {name: getattr(self, name) for name in self.COUNTERS}
        content["state_dict"] = self.model.state_dict()
        content["optimizer"] = self.optimizer.state_dict()
        content["scaler"] = self.scaler.state_dict()
        content["schedule"] = {} if self.schedule is None else self.schedule.state_dict()
        if self.ema is not None:
            content["state_dict_ema"] = self.ema.module.state_dict()
        return content

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Raises KeyError, ValueError, TypeError or RuntimeError where the content does not fit."""
        self.model.load_state_dict(content["state_dict"])
        if self.ema is not None:
            self.ema.module.load_state_dict(content["state_dict_ema"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        if self.schedule is not None:
            self.schedule.load_state_dict(content["schedule"])
        for name in self.COUNTERS:
            setattr(self, name, content[name])
