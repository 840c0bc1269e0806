"""NVIDIA's apex, played by stand-ins of every shape: what is missing is told exactly, what is there is used rightly."""

from __future__ import annotations

import importlib
import math
import sys
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from elsa.core import ConfigError
from elsa.engine import Precision, TrainState, TrainStep, apex, build_optimizer, by_apex, choose_precision, load_config

GPU = torch.device("cuda")
OPTIMIZERS = """
import torch

class FusedAdam(torch.optim.AdamW):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
                 weight_decay=0.0, amsgrad=False, set_grad_none=True):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.given = dict(adam_w_mode=adam_w_mode)

    def zero_grad(self):
        super().zero_grad()

class FusedLAMB(torch.optim.AdamW):
    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.01,
                 amsgrad=False, adam_w_mode=True, grad_averaging=True, set_grad_none=True, max_grad_norm=1.0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.given = dict(max_grad_norm=max_grad_norm)
"""
# What apex.amp does for opt level O1 with one loss, as far as a caller sees it.
AMP = """
import contextlib
import torch

scaler = dict(loss_scale=2.0 ** 16, unskipped=0)
calls = []

def initialize(model, optimizer, opt_level, loss_scale, verbosity):
    calls.append((opt_level, loss_scale))
    scaler.update(loss_scale=2.0 ** 16, unskipped=0)
    return model, optimizer

@contextlib.contextmanager
def scale_loss(loss, optimizer, delay_unscale=False):
    yield loss.float() * scaler["loss_scale"]
    calls.append(("delayed" if delay_unscale else "unscaled", scaler["loss_scale"]))
    if delay_unscale:
        return
    grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    torch._foreach_div_(grads, scaler["loss_scale"])
    if all(torch.isfinite(grad).all() for grad in grads):
        scaler["unskipped"] += 1
        return
    scaler.update(loss_scale=scaler["loss_scale"] / 2, unskipped=0)
    step = optimizer.step

    def nothing():
        optimizer.step = step

    optimizer.step = nothing

def state_dict():
    return dict(loss_scaler0=dict(scaler))

def load_state_dict(state):
    scaler.update(state["loss_scaler0"])
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """``installed({file: text})``: a package apex, or what calls itself so, with these files."""
    known = ("apex", "amp_C")

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] in known]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def call(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / "site" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        forget()

    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    yield call
    forget()


NVIDIA = {"apex/__init__.py": "", "apex/multi_tensor_apply/__init__.py": "", "amp_C.py": "",
          "apex/optimizers/__init__.py": OPTIMIZERS, "apex/amp/__init__.py": AMP}  # fmt: skip


def without(*names: str, **changed: str) -> dict[str, str]:
    return {name: text for name, text in NVIDIA.items() if name not in names} | changed


SHAPES = {
    "none": ({}, r"\(not installed\)"),
    "another": ({"apex/__init__.py": "import pyramid"},
                r"\(what is installed in .*/site/apex is another package of that name\)"),
    "another module": ({"apex.py": ""}, r"\(what is installed in .*/apex.py is another package of that name\)"),
    "no extension": (without("amp_C.py"), r"\(installed without its CUDA extensions: there is no amp_C\)"),
    "another torch": (without() | {"amp_C.py": "raise ImportError('amp_C.so: undefined symbol: _ZN2at')"},
                      r"\(amp_C cannot be imported: amp_C.so: undefined symbol: _ZN2at\)"),
    "broken": (without() | {"apex/__init__.py": "raise RuntimeError('no')"}, r"\(apex cannot be imported: no\)"),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_missing_is_told(installed, shape):
    files, told = SHAPES[shape]
    installed(files)
    cures = {
        "amp": r"; install it with: pip install .*--cuda_ext.* git\+https://github.com/NVIDIA/apex@24.04.01, the last",
        "optimizer": r"; install it with: APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install .* git\+https://github.com",
    }
    with pytest.raises(ConfigError, match=rf"^AMP.BACKEND apex needs NVIDIA's apex .*{told}.*{cures['amp']}"):
        apex.require_amp("AMP.BACKEND apex", GPU)
    with pytest.raises(ConfigError, match=rf"^X needs NVIDIA's apex .*{told}.*{cures['optimizer']}"):
        apex.require_optimizer("X", GPU, "FusedAdam")


@pytest.mark.parametrize(("files", "amp", "adam", "lamb"), [
    (NVIDIA, "", "", ""),
    (without("apex/amp/__init__.py"), "the version that is installed has no apex.amp", "", ""),
    (without("apex/optimizers/__init__.py"), "", *["the version that is installed has no apex.optimizers"] * 2),
    (NVIDIA | {"apex/optimizers/__init__.py": OPTIMIZERS.replace("FusedLAMB", "Other")}, "", "",
     "the version that is installed has no apex.optimizers.FusedLAMB"),
    (NVIDIA | {"apex/amp/__init__.py": "def initialize(): raise NotImplementedError"},
     "the version that is installed has no apex.amp.scale_loss", "", ""),
])  # fmt: skip
def test_each_part_is_asked_for_alone(installed, files, amp, adam, lamb):
    installed(files)
    asked = {amp: lambda device: apex.require_amp("X", device),
             adam: lambda device: apex.require_optimizer("X", device, "FusedAdam"),
             lamb: lambda device: apex.require_optimizer("X", device, "FusedLAMB")}  # fmt: skip
    for told, ask in asked.items():
        if told:
            with pytest.raises(ConfigError, match=rf"^X needs NVIDIA's apex \({told}\); install it with: "):
                ask(GPU)
        else:
            ask(GPU)
            with pytest.raises(ConfigError, match=r"^X needs a GPU \(the device is cpu\)$"):
                ask(torch.device("cpu"))


@pytest.fixture
def everywhere(monkeypatch):
    """The stand-ins compute on a CPU."""
    monkeypatch.setattr(apex, "can_compute", lambda device: True)


@pytest.fixture
def recipe(root):
    return lambda *overrides: load_config(root / "configs/classification/elsa_swin_tiny.yaml", overrides)


def test_the_optimizers_are_apexs_with_our_groups(installed, everywhere, recipe, monkeypatch):
    """Decoupled weight decay on the same groups as timm's AdamW, and no clipping but TRAIN.CLIP_GRAD."""
    installed(NVIDIA)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # timm asks, too
    model = timm.create_model("resnet10t", num_classes=4)
    expected = build_optimizer(model, recipe("TRAIN.OPTIMIZER=adamw"))
    for name, given in (("apex_fused_adam", {"adam_w_mode": True}), ("apex_fused_lamb", {"max_grad_norm": math.inf})):
        optimizer = build_optimizer(model, recipe(f"TRAIN.OPTIMIZER={name}"))
        assert type(optimizer).__module__ == "apex.optimizers"
        assert optimizer.given == given
        for ours, theirs in zip(optimizer.param_groups, expected.param_groups, strict=True):
            assert [ours[key] for key in ("params", "lr", "betas", "eps", "weight_decay")] == [
                theirs[key] for key in ("params", "lr", "betas", "eps", "weight_decay")
            ]
    with pytest.raises(ConfigError, match="apex_fused_adam cannot update divided parameters"):
        build_optimizer(model, recipe("TRAIN.OPTIMIZER=apex_fused_adam", "TRAIN.PARALLEL=fsdp"))


