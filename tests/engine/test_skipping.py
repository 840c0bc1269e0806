"""Steps whose gradient is not finite: they change nothing, are counted, and end a run that makes no progress."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from elsa.core import TrainingError
from elsa.engine import Plan, Precision, Runtime, TrainState, TrainStep
from elsa.engine.soundness import Guard

ALONE = Runtime(0, 1, torch.device("cpu"))
PRECISIONS = {name: Precision("cpu", kind) for name, kind in
              {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}.items()}  # fmt: skip
PLAN = Plan(seed=0, device="cpu", precision="float32", processes=1, global_batch=8, accumulate=1, micro_batch=8, lr=0.1,
            train_images=40, val_images=8, steps_per_epoch=5, total_steps=50, evaluate_every=5, save_every=0,
            log_every=5)  # fmt: skip


@pytest.fixture
def logged(caplog):
    """What was warned of."""
    return caplog


def batch(value: float = 1.0) -> SimpleNamespace:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(8, 3, 4, 4, generator=generator)
    images[0, 0, 0, 0] *= value
    return SimpleNamespace(images=images, targets=torch.arange(8) % 4)


class Run:
    """A model with batch norm, and all that the trainer does about a step."""

    def __init__(self, precision=PRECISIONS["float32"], optimizer="fused", limit=10, **options) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))
        kinds = {"fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
                 "plain": lambda p: torch.optim.AdamW(p, lr=0.01, fused=False),
                 "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1)}  # fmt: skip
        ema = ModelEmaV3(self.model, decay=0.5)
        self.step = TrainStep(self.model, kinds[optimizer](self.model.parameters()), nn.CrossEntropyLoss(), precision,
                              source=self.model, ema=ema, clip_grad=1.0, **options)  # fmt: skip
        self.state = TrainState(self.model, self.step.optimizer, self.step.scaler, ema)
        self.guard = Guard(PLAN, ALONE, self.state, limit, lambda: "the last good checkpoint is last.pt")

    def __call__(self, *batches):
        record = self.step(batches)
        self.state.step += 1
        sound = self.guard.is_sound(record)
        assert self.guard.is_sound(record) == sound, "judged once"
        if not sound:
            self.guard.fail(record)
        return record

    def tensors(self) -> list[torch.Tensor]:
        """All that a checkpoint keeps."""

        def inside(value):
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            return [value] if isinstance(value, torch.Tensor) else [tensor for item in items for tensor in inside(item)]

        return [tensor.clone() for tensor in inside(self.state.state_dict())]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


@pytest.mark.parametrize("asynchronous", [False, True], ids=["cpu", "as on a GPU"])
@pytest.mark.parametrize("optimizer", ["fused", "plain", "sgd"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_bad_batch_changes_nothing_and_is_counted(precision, optimizer, asynchronous):
    """Weights, optimizer, average and batch norm's statistics; the step after it goes on from there."""
    run, twin = (Run(PRECISIONS[precision], optimizer) for _ in range(2))
    run.step.asynchronous = asynchronous
    for _ in range(2):
        assert not run(batch()).skipped
        twin(batch())
    before = run.tensors()
    for bad in (math.nan, math.inf):
        record = run(batch(bad))
        assert record.skipped and not torch.isfinite(record.grad_norm)
        assert equal(run.tensors(), before)
    assert (run.state.skipped, run.state.step) == (2, 4)
    run.step.scaler.load_state_dict(twin.step.scaler.state_dict())  # a skipped step has halved the scale
    assert not run(batch()).skipped
    twin(batch())
    for ours, theirs in zip(run.tensors(), twin.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # the average by another kernel
    assert not equal(run.tensors(), before)


def test_one_bad_micro_batch_spoils_its_step_alone():
    run = Run()
    run(batch())
    before = run.tensors()
    assert run(batch(math.nan), batch()).skipped
    assert equal(run.tensors(), before)
    assert not run(batch(), batch()).skipped


def test_the_loss_scale_halves_with_each_skipped_step_and_is_told():
    run = Run(PRECISIONS["float16"])
    assert run.step.loss_scale() == 65536
    assert Run().step.loss_scale() is None
    for halved in (32768, 16384):
        assert run(batch(math.inf)).scale == 2 * halved
        assert run.step.loss_scale() == halved
    run(batch())
    assert run.step.loss_scale() == 16384


def test_a_large_scale_is_found_without_an_end(logged):
    """From 2^40 down to what float16 holds: far more steps than the limit, but none of them counts as lost."""
    run = Run(PRECISIONS["float16"], limit=3)
    run.step.scaler.load_state_dict({**run.step.scaler.state_dict(), "scale": 2.0**40})
    while run(batch()).skipped:
        assert run.state.skipped_in_row == 0
    assert 15 < run.state.skipped < 40
    assert run.step.loss_scale() == 2.0 ** (40 - run.state.skipped) < 2**25
    assert "which is how the loss scale is found" in logged.text
    assert sum("skipped step" in line for line in logged.messages) == 11, "ten, and that further ones are not told"


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_too_many_in_a_row_end_the_run(limit, logged):
    run = Run(limit=limit)
    for good in (False, True):
        for _ in range(limit):
            run(batch(math.nan))
        assert run.state.skipped_in_row == limit
        if good or not limit:
            break
        run(batch())
        assert run.state.skipped_in_row == 0
    step = run.state.step + 1
    said = (rf"^loss is nan at step {step} \(epoch {(step - 1) // 5 + 1}\)"
            + (rf", the {limit + 1}(nd|th) such step in a row: " if limit else ": ")
            + r"loss nan, learning rate 0.01, gradient norm nan, not finite in 6 of 6 parameters "
            r"\(0.weight, 0.bias, 1.weight, …\); the last good checkpoint is last.pt$")  # fmt: skip
    with pytest.raises(TrainingError, match=said):
        run(batch(math.nan))
    assert sum("skipped step" in line for line in logged.messages) == min(2 * limit, 10), "each that was borne"
    assert all(torch.isfinite(tensor).all() for tensor in run.tensors())


def test_with_loss_scaling_it_ends_once_the_scale_is_at_its_floor():
    run = Run(PRECISIONS["float16"], limit=3)
    with pytest.raises(TrainingError, match=r"the 4th such step in a row: .*, loss scale 0\.125; "):
        while True:
            run(batch(math.nan))
    assert run.state.step == 16 + 4, "2^16 … 2, and then 1, 1/2, 1/4, 1/8"


def test_the_parameters_to_blame_are_named():
    run = Run(limit=0)
    run.model[4].weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"^gradient norm is inf .* not finite in 1 of 6 parameters \(4.weight\); "):
        run(batch())


