"""Mixed precision: which type autocast uses on a device, and loss scaling where it needs it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from .apex import ApexScaler, require_amp


class LossScaler(torch.amp.GradScaler):
    """torch's loss scaling, for a step that decides itself whether it is skipped, in all processes alike."""

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer, last: bool) -> None:
        """Gradients of a micro-batch."""
        self.scale(loss).backward()

    def skip(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes note that the step under way is skipped."""

    def follow(self, optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
        """Finds the scale of the next step: half of it after one that was skipped."""
        if self.is_enabled():
            for found in self._found_inf_per_device(optimizer).values():  # of this process's part of the gradients
                found.copy_(skipped)
            self.update()

    def current(self, device: torch.device) -> Tensor | None:
        """The scale of the step under way, a scalar on the device; None without loss scaling."""
        return self.scale(torch.ones((), device=device)) if self.is_enabled() else None


@dataclass(frozen=True)
class Precision:
    """The type of autocast on a device; ``dtype`` None computes in float32. With the backend "apex" it is apex that
    casts, and scales the loss."""

    device_type: str
    dtype: torch.dtype | None
    backend: str = "native"

    def autocast(self) -> AbstractContextManager:
        native = self.dtype is not None and self.backend == "native"
        return torch.autocast(self.device_type, self.dtype) if native else nullcontext()

    def grad_scaler(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> LossScaler | ApexScaler:
        """Loss scaling of a model's training; call it once, for apex changes both."""
        if self.backend == "apex":
            return ApexScaler(require_amp("mixed precision by apex", torch.device(self.device_type)), model, optimizer)
        return LossScaler(self.device_type, enabled=self.dtype == torch.float16)

    def slow(self) -> tuple[str, ...]:
        """A word where this device only emulates the type."""
        if self.device_type != "cpu" or self.dtype != torch.float16:
            return ()
        return ("float16 on a CPU is many times slower than float32: it is for trying out what a GPU will do",)

    def __str__(self) -> str:
        name = str(self.dtype or torch.float32).removeprefix("torch.")
        return name if self.backend == "native" else f"{name} by {self.backend}"


def choose_precision(config: CfgNode, device: torch.device, training: bool = False) -> Precision:
    """AMP's keys for this device; what is not ``training`` is computed by torch itself, and needs no apex.

    Raises:
        ConfigError: apex is asked for, and it or a GPU is missing.
    """
    apex = config.AMP.BACKEND == "apex"
    if apex and training:
        return by_apex("AMP.BACKEND apex", device)
    return fit_precision(("float16" if apex else config.AMP.DTYPE) if config.AMP.ENABLED else None, device)


def fit_precision(named: str | None, device: torch.device) -> Precision:
    """``named`` (None, "auto", "bfloat16", "float16") on a device.

    "auto" is bfloat16, which needs no loss scaling, where the GPU has it, on older GPUs float16. CPUs and Apple's GPUs
    compute in float32 unless another type is asked for by name.
    """
    if named is None or (device.type != "cuda" and named == "auto"):
        return Precision(device.type, None)
    if named == "auto":
        named = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return Precision(device.type, getattr(torch, named))


def by_apex(what: str, device: torch.device) -> Precision:
    """Mixed precision by apex, which is float16.

    Args:
        what: asks for it, as the recipe says it.

    Raises:
        ConfigError: apex or a GPU is missing.
    """
    require_amp(what, device)
    return Precision(device.type, torch.float16, "apex")
