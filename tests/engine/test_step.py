"""The optimization step: the published trajectory, accumulation, clipping, averaging, precision."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from torch import nn

import elsa.models  # noqa: F401  (registers the names)
from elsa.engine import (
    Precision,
    TrainState,
    TrainStep,
    build_optimizer,
    choose_precision,
    load_config,
)

FLOAT32 = Precision("cpu", None)


def test_published_training_steps_are_reproduced(golden, root):
    """Four steps of the published code: losses, gradient norms, weights, average of the weights, logits after."""
    published = golden.json("training_steps")
    config = load_config(root / "configs/classification/elsa_swin_base.yaml", ["MODEL.NAME=elsa_swin_tiny"])
    model = golden.fill_(timm.create_model("elsa_swin_tiny", drop_path_rate=0.0)).train()
    ema = ModelEmaV3(model, decay=config.TRAIN.EMA_DECAY)
    step = TrainStep(model, build_optimizer(model, config), nn.CrossEntropyLoss(), FLOAT32, source=model,
                     clip_grad=config.TRAIN.CLIP_GRAD, ema=ema)  # fmt: skip
    records = [
        step([SimpleNamespace(images=golden.tensor(f"batch{index}", 2, 3, 224, 224),
                              targets=golden.tensor(f"target{index}", 2, 1000).softmax(1))])
        for index in range(4)
    ]  # fmt: skip
    assert [record.loss.item() for record in records] == pytest.approx(published["losses"], rel=1e-4)
    assert [record.grad_norm.item() for record in records] == pytest.approx(published["grad_norms"], rel=1e-4)
    for module, key in ((model, "param_norm_after"), (ema.module, "ema_param_norm_after")):
        norms = {name: module.get_parameter(name).norm().item() for name in published[key]}
        assert norms == pytest.approx(published[key], rel=1e-4)


def small_problem(seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    images, targets = torch.randn(8, 3, 2, 2), torch.randint(0, 4, (8,))
    return model, SimpleNamespace(images=images, targets=targets)


def make_step(model, **options) -> TrainStep:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainStep(model, optimizer, nn.CrossEntropyLoss(), FLOAT32, source=model, **options)


def test_accumulated_micro_batches_equal_one_batch():
    whole, batch = small_problem()
    parts, _ = small_problem()
    halves = [SimpleNamespace(images=batch.images[i::2], targets=batch.targets[i::2]) for i in range(2)]
    one, two = make_step(whole)([batch]), make_step(parts)(halves)
    assert two.images == one.images == 8
    torch.testing.assert_close(two.loss, one.loss)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_gradient_is_clipped_and_its_norm_before_is_reported():
    model, batch = small_problem()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    record = make_step(model, clip_grad=1e-3)([batch])
    assert record.grad_norm > 1e-3
    moved = torch.stack([(a - b).norm() for a, b in zip(model.parameters(), before, strict=True)]).norm()
    torch.testing.assert_close(moved.detach(), torch.tensor(0.1 * 1e-3), rtol=1e-3, atol=0)


def test_the_average_follows_the_weights():
    model, batch = small_problem()
    ema = ModelEmaV3(model, decay=0.75)
    before = model[1].weight.detach().clone()
    make_step(model, ema=ema)([batch])
    torch.testing.assert_close(ema.module[1].weight, 0.75 * before + 0.25 * model[1].weight.detach())


def test_mixed_targets_reach_the_loss():
    model, batch = small_problem()
    uniform = torch.full((8, 4), 0.25)
    record = make_step(model, mix=lambda images, targets: (images * 0, uniform))([batch])
    fresh, _ = small_problem()
    expected = nn.functional.cross_entropy(fresh(batch.images * 0), uniform)
    torch.testing.assert_close(record.loss, expected.detach())


def test_state_goes_through_a_file_unchanged(tmp_path):
    """Also read with weights_only, so nothing but tensors and plain containers may be in it."""
    model, batch = small_problem()
    step = make_step(model, ema=ModelEmaV3(model, decay=0.5))
    step([batch])
    state = TrainState(model, step.optimizer, step.scaler, step.ema, epoch=3, step=17, history=[{"top1": 1.5}])
    torch.save(state.state_dict(), tmp_path / "state.pt")
    other, _ = small_problem(seed=1)
    fresh = make_step(other, ema=ModelEmaV3(other, decay=0.5))
    loaded = TrainState(other, fresh.optimizer, fresh.scaler, fresh.ema)
    loaded.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (loaded.epoch, loaded.step, loaded.history) == (3, 17, [{"top1": 1.5}])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [(["AMP.ENABLED=false"], None), ([], None), (["AMP.DTYPE=bfloat16"], torch.bfloat16),
     (["AMP.DTYPE=float16"], torch.float16), (["AMP.DTYPE=float16", "AMP.ENABLED=false"], None)],
)  # fmt: skip
def test_precision_on_a_cpu(root, overrides, expected):
    config = load_config(root / "configs/classification/elsa_swin_tiny.yaml", overrides)
    precision = choose_precision(config, torch.device("cpu"))
    assert precision.dtype == expected
    with precision.autocast():
        out = nn.Linear(4, 4)(torch.ones(1, 4))
    assert out.dtype == (expected or torch.float32)
    assert bool(precision.slow()) == (expected == torch.float16)
