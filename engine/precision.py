"""Mixed precision: which type autocast uses on a device, and loss scaling where it needs it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from yacs.config import CfgNode

from elsa.core import ConfigError


@dataclass(frozen=True)
class Precision:
    """The type of autocast on a device; ``dtype`` None computes in float32."""

    device_type: str
    dtype: torch.dtype | None

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device_type, self.dtype) if self.dtype else nullcontext()

    def grad_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        return str(self.dtype or torch.float32).removeprefix("torch.")


def choose_precision(config: CfgNode, device: torch.device) -> Precision:
    """AMP's keys for this device.

    Raises:
        ConfigError: float16 on a CPU.
    """
    if config.AMP.ENABLED and config.AMP.DTYPE == "float16" and device.type == "cpu":
        raise ConfigError("AMP.DTYPE float16 needs a GPU; on a CPU use bfloat16 or auto")
    return fit_precision(config.AMP.DTYPE if config.AMP.ENABLED else None, device)


def fit_precision(named: str | None, device: torch.device) -> Precision:
    """``named`` (None, "auto", "bfloat16", "float16") on a device.

    "auto" is bfloat16, which needs no loss scaling, where the GPU has it, on older GPUs float16. A CPU computes in
    float32 unless bfloat16 is asked for by name.
    """
    if named is None or (device.type == "cpu" and named != "bfloat16"):
        return Precision(device.type, None)
    if named == "auto":
        named = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return Precision(device.type, getattr(torch, named))
