"""timm's optimizers in mmengine's configurations."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from timm.optim import create_optimizer_v2
from torch import nn

import elsa.tools.tasks.mm.optim  # registers TimmOptimizer
from elsa.tools.tasks.mm.optim import build_optimizer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4))


def stepped(model, optimizer):
    model(torch.ones(2, 8)).square().sum().backward()
    optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize("opt", ["muon", "adamw", "lamb"])
def test_it_is_timms_optimizer(model, opt):
    arguments = dict(opt=opt, lr=0.1, weight_decay=0.5)
    wrapper = dict(type="OptimWrapper", optimizer=dict(type="TimmOptimizer", **arguments))
    twin = copy.deepcopy(model)
    optimizer = build_optim_wrapper(model, wrapper).optimizer
    ours = stepped(model, optimizer)
    for name, theirs in stepped(twin, create_optimizer_v2(list(twin.parameters()), **arguments)).items():
        torch.testing.assert_close(ours[name], theirs, msg=name)
    assert [group.get("fused", False) for group in optimizer.param_groups] == [opt == "adamw"]


@pytest.mark.parametrize(("kind", "written", "parallel", "expected"), [
    ("AdamW", {}, "ddp", True),
    ("AdamW", {}, "fsdp", True),
    ("AdamW", dict(fused=False), "ddp", False),
    ("AdamW", dict(foreach=True), "ddp", None),
    ("SGD", dict(momentum=0.9), "ddp", True),
    ("SGD", dict(momentum=0.9), "fsdp", None),
    ("RMSprop", {}, "ddp", "absent"),
    ("TimmOptimizer", dict(opt="adamw"), "fsdp", True),
    ("TimmOptimizer", dict(opt="adamw", foreach=True), "ddp", None),
    ("TimmOptimizer", dict(opt="sgd"), "fsdp", None),
])  # fmt: skip
def test_updates_are_fused_where_they_can_be_unless_the_recipe_says_how(model, kind, written, parallel, expected):
    settings = dict(optimizer=dict(type=kind, lr=0.1, **written))
    optimizer = build_optimizer(model, settings, parallel)
    assert {group.get("fused", "absent") for group in optimizer.param_groups} == {expected}
    stepped(model, optimizer)


def test_groups_follow_paramwise_cfg_and_few_are_left(model):
    rules = {"1.": dict(decay_mult=0.0), "3.": dict(decay_mult=0.0), "0.": dict(lr_mult=0.1, use_fallback=True)}
    optimizer = dict(type="TimmOptimizer", opt="muon", lr=0.1, weight_decay=0.5)
    wrapper = dict(type="OptimWrapper", optimizer=optimizer, paramwise_cfg=dict(custom_keys=rules))
    groups = build_optim_wrapper(model, wrapper).optimizer.param_groups
    assert len(groups) == 3
    group_of = {id(parameter): group for group in groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    assert len(group_of) == len(parameters) == sum(len(group["params"]) for group in groups)
    for name, parameter in parameters.items():
        group = group_of[id(parameter)]
        assert group["lr"] == pytest.approx(0.01 if name.startswith("0.") else 0.1)
        assert group["weight_decay"] == (0 if name[0] in "13" else 0.5)
        assert group.get("use_fallback", False) == name.startswith("0.")


@pytest.mark.parametrize(("opt", "capability", "warned"),
                         [("muon", "AVX2", True), ("muon", "AVX512", False), ("adamw", "AVX2", False)])  # fmt: skip
def test_slow_products_are_warned_of(model, monkeypatch, caplog, opt, capability, warned):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(elsa.engine.logger, "propagate", True)
    elsa.tools.tasks.mm.optim.TimmOptimizer(model.parameters(), opt=opt, lr=0.1)
    assert ("without AVX-512" in caplog.text) == warned
