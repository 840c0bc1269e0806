"""One optimization step, and the state that a training run carries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.profiler import record_function

from .apex import ApexScaler
from .distributed import Runtime
from .parallel import Parallel, local_part
from .precision import LossScaler, Precision

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass
class StepRecord:
    """What one step did; scalars on the device, so that nothing waits for them.

    Attributes:
        loss: mean over the micro-batches. grad_norm: of all gradients, before clipping.
        lr: the largest learning rate. images: of this process.
        skipped: whether the gradient was not finite, so that the step has changed nothing.
        terms: what the loss is the sum of, where there are several.
        norms: of each parameter's gradient, by name, before clipping.
        scale: what the loss was multiplied by; None without loss scaling.
    """

    loss: Tensor
    grad_norm: Tensor
    lr: float
    images: int
    skipped: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    scale: Tensor | None = None


class Step(ABC):
    """batch → forward → loss → backward → clip → optimizer → average of the weights.

    A step whose gradient norm is not finite is skipped: weights, optimizer, average and buffers (batch norm's
    statistics) stay as they were. The norm is that of the exchanged gradients, so all processes skip the same steps.

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
        scaler: LossScaler | ApexScaler | None = None,
        clip_grad: float | None = None,
        ema: ModelEmaV3 | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self.model, self.optimizer, self.precision = model, optimizer, precision
        self.source, self.clip_grad, self.ema = source, clip_grad, ema
        self.scaler = scaler or precision.grad_scaler(source, optimizer)
        self.device = next(source.parameters()).device
        self.parallel = parallel or Parallel(Runtime(0, 1, self.device))
        self.clipped = list(source.parameters())  # whose gradients' norm is limited; the norm is a sum in this order
        self.names = {parameter: name for name, parameter in source.named_parameters()}
        weights = {id(parameter) for parameter in self.clipped}
        saved = source.state_dict(keep_vars=True).values()
        self.buffers = [tensor for tensor in saved if id(tensor) not in weights]
        self.before = [buffer.clone() for buffer in self.buffers]  # what they were before the step
        self.asynchronous = self.device.type == "cuda"

    @abstractmethod
    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of one micro-batch, and its terms by name where there are several."""

    @abstractmethod
    def count(self, batch: Any) -> int:
        """Images of a micro-batch."""

    def __call__(self, micro_batches: Sequence[Any]) -> StepRecord:
        """One optimizer step on the mean loss of the micro-batches."""
        self.model.train()
        self.optimizer.zero_grad()
        if self.buffers:
            torch._foreach_copy_(self.before, self.buffers)
        scale = self.scaler.current(self.device)
        losses, terms, count = [], [], 0
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with self.parallel.micro_step(self.model, last):
                with record_function("forward"):
                    loss, parts = self.loss(batch)
                with record_function("backward"):
                    self.scaler.backward(loss / len(micro_batches), self.optimizer, last)
            losses.append(loss.detach())
            terms.append(parts)
            count += self.count(batch)

        self.scaler.unscale_(self.optimizer)
        limit = float("inf") if self.clip_grad is None else self.clip_grad
        graded = [parameter for parameter in self.clipped if parameter.grad is not None]
        norms = torch._foreach_norm([gradient for one in graded if (gradient := one.grad) is not None])
        grad_norm = self.parallel.clip(graded, norms, limit)
        lr = max(group["lr"] for group in self.optimizer.param_groups)
        skipped = ~torch.isfinite(grad_norm.detach())
        with record_function("update"):
            self.update(skipped)
        self.scaler.follow(self.optimizer, skipped)
        shared = [name for name in terms[0] if all(name in parts for parts in terms)]
        means = {name: torch.stack([parts[name].detach() for parts in terms]).mean() for name in shared}
        mean = torch.stack(losses).mean()
        named = {self.names[parameter]: norm for parameter, norm in zip(graded, norms, strict=True)}
        return StepRecord(mean, grad_norm.detach(), lr, count, skipped, means, named, scale)

    def loss_scale(self) -> float | None:
        """What the next loss is multiplied by; None without loss scaling. Waits for a GPU."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Changes weights, optimizer and average, or none of them and the buffers back.

        torch's fused optimizers take ``skipped`` as a tensor: with them no GPU is waited for. Others are stepped or
        not, so that a GPU's gradients are waited for, as torch's own loss scaling does.
        """
        fused = all(group.get("fused") for group in self.optimizer.param_groups)
        if self.asynchronous and fused:
            self._update_unless(skipped)
        elif skipped.item():
            self.scaler.skip(self.optimizer)
            if self.buffers:
                torch._foreach_copy_(self.buffers, self.before)
        else:
            self.optimizer.step()
            if self.ema is not None:
                self.ema.update(self.source)

    def _update_unless(self, skipped: Tensor) -> None:
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        del self.optimizer.found_inf  # type: ignore[attr-defined]
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(torch.where(skipped, before, buffer))
        if self.ema is not None:
            share = torch.where(skipped, 0.0, 1.0 - self.ema.get_decay())
            averages, weights = (module.state_dict().values() for module in (self.ema.module, self.source))
            for average, weight in zip(averages, weights, strict=True):
                if average.is_floating_point():
                    local_part(average).lerp_(local_part(weight), share.to(average.dtype))
                else:
                    average.copy_(weight)


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
        skipped: steps left out, their gradients not finite; skipped_in_row: since the last that was not, see Guard.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: LossScaler | ApexScaler
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
    skipped: int = 0
    skipped_in_row: int = 0

    COUNTERS = ("epoch", "step", "last_eval", "loss_sum", "loss_steps", "best", "best_step", "history",
                "skipped", "skipped_in_row")  # fmt: skip

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
        self.optimizer.load_state_dict(_as_here(content["optimizer"], self.optimizer))
        self.scaler.load_state_dict(content["scaler"])
        if self.schedule is not None:
            self.schedule.load_state_dict(content["schedule"])
        for name in self.COUNTERS:
            setattr(self, name, content[name])


def _as_here(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state with what this machine is about: whether the update is fused."""
    pairs = zip(saved["param_groups"], optimizer.param_groups, strict=False)
    groups = [{**group, **({"fused": here["fused"]} if "fused" in here else {})} for group, here in pairs]
    return {**saved, "param_groups": groups if len(groups) == len(saved["param_groups"]) else saved["param_groups"]}
