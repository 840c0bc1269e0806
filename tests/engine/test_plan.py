"""How a global batch is shared, by numbers worked out by hand; the estimate of memory beside a real step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from elsa.engine import Batch, divisions
from elsa.engine.memory import IMAGES, Activations, estimate, measure, optimizer_state


def shares(*arguments, **options):
    return [(way.size, way.accumulate, way.micro) for way in divisions(*arguments, **options)]


def test_a_batch_is_shared_in_every_way_that_divides_it():
    assert shares(24, 4, None) == [(24, 1, 6), (24, 2, 3), (24, 3, 2), (24, 6, 1)]
    assert shares(24, 4, None, pairs=True) == [(24, 1, 6), (24, 3, 2)]
    assert shares(24, 4, 2) == [(24, 2, 3)]
    assert shares(16, 8, None, groups=2) == [(16, 1, 2), (16, 2, 1)]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((1024, 6, None), {}), ((4, 8, None), {}), ((24, 4, 5), {}), ((12, 4, None), {"pairs": True}),
     ((9, 3, None), {"groups": 2})],
)  # fmt: skip
def test_without_a_rule_nothing_else_is_taken(arguments, options):
    assert shares(*arguments, **options) == []


def test_with_a_rule_the_nearest_batch_is_taken():
    assert next(divisions(1024, 6, None, "linear")) == Batch(1024, 1026, 6, 1, "linear", 6)  # 1020 is 4 away
    assert next(divisions(1024, 6, None, "linear", pairs=True)).size == 1020  # 1032 is 8 away
    assert next(divisions(9, 6, None, "linear")).size == 6  # 12 is as near; the smaller needs less
    assert next(divisions(2, 6, None, "linear")).size == 6  # not 0
    assert next(divisions(1024, 6, 4, "linear")).size == 1032  # a multiple of 24; 1008 is 16 away
    assert shares(1024, 8, None, "linear")[:2] == [(1024, 1, 128), (1024, 2, 64)]  # nothing to change
    by_count = {way.accumulate: way.size for way in divisions(1024, 6, None, "linear", pairs=True)}
    assert (by_count[1], by_count[2], by_count[5]) == (1020, 1032, 1020)  # multiples of 12, 24 and 60


def test_a_resumed_run_keeps_its_batch():
    assert shares(1024, 5, None, "linear", kept=1020)[0] == (1020, 1, 204)
    assert shares(1024, 8, None, "linear", kept=1020) == []
    (line,) = next(divisions(1024, 5, None, "linear", kept=1020)).adapted("DATA.BATCH", 1e-3)
    assert "1024 → 1020 for 5 processes, as the run that is resumed has it" in line


@pytest.mark.parametrize(("rule", "factor"), [("linear", 1020 / 1024), ("sqrt", math.sqrt(1020 / 1024))])
def test_learning_rates_follow_the_rule(rule, factor):
    batch = Batch(1024, 1020, 6, 1, rule, 12)
    assert batch.lr_factor == pytest.approx(factor, rel=1e-12)
    (line,) = batch.adapted("DATA.BATCH", 1e-3)
    assert "DATA.BATCH 1024 → 1020 for 6 processes, rounded down to the nearest multiple of 12" in line
    assert f"= {factor:.6g}: 0.001 → {factor * 1e-3:.6g}" in line
    assert Batch(1024, 1024, 8, 1, rule).lr_factor == 1 and Batch(1024, 1024, 8, 1, rule).adapted("", 1.0) == ()


# ---- memory ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.blocks = nn.ModuleList(Block(16) for _ in range(3))
        self.head = nn.Linear(16, 10)
        self.recompute = False

    def forward(self, images):
        x = self.stem(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return self.head(x.mean(1))


def saved_bytes(model, images, dtype):
    """What autograd keeps of a real forward pass, and the images, which the caller keeps."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {images.untyped_storage().data_ptr(): (images.nbytes, images)}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with torch.autocast("cpu", dtype, enabled=dtype is not None), hooks:
        out = model(images)
        loss = out.float().log_softmax(-1)
    total = sum(size for size, _ in kept.values())
    loss.sum().backward()
    return total


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_activations_are_those_of_a_real_step(dtype):
    model, images = Network(), torch.zeros(8, 3, 32, 32)
    found = measure(model, lambda copied, empty: copied(empty(IMAGES, 3, 32, 32)).float().log_softmax(-1), "cpu", dtype)
    real = saved_bytes(model, images, dtype)
    assert 8 * found.image + found.fixed == pytest.approx(real, rel=0.05)
    assert (found.fixed > 0) == (dtype is not None)  # weights in bfloat16
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def test_recomputed_blocks_leave_what_enters_them():
    def forward(copied, empty):
        return copied(empty(IMAGES, 3, 32, 32))

    def switch(copied, on):
        copied.recompute = on

    whole = measure(Network(), forward, "cpu", None)
    less = measure(Network(), forward, "cpu", None, switch)
    tokens = 64 * 16 * 4  # bytes of a map of an image
    assert less.image < whole.image / 2
    # Of one block: the normalised map, its statistics, twice the wide map, and the result.
    assert less.recomputed == pytest.approx(tokens * (1 + 4 + 4 + 1) + 64 * 2 * 4, rel=0.01)


def test_a_gpu_need_not_be_there():
    forward = lambda copied, empty: copied(empty(IMAGES, 3, 32, 32))  # noqa: E731
    with torch.device("meta"):
        model = Network()
    half, single = (measure(model, forward, "cuda", dtype) for dtype in (torch.bfloat16, None))
    assert half.image < single.image
    assert single.image == measure(model, forward, "cpu", None).image


@pytest.mark.parametrize(
    ("optimizer", "bytes_of_a_number"),
    [(lambda p: torch.optim.SGD(p, 0.1), 0), (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), 4),
     (lambda p: torch.optim.AdamW(p, 0.1), 8)],
)  # fmt: skip
def test_optimizers_show_what_they_keep(optimizer, bytes_of_a_number):
    assert optimizer_state(lambda probe: optimizer(probe.parameters())) == (bytes_of_a_number, bytes_of_a_number)


def test_the_parts_add_up():
    model = Network()
    size = 4.0 * sum(parameter.numel() for parameter in model.parameters())
    block = 4.0 * sum(parameter.numel() for parameter in model.blocks[0].parameters())
    common = dict(model=model, activations=Activations(1000.0, 70, 10.0), state=(8.0, 8.0), average=True)
    whole = estimate(**common, processes=4, sharded=False)
    assert whole.parts == {"parameters": size, "gradients": size, "optimizer state": 2 * size,
                           "average of the weights": size, "weights cast": 70.0}  # fmt: skip
    assert whole.total(3) == 5 * size + 70 + 3 * (1000 + 2 * 10)
    parted = estimate(**common, processes=4, sharded=True).parts
    assert parted["optimizer state"] == 2 * size / 4
    assert parted["gathered blocks"] == size - 3 * block + 3 * block  # what is in no block, and a block three times
