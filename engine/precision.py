"""Mixed precision: which type autocast uses on a device, and loss scaling where it needs it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from yacs.config import CfgNode

from .config import ConfigError


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

    bfloat16 needs no loss scaling and is taken where the GPU has it; older GPUs get float16. A CPU computes in
    float32 unless bfloat16 is asked for by name.

    Raises:
        ConfigError: float16 on a CPU.
    """
    named = config.AMP.DTYPE
    if not config.AMP.ENABLED or (device.type == "cpu" and named == "auto"):
        return Precision(device.type, None)
    if named == "auto":
        named = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if named == "float16" and device.type == "cpu":
        raise ConfigError("AMP.DTYPE float16 needs a GPU; on a CPU use bfloat16 or auto")
    return Precision(device.type, getattr(torch, named))
