"""Whether a step may count, and the end of a run that has left the finite numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from elsa.core import TrainingError, logger

from .distributed import Runtime
from .parallel import local_part, whole_tensor
from .plan import Plan
from .step import StepRecord, TrainState

FLOOR = 1.0  # loss scale below which a gradient that is not finite is no longer the scale's fault
TOLD, SELDOM = 10, 100  # warnings of a launch one by one; then of each so many


class Guard:
    """Judges each step, after the next one has begun, so that a GPU never waits: all is well, or it was skipped, or
    the run must end.

    A step whose gradient is not finite has changed nothing (see ``Step``). It is counted, and the run goes on, unless
    more than ``max_skipped`` such steps follow each other, or the weights themselves are not finite, which no step
    would mend. With loss scaling, steps are skipped until the scale fits, each halving it; they count as following each
    other from where the scale is ``FLOOR`` or less. A loss that is not finite while the gradient is ends the run: that
    step has changed the weights.

    Gradients are the same in all processes, and so are these counts, without a word between them. They are a function
    of the steps, and stored with the state.

    Args:
        max_skipped: most skipped steps in a row.
        last_good: what is said of the checkpoint to go back to.
    """

    def __init__(
        self, plan: Plan, runtime: Runtime, state: TrainState, max_skipped: int, last_good: Callable[[], str]
    ) -> None:
        self.plan, self.runtime, self.state, self.last_good = plan, runtime, state, last_good
        self.max_skipped, self.told = max_skipped, 0
        self.judged: tuple[StepRecord, bool] | None = None

    def is_sound(self, record: StepRecord) -> bool:
        """Whether the run may go on after the step that was done last; asked again, it counts nothing twice."""
        if self.judged is None or self.judged[0] is not record:
            self.judged = record, self._judge(record)
        return self.judged[1]

    def _judge(self, record: StepRecord) -> bool:
        state = self.state
        if not record.skipped.item():
            state.skipped_in_row = 0
            return bool(torch.isfinite(record.loss).item())
        state.skipped += 1
        state.skipped_in_row += record.scale is None or record.scale.item() <= FLOOR
        described = self._describe(record)  # of divided gradients all processes must ask
        bearable = state.skipped_in_row <= self.max_skipped and not self._broken()
        if bearable and self.runtime.is_main:
            self._warn(described)
        return bearable

    def check(self, record: StepRecord) -> None:
        """Raises, in every process, unless the step was sound and what it left can be kept."""
        if self.runtime.any(not self.is_sound(record) or bool(self._broken())):
            self.fail(record)

    def fail(self, record: StepRecord) -> None:
        """Raises TrainingError with what is not finite after the step that was done last."""
        if broken := self._broken():
            what = f"not finite: {_some(broken)} of the model"
        elif not math.isfinite(loss := record.loss.item()):
            what = f"loss is {loss}"
        else:
            what = f"gradient norm is {record.grad_norm.item()}"
        row = self.state.skipped_in_row
        in_row = f", the {_ordinal(row)} such step in a row" if row > 1 else ""
        raise TrainingError(f"{what} at {self._place()}{in_row}: {self._describe(record)}; {self.last_good()}")

    def _warn(self, described: str) -> None:
        self.told += 1
        if self.told > TOLD and self.told % SELDOM:
            return
        row = self.state.skipped_in_row
        why = f"{row} in a row, {self.max_skipped} at most" if row else "which is how the loss scale is found"
        logger.warning("skipped %s: %s (%d so far, %s)", self._place(), described, self.state.skipped, why)
        if self.told == TOLD:
            logger.warning("of further skipped steps each %dth is told, and log.jsonl has their number", SELDOM)

    def _place(self) -> str:
        step = self.state.step
        return f"step {step} (epoch {(step - 1) // self.plan.steps_per_epoch + 1})"

    def _describe(self, record: StepRecord) -> str:
        scale = "" if record.scale is None else f", loss scale {record.scale.item():g}"
        loss, norm = record.loss.item(), record.grad_norm.item()
        numbers = f"loss {loss:.4g}, learning rate {record.lr:.3g}, gradient norm {norm:.3g}"
        norms = {name: whole_tensor(norm) for name, norm in record.norms.items()}
        blamed = _not_finite(norms.items())
        where = f", not finite in {len(blamed)} of {len(norms)} parameters ({_some(blamed)})" if blamed else ""
        return f"{numbers}{where}{scale}"

    def _broken(self) -> list[str]:
        """What is not finite of the model's weights and saved buffers (batch norm's statistics), in this process."""
        tensors = {name: local_part(tensor) for name, tensor in self.state.model.state_dict().items()}
        floats = [(name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point()]
        norms = torch._foreach_norm([tensor for _, tensor in floats])
        return _not_finite((name, norm) for (name, _), norm in zip(floats, norms, strict=True))


def _not_finite(norms: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the norms that are not finite, waiting for a device once."""
    names, values = zip(*norms, strict=True) if (norms := list(norms)) else ((), ())
    finite = torch.isfinite(torch.stack([value.float() for value in values])).tolist() if values else []
    return [name for name, fine in zip(names, finite, strict=True) if not fine]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + ", …" * (len(names) > 3)


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