def test_a_loss_alone_that_is_not_finite_ends_the_run():
    """The gradient was finite, so that the step has changed the weights: no skipping any more."""
    run = Run()
    run.step.criterion = lambda logits, targets: nn.functional.cross_entropy(logits, targets) + math.inf
    with pytest.raises(TrainingError, match=r"^loss is inf at step 1 .*gradient norm \d"):
        run(batch())


@pytest.mark.parametrize("name", ["4.weight", "1.running_var"])
def test_weights_and_statistics_that_are_not_finite_are_not_kept(name):
    run = Run()
    record = run(batch())
    run.guard.check(record)
    run.model.state_dict()[name].fill_(math.nan)
    with pytest.raises(TrainingError, match=rf"^not finite: {name} of the model at step 1 "):
        run.guard.check(record)
    if name == "4.weight":  # no step would mend it
        with pytest.raises(TrainingError, match=rf"^not finite: {name} of the model at step 2 "):
            run(batch())


def test_counts_go_through_a_checkpoint_and_the_run_ends_at_the_same_step():
    run, resumed = Run(limit=2), Run(limit=2)
    for value in (math.nan, 1.0, math.nan, math.nan):
        run(batch(value))
    resumed.state.load_state_dict(copy.deepcopy(run.state.state_dict()))
    assert (resumed.state.skipped, resumed.state.skipped_in_row, resumed.state.step) == (3, 2, 4)
    assert equal(run.tensors(), resumed.tensors())
    for one in (run, resumed):
        with pytest.raises(TrainingError, match=r"at step 5 .*the 3rd such step in a row"):
            one(batch(math.nan))


@pytest.mark.parametrize("saved", ["fused", "plain"])
def test_an_optimizer_is_fused_or_not_as_it_is_here(saved):
    """Its state comes from a machine where that was otherwise."""
    here = {"fused": "plain", "plain": "fused"}[saved]
    run, resumed = Run(optimizer=saved), Run(optimizer=here)
    run(batch())
    resumed.state.load_state_dict(copy.deepcopy(run.state.state_dict()))
    assert {bool(group["fused"]) for group in resumed.step.optimizer.param_groups} == {here == "fused"}
    run(batch()), resumed(batch())
    for ours, theirs in zip(run.tensors(), resumed.tensors(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_warnings_become_rare(logged):
    run = Run(limit=1000)
    run.guard.plan = replace(PLAN, steps_per_epoch=1000)
    for _ in range(205):
        run(batch(math.nan))
    told = [line for line in logged.messages if line.startswith("skipped step")]
    assert [line.split()[2] for line in told] == [*map(str, range(1, 11)), "100", "200"]
    assert "(200 so far, 200 in a row, 1000 at most)" in told[-1]
