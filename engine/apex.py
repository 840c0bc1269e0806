"""NVIDIA's apex where it is installed: fused optimizers and its older mixed precision, recognised by what they can do.

A package of that name may be another (PyPI's ``apex`` is); NVIDIA's may lack its CUDA extensions (``amp_C``), and its
versions since 2025 have no ``apex.amp``.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from elsa.core import ConfigError, one_line

# TRAIN.OPTIMIZER → timm's name of it, which knows how its arguments are called.
OPTIMIZERS = {"apex_fused_adam": "fusedadamw", "apex_fused_lamb": "fusedlamb"}
REPOSITORY = "git+https://github.com/NVIDIA/apex"
INSTALL = f"APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install -v --no-build-isolation {REPOSITORY}"
INSTALL_AMP = (
    'pip install -v --no-build-isolation --config-settings "--build-option=--cpp_ext" '
    f'--config-settings "--build-option=--cuda_ext" {REPOSITORY}@24.04.01'
)
AMP = ("initialize", "scale_loss", "state_dict", "load_state_dict")


def require_amp(what: str, device: torch.device) -> ModuleType:
    """``apex.amp``.

    Args:
        what: asks for it, as the recipe says it.

    Raises:
        ConfigError: all that is missing, and how to get it.
    """
    _require(what, device, "amp", AMP, f"{INSTALL_AMP}, the last version with apex.amp; or native mixed precision")
    return importlib.import_module("apex.amp")


def require_optimizer(what: str, device: torch.device, name: str) -> type[torch.optim.Optimizer]:
    """A class of ``apex.optimizers``.

    Raises:
        ConfigError: all that is missing, and how to get it.
    """
    _require(what, device, "optimizers", (name,), INSTALL)
    return getattr(importlib.import_module("apex.optimizers"), name)


def _require(what: str, device: torch.device, part: str, names: tuple[str, ...], cure: str) -> None:
    missing = [] if can_compute(device) else [f"a GPU (the device is {device})"]
    lack = lacking(part, names)
    if lack:
        missing.append(f"NVIDIA's apex ({lack})")
    if missing:
        raise ConfigError(f"{what} needs {' and '.join(missing)}" + (f"; install it with: {cure}" if lack else ""))


def can_compute(device: torch.device) -> bool:
    """Whether apex's kernels run on a device."""
    return device.type == "cuda"


def impostor() -> str:
    """Where another package of that name is installed; empty where there is none, or it is NVIDIA's."""
    spec = importlib.util.find_spec("apex")
    if spec is None:
        return ""
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    if any((place / "multi_tensor_apply").is_dir() for place in places):
        return ""
    return str(places[0] if places else spec.origin)


def lacking(part: str, names: tuple[str, ...]) -> str:
    """What is wrong with the package ``apex`` that is installed; empty where it has ``names`` in its ``part``."""
    if importlib.util.find_spec("apex") is None:
        return "not installed"
    if place := impostor():
        return f"what is installed in {place} is another package of that name"
    if importlib.util.find_spec("amp_C") is None:
        return "installed without its CUDA extensions: there is no amp_C"
    for module in ("apex", "amp_C", f"apex.{part}"):
        try:
            if importlib.util.find_spec(module) is None:
                return f"the version that is installed has no {module}"
            found = importlib.import_module(module)
        except Exception as error:  # built for another torch, for one; whatever it raises, it cannot be used
            return f"{module} cannot be imported: {one_line(str(error) or repr(error))}"
    absent = [name for name in names if not hasattr(found, name)]
    return f"the version that is installed has no apex.{part}.{absent[0]}" if absent else ""


class ApexScaler:
    """Loss scaling and casts of ``apex.amp``, opt level O1: operations are cast, weights stay float32.

    apex unscales gradients at the end of the last backward pass. Where they are not finite it puts an empty ``step``
    into the optimizer, once, which must be called for the next step to be one.
    """

    def __init__(self, amp: ModuleType, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.amp, self.replaced = amp, False
        amp.initialize(model, optimizer, opt_level="O1", loss_scale="dynamic", verbosity=0)

    def is_enabled(self) -> bool:
        return True

    def backward(self, loss: Tensor, optimizer: torch.optim.Optimizer, last: bool) -> None:
        """Gradients of a micro-batch; unscaled after the ``last`` one."""
        before = vars(optimizer).get("step")
        with self.amp.scale_loss(loss, optimizer, delay_unscale=not last) as scaled:
            scaled.backward()
        self.replaced = vars(optimizer).get("step") is not before

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """apex has done it."""

    def skip(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes note that the step under way is skipped."""
        if self.replaced:
            optimizer.step()

    def follow(self, optimizer: torch.optim.Optimizer, skipped: Tensor) -> None:
        """apex has found the scale of the next step already."""

    def current(self, device: torch.device) -> Tensor:
        """The scale of the step under way, a scalar on the device."""
        return torch.tensor(self.get_scale(), device=device)

    def get_scale(self) -> float:
        return float(self.amp.state_dict()["loss_scaler0"]["loss_scale"])

    def state_dict(self) -> dict[str, Any]:
        return {name: dict(state) for name, state in self.amp.state_dict().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.amp.load_state_dict(state)