def test_only_training_needs_apex(recipe):
    config = recipe("AMP.BACKEND=apex")
    assert choose_precision(config, torch.device("cpu")).backend == "native"
    with pytest.raises(ConfigError, match=r"^AMP.BACKEND apex needs a GPU"):
        choose_precision(config, torch.device("cpu"), training=True)


class Run:
    """A small training by apex's stand-ins."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
        optimizers = importlib.import_module("apex.optimizers")
        optimizer = optimizers.FusedAdam(self.model.parameters(), lr=0.1)
        self.precision = by_apex("AMP.BACKEND apex", torch.device("cpu"))
        self.step = TrainStep(self.model, optimizer, nn.CrossEntropyLoss(), self.precision, source=self.model)
        self.state = TrainState(self.model, optimizer, self.step.scaler)
        self.amp = importlib.import_module("apex.amp")

    def __call__(self, count: int = 1, value: float = 1.0):
        generator = torch.Generator().manual_seed(1)
        images = torch.randn(count, 4, 3, 2, 2, generator=generator) * value
        return self.step([SimpleNamespace(images=part, targets=torch.arange(4)) for part in images])


def test_apex_scales_casts_and_skips(installed, everywhere):
    """A step is as torch's in float32: the stand-in casts nothing. A skipped one changes nothing."""
    installed(NVIDIA)
    run = Run()
    assert str(run.precision) == "float16 by apex"
    twin = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4))
    twin.load_state_dict(run.model.state_dict())
    theirs = TrainStep(twin, torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.0), nn.CrossEntropyLoss(),
                       Precision("cpu", None), source=twin)  # fmt: skip
    reference = Run.__call__
    other = SimpleNamespace(step=theirs)
    assert torch.allclose(run(2).grad_norm, reference(other, 2).grad_norm)
    assert run.amp.calls == [("O1", "dynamic"), ("delayed", 65536.0), ("unscaled", 65536.0)]
    before = [parameter.clone() for parameter in run.model.parameters()]
    record = run(2, math.nan)
    assert record.skipped and record.scale == 65536 and run.step.loss_scale() == 32768
    assert all(map(torch.equal, run.model.parameters(), before))
    assert not run(2).skipped
    reference(other, 2)
    for ours, expected in zip(run.model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_apexs_state_goes_through_a_file(installed, everywhere, tmp_path):
    installed(NVIDIA)
    run = Run()
    run(), run(1, math.inf), run()
    torch.save(run.state.state_dict(), tmp_path / "last.pt")
    end = run().loss, [parameter.clone() for parameter in run.model.parameters()]
    resumed = Run()
    assert resumed.step.loss_scale() == 65536
    resumed.state.load_state_dict(torch.load(tmp_path / "last.pt", weights_only=True))
    assert resumed.amp.state_dict() == {"loss_scaler0": {"loss_scale": 32768.0, "unskipped": 1}}
    assert torch.equal(resumed().loss, end[0])
    assert all(map(torch.equal, resumed.model.parameters(), end[1]))
