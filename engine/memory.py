"""What a training step needs of a device's memory, estimated without one: shapes alone are computed.

A copy of the model made of fake tensors (``torch._subclasses.fake_tensor``: shape, type and device without data) runs
forward as it would on the device, under its autocast. What is still held afterwards is what backward needs.
"""

from __future__ import annotations

import copy
import itertools
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .parallel import blocks

GIB = 2**30
USABLE = 0.9  # of a GPU's memory; the rest is for its context, for libraries, and for what lies between tensors
IMAGES = 61  # of the imitated batch: a prime that no layer has, so that what grows with the batch is told by its size
SPARE = 2  # tensors of the largest size that backward needs at a time: a gradient that comes and one that goes

Forward = Callable[[Any, Callable[..., Tensor]], Any]
"""(model, what makes an empty tensor of a shape) → what the loss is made of, for a batch of ``IMAGES`` images."""


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass leaves.

    Attributes:
        image: for each image, the image included; fixed: whatever their number, such as weights cast by autocast.
        largest: of the largest tensor, for each image.
        recomputed: for each image what one block holds while it is recomputed; 0 where none is.
    """

    image: float
    fixed: int
    largest: float
    recomputed: float = 0.0


class _Held(TorchDispatchMode):
    """Notes the storages that operators make while they are held by anything."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()
        self.own = own
        self.held: dict[int, tuple[int, Any]] = {}  # by storage

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.own and key not in self.held:
            forget = weakref.ref(storage, lambda _: self.held.pop(key))
            self.held[key] = (storage.nbytes(), forget)

    def of_images(self) -> float:
        """Bytes that grow with the batch, for each image."""
        return sum(size for size, _ in self.held.values() if size % IMAGES == 0) / IMAGES

    def summary(self) -> Activations:
        sizes = [size for size, _ in self.held.values()]
        largest = max((size for size in sizes if size % IMAGES == 0), default=0) / IMAGES
        return Activations(self.of_images(), sum(size for size in sizes if size % IMAGES), largest)


class _FusedAttention(TorchFunctionMode):
    """Attention as GPUs do it: torch chooses its kernel by the GPU that is there, and without one the product of all
    pairs."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and len(args) == 3 and kwargs.get("attn_mask") is None:
            query, key, value = args
            if query.device.type == "cuda" and torch.is_autocast_enabled("cuda"):
                dtype = torch.get_autocast_dtype("cuda")
                parts = (query.to(dtype), key.to(dtype), value.to(dtype))
                return torch.ops.aten._scaled_dot_product_flash_attention(*parts, kwargs.get("dropout_p", 0.0))[0]
            if query.device.type == "cuda":
                options = (None, query.requires_grad, kwargs.get("dropout_p", 0.0))
                return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, *options)[0]
        return function(*args, **kwargs)


@contextmanager
def _autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """Autocast of a device that need not be there, which ``torch.autocast`` would switch off."""
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, dtype is not None)
    if dtype is not None:
        torch.set_autocast_dtype(device, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs at length what it raises as well."""
    torchs = logging.getLogger("torch._subclasses.fake_tensor")
    before, torchs.disabled = torchs.disabled, True
    try:
        yield
    finally:
        torchs.disabled = before


