"""What is called: a network of a given size, its forward pass or its whole train step, as the trainer does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import MethodType, SimpleNamespace
from typing import Any

import timm.layers
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.profiler import record_function
from torch.utils.flop_counter import FlopCounterMode

from elsa.core import ConfigError
from elsa.engine import Precision, TrainStep
from elsa.engine.optim import fused
from elsa.engine.parallel import Parallel
from elsa.kernels import linear
from elsa.models import VARIANTS, ELSASwinMaps, ELSAVOLOMaps
from elsa.models.mlp import Mlp
from elsa.models.registry import SwinSpec

from .rivals import BASELINES

CLASSES = 1000
CLIP, EMA_DECAY, RATE = 5.0, 0.9998, 1e-5
TASKS = ("classifier", "backbone")
AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16}


def build(name: str, task: str, size: tuple[int, int], drop_path: float | None = None) -> nn.Module:
    """A network of ours or of timm's with fresh weights.

    Args:
        task: "classifier" gives logits, "backbone" the maps that a detector takes.
        size: (height, width) of the images. drop_path: stochastic depth; None is the network's own.

    Raises:
        ConfigError: it takes no such images, or has no maps.
    """
    rate = {} if drop_path is None else {"drop_path_rate": drop_path}
    try:
        if name in VARIANTS or name in BASELINES:
            return _ours(name, task, size, rate)
        maps = {"features_only": True} if task == "backbone" else {"num_classes": CLASSES}
        return _theirs(name, {"img_size": size, **rate, **maps}, optional=["img_size", *rate])
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        told = str(error).strip().partition("\n")[0]
        raise ConfigError(f"{name} as a {task} for images of {size[0]}x{size[1]}: {told}") from error


def _ours(name: str, task: str, size: tuple[int, int], rate: dict[str, Any]) -> nn.Module:
    variant = BASELINES.get(name, name)
    spec = VARIANTS[variant]
    arguments: dict[str, Any] = {"img_size": size, **rate}
    if name in BASELINES:
        arguments["attention"] = ("window",) * len(spec.depths) if isinstance(spec, SwinSpec) else "outlook"
    if task == "classifier":
        return timm.create_model(variant, num_classes=CLASSES, **arguments)
    return (ELSASwinMaps if isinstance(spec, SwinSpec) else ELSAVOLOMaps)(**{**asdict(spec), **arguments})


def _theirs(name: str, arguments: dict[str, Any], optional: list[str]) -> nn.Module:
    """Not every network of timm's takes a size or stochastic depth."""
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        lacking = [argument for argument in optional if f"'{argument}'" in str(error)]
        if not lacking:
            raise
        rest = {key: value for key, value in arguments.items() if key not in lacking}
        return _theirs(name, rest, [argument for argument in optional if argument not in lacking])


def use_our_linear(network: nn.Module) -> None:
    """Has linear layers and MLPs of a network computed as those of ours are, in place."""
    of_mlps = set()
    for module in network.modules():
        if type(module) is timm.layers.Mlp:
            module.__class__ = Mlp  # the same parts under the same names
            of_mlps |= {module.fc1, module.fc2}
        elif type(module) is nn.Linear and module not in of_mlps:
            module.forward = MethodType(_linear, module)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, layer.weight, layer.bias)


def random_batch(count: int, size: tuple[int, int], device: torch.device) -> SimpleNamespace:
    """Images and classes, as a loader gives them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, *size, generator=generator).to(device)
    return SimpleNamespace(images=images, targets=torch.arange(count, device=device) % CLASSES)


class BackboneStep(TrainStep):
    """A step on the maps of a backbone, with a loss that costs next to nothing: their mean square."""

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        with self.precision.autocast():
            maps = self.model(batch.images)
        return torch.stack([level.float().square().mean() for level in maps]).sum(), {}


def train_step(
    network: nn.Module, batch: Any, precision: Precision, task: str = "classifier", parallel: Parallel | None = None
) -> Callable[[], None]:
    """One whole step: forward, loss, backward, gradients clipped, AdamW, average of the weights."""
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05, **fused(torch.optim.AdamW, "ddp"))
    average = ModelEmaV3(network, decay=EMA_DECAY)
    model = network if parallel is None else parallel.spread(network, optimizer, average.module)
    kind = BackboneStep if task == "backbone" else TrainStep
    step = kind(model, optimizer, nn.CrossEntropyLoss(), precision, source=network, clip_grad=CLIP, ema=average,
                parallel=parallel)  # fmt: skip
    return lambda: _discard(step([batch]))


def inference(network: nn.Module, batch: Any, precision: Precision) -> Callable[[], None]:
    network.eval()

    def call() -> None:
        with record_function("forward"), torch.no_grad(), precision.autocast():
            network(batch.images)

    return call


def _discard(result: Any) -> None:
    """The record of a step is not needed."""


def count_forward(network: nn.Module, batch: Any) -> int:
    """Floating-point operations of one image's forward pass: products, convolutions, attention, our operators."""
    training = network.training
    network.eval()
    with FlopCounterMode(display=False) as counter:  # with gradients, so that attention is the products it consists of
        network(batch.images[:1])
    network.train(training)
    return counter.get_total_flops()
