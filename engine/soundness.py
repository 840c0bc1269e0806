"""Whether a step may count, and the end of a run that has left the finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from elsa.core import TrainingError

from .distributed import Runtime
from .plan import Plan
from .step import Step, StepRecord


class Guard:
    """Looks at what steps did.

    Args:
        model: the weights that must stay finite.
        last_good: what is said of the checkpoint to go back to.
    """

    def __init__(
        self, plan: Plan, runtime: Runtime, step: Step, model: nn.Module, last_good: Callable[[], str]
    ) -> None:
        self.plan, self.runtime, self.step, self.model, self.last_good = plan, runtime, step, model, last_good

    def is_sound(self, record: StepRecord) -> bool:
        """Whether loss and gradient are finite. Loss scaling leaves out a step whose gradient is not, and goes on."""
        gradient = self.step.scaler.is_enabled() or torch.isfinite(record.grad_norm).item()
        return bool(torch.isfinite(record.loss).item() and gradient)

    def check(self, record: StepRecord, step: int) -> None:
        """Raises, in every process, unless the step was sound and its weights can be kept."""
        broken = not self.is_sound(record)
        norms = torch._foreach_norm([parameter.detach() for parameter in self.model.parameters()])
        if self.runtime.any(broken or not torch.isfinite(torch.stack(norms)).all().item()):
            self.fail(record, step)

    def fail(self, record: StepRecord, step: int) -> None:
        """Raises TrainingError with what is not finite after ``step`` steps."""
        loss, norm = record.loss.item(), record.grad_norm.item()
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm}"
        if math.isfinite(loss) and math.isfinite(norm):
            what = "the weights are not finite"
        raise TrainingError(
            f"{what} at step {step} (epoch {(step - 1) // self.plan.steps_per_epoch + 1}), "
            f"loss {loss:.4g}, learning rate {record.lr:.3g}, gradient norm {norm:.3g}; {self.last_good()}"
        )
