"""The Hadamard attention of a network's ELSA modules, and what the ghost head makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from elsa.core import ConfigError
from elsa.kernels import linear
from elsa.models import ELSA, ELSAVOLO
from elsa.models.swin import SwinStages
from elsa.models.volo import PATCH


@dataclass(frozen=True)
class Layer:
    """An ELSA module of a network.

    Attributes:
        stage, block: where it stands, counted from 1; name: in the network, as in its state dict.
        stride: pixels of the image between neighbouring positions of its map.
    """

    stage: int
    block: int
    name: str
    stride: int
    module: ELSA

    def cell(self, x: int, y: int) -> tuple[int, int]:
        """Row and column of the position whose patch has a pixel of the image."""
        return y // self.stride, x // self.stride

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the positions whose patches have pixels of an image of that size."""
        return -(-height // self.stride), -(-width // self.stride)


def elsa_layers(network: nn.Module) -> list[Layer]:
    """Those of ELSA-Swin and ELSA-VOLO, first to last; of any other network none."""
    if isinstance(network, SwinStages):
        named = [(f"layers.{stage}.blocks", 4 * 2**stage) for stage in range(len(network.layers))]
    elif isinstance(network, ELSAVOLO):
        named = [("network.0", PATCH)]
    else:
        named = []
    return [
        Layer(stage, block, f"{path}.{block - 1}.attn", stride, module.attn)
        for stage, (path, stride) in enumerate(named, 1)
        for block, module in enumerate(network.get_submodule(path).children(), 1)
        if isinstance(getattr(module, "attn", None), ELSA)
    ]


def choose(layers: list[Layer], stage: int | None, block: int | None, head: int | None) -> tuple[Layer, int]:
    """The layer and the head, from 0, that were asked for, counted from 1; by default the last stage's last block's
    first head.

    Raises:
        ConfigError: there is no such; the message says which there are.
    """
    stages = sorted({layer.stage for layer in layers})
    stage = stages[-1] if stage is None else stage
    if stage not in stages:
        raise ConfigError(f"--stage {stage} has no ELSA; {_told('stage', stages)}")
    blocks = {layer.block: layer for layer in layers if layer.stage == stage}
    block = max(blocks) if block is None else block
    if block not in blocks:
        raise ConfigError(f"--block {block} of stage {stage} is no ELSA block; {_told('block', sorted(blocks))}")
    heads = blocks[block].module.num_heads
    head = 1 if head is None else head
    if not 1 <= head <= heads:
        raise ConfigError(f"--head {head} is none of stage {stage}; {_told('head', list(range(1, heads + 1)))}")
    return blocks[block], head - 1


def _told(kind: str, numbers: list[int]) -> str:
    return f"there is {kind} {numbers[0]} alone" if len(numbers) == 1 else f"there are {numbers[0]} … {numbers[-1]}"


def hadamard_attention(module: ELSA, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a module weighs its neighbourhood by, and the values that are weighed.

    Args:
        x: the module's input, (B, H, W, C).

    Returns:
        The softmax over the K² taps of each position and head, (B, H, W, G, K²) in float32, which sums to 1 with the
        taps outside the map, and the values (B, H, W, C_v).
    """
    packed = linear(x, module.pre_proj.weight.flatten(1), module.pre_proj.bias)
    logits, value = module.hadamard_attention(packed)
    return logits.float().unflatten(-1, (module.num_heads, -1)).softmax(-1), value


def with_ghost_head(module: ELSA, attention: Tensor) -> Tensor:
    """Attention (…, G, K²) → that of every channel, (…, C_v, K²): a · mul + add."""
    mul, add = module.ghost_maps()
    of_channels = attention.repeat_interleave(module.dim_v // module.num_heads, -2)
    of_channels = of_channels if mul is None else of_channels * mul.float()
    return of_channels if add is None else of_channels + add.float()


@contextmanager
def watched(layers: list[Layer], note: Callable[[Layer, Tensor], None]) -> Iterator[None]:
    """Within it, every forward pass of these modules has its attention (B, H, W, G, K²) noted."""

    def hook(layer: Layer) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            with torch.no_grad():
                note(layer, hadamard_attention(layer.module, inputs[0])[0])

        return before

    handles = [layer.module.register_forward_pre_hook(hook(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