def _imitate(model: nn.Module, device: str, mode: FakeTensorMode) -> nn.Module:
    """A copy whose parameters and buffers are fake tensors; nothing is copied of theirs."""
    memo: dict[int, Any] = {}
    with mode:
        for tensor in itertools.chain(model.parameters(), model.buffers()):
            fake = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
            memo[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
    copied = copy.deepcopy(model, memo).train()
    for module in copied.modules():
        if isinstance(module, nn.SyncBatchNorm):  # keeps what the other keeps, but would ask other processes
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return copied


def measure(
    model: nn.Module,
    forward: Forward,
    device: str,
    dtype: torch.dtype | None,
    recompute: Callable[[nn.Module, bool], Any] | None = None,
) -> Activations:
    """What is held between forward and backward. The model itself is not touched, and may be on the meta device.

    Args:
        device: "cpu" or "cuda", which need not be there. dtype: of autocast, or None for none.
        recompute: switches the recomputation of blocks of a model on or off; None where it is not asked for.
    """
    if recompute is None:
        return _run(model, forward, device, dtype, None)
    whole = _run(model, forward, device, dtype, lambda copied: recompute(copied, False))
    kept = _run(model, forward, device, dtype, lambda copied: recompute(copied, True))
    return replace(kept, recomputed=whole.recomputed, largest=whole.largest)


def _run(
    model: nn.Module,
    forward: Forward,
    device: str,
    dtype: torch.dtype | None,
    switch: Callable[[nn.Module], Any] | None,
) -> Activations:
    """One forward pass of a copy; ``recomputed`` is what its largest block holds where there is a ``switch``."""
    most, mode = 0.0, FakeTensorMode(allow_non_fake_inputs=True)
    copied = _imitate(model, device, mode)
    if switch is not None:
        switch(copied)
    with _quiet(), mode:
        own = {tensor.untyped_storage()._cdata for tensor in (*copied.parameters(), *copied.buffers())}
        with _Held(own) as held:
            begun: list[float] = []

            def before(*_: object) -> None:
                begun.append(held.of_images())

            def after(*_: object) -> None:
                nonlocal most
                most = max(most, held.of_images() - begun.pop())

            for block in blocks(copied) if switch is not None else ():
                block.register_forward_pre_hook(before)
                block.register_forward_hook(after)
            inputs: list[Tensor] = []  # whoever calls holds them, too

            def empty(*shape: int) -> Tensor:
                inputs.append(torch.empty(shape, device=device))
                return inputs[-1]

            with _autocast(device, dtype), _FusedAttention():
                result = forward(copied, empty)
            found = replace(held.summary(), recomputed=most)
        del result
    return found


class _Probe(nn.Module):
    """A matrix and a vector, for an optimizer to show what it keeps of them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(64))


def optimizer_state(build: Callable[[nn.Module], torch.optim.Optimizer]) -> tuple[float, float]:
    """Bytes that an optimizer keeps for each number of a matrix, and of a vector, after a step of its own."""
    probe = _Probe()
    optimizer = build(probe)
    for parameter in probe.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()

    def of(parameter: nn.Parameter) -> float:
        kept = [item for item in tree_leaves(optimizer.state[parameter]) if isinstance(item, Tensor) and item.ndim]
        return sum(item.nbytes for item in kept) / parameter.numel()

    return of(probe.weight), of(probe.bias)


@dataclass(frozen=True)
class Memory:
    """Bytes that a process needs of its device.

    Attributes:
        parts: what does not depend on the images, by name.
        image: activations of one image; work: what computing needs beside, for each image.
        notes: what the estimate leaves out.
    """

    parts: dict[str, float]
    image: float
    work: float
    notes: tuple[str, ...] = ()

    def total(self, images: int) -> float:
        """With so many images at a time."""
        return sum(self.parts.values()) + images * (self.image + self.work)

    def most(self, usable: float) -> int:
        """The most images at a time for which ``usable`` bytes suffice."""
        return max(0, int((usable - self.total(0)) / (self.image + self.work)))

    def table(self, images: int) -> dict[str, float]:
        """Bytes by part, for so many images at a time."""
        return {**self.parts, "activations": images * self.image, "workspace": images * self.work}

    def as_dict(self, images: int, usable: float | None) -> dict[str, Any]:
        return {**asdict(self), "notes": list(self.notes), "images": images, "total": self.total(images),
                "usable": usable}  # fmt: skip

    def line(self, images: int, usable: float) -> str:
        """The estimate for people."""
        rows = [f"{name} {size / GIB:.2f}" for name, size in self.table(images).items() if size >= GIB / 200]
        notes = "".join(f"; {note}" for note in self.notes)
        return (
            f"memory of a process, estimated: {self.total(images) / GIB:.1f} GiB of {usable / GIB:.1f} usable "
            f"({', '.join(rows)}; {self.image / 2**20:.1f} MiB an image){notes}"
        )


def estimate(
    model: nn.Module,
    activations: Activations,
    state: tuple[float, float],
    *,
    average: bool,
    processes: int,
    sharded: bool,
    notes: tuple[str, ...] = (),
) -> Memory:
    """Puts the parts together. They are added up as if all were there at once, which no moment of a step exceeds:
    gradients come while activations go.

    Args:
        state: see ``optimizer_state``. average: whether a moving average of the weights is kept.
        sharded: whether the processes divide parameters, gradients, state and average among them; then each gathers
            one block to compute with and the next one, and what belongs to no block stays gathered. DDP's buckets are
            the gradients themselves.
    """
    parameters = list(model.parameters())
    sizes = {"parameters": _bytes(parameters), "gradients": _bytes([p for p in parameters if p.requires_grad])}
    sizes["optimizer state"] = sum(p.numel() * state[p.ndim < 2] for p in parameters if p.requires_grad)
    sizes["average of the weights"] = sizes["parameters"] if average else 0.0
    gathered = 0.0
    if sharded and processes > 1:
        of_blocks = [_bytes(list(block.parameters())) for block in blocks(model)]
        # Parameters of two blocks, gradients of one.
        gathered = sizes["parameters"] - sum(of_blocks) + 3 * max(of_blocks, default=0)
        sizes = {name: size / processes for name, size in sizes.items()}
    sizes["buffers"] = _bytes(list(model.buffers())) * (2 if average else 1)
    parts = {**sizes, "gathered blocks": gathered, "weights cast": activations.fixed}
    work = SPARE * activations.largest + activations.recomputed
    return Memory({name: float(size) for name, size in parts.items() if size}, activations.image, work, notes)


def _bytes(tensors: list[Any]) -> float:
    return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors))


def usable_memory(device: torch.device) -> float | None:
    """Bytes of a GPU that a training may fill; None for a CPU, which has all that is needed of it or swaps."""
    if device.type != "cuda":
        return None
    return USABLE * torch.cuda.get_device_properties(device).total_memory
