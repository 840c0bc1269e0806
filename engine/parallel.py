"""How a model is spread over the processes: each holds all of it (DDP), or a part (FSDP2); from outside the model."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from .distributed import Runtime

LISTS = (nn.ModuleList, nn.Sequential)


class Parallel:
    """A model that is whole in every process; with several, gradients are averaged over them.

    Attributes:
        divides: whether each process holds a part of the weights only.
    """

    divides = False

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime

    def spread(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> nn.Module:
        """The module that a step calls. Names in the model's state dict stay as they are.

        Args:
            optimizer: of the model, still without state.
            average: of the weights: a copy of the model, or None.
        """
        if self.runtime.world_size == 1:
            return model
        devices = [self.runtime.device.index] if self.runtime.device.type == "cuda" else None
        known = inspect.signature(DistributedDataParallel).parameters  # torch gave it another name
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {"device_ids": devices, "gradient_as_bucket_view": True, buffers: False}
        return DistributedDataParallel(model, **options)

    def micro_step(self, model: nn.Module, last: bool) -> AbstractContextManager:
        """Around forward and backward of a micro-batch: only after the ``last`` one gradients are exchanged."""
        return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()

    def clip(self, parameters: Iterable[Tensor], norms: Sequence[Tensor], limit: float) -> Tensor:
        """Limits the norm of all gradients together; the norm as it was, a scalar on the device.

        Args:
            norms: of each gradient.
        """
        norm = torch.linalg.vector_norm(torch.stack(list(norms)))
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return norm

    def fit(self, whole: Tensor, like: Tensor) -> Tensor:
        """A tensor that every process has whole, as this process holds ``like``."""
        return whole

    def whole(self, module: nn.Module) -> AbstractContextManager:
        """Around an evaluation: no process needs another to compute with the module."""
        return nullcontext()

    def gathered(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's tensors, whole, in the main process's memory; all processes must ask."""
        return module.state_dict()


class Sharded(Parallel):
    """FSDP2: parameters, gradients and the optimizer's state are divided among the processes, block by block. A block's
    parameters are whole only while it computes."""

    divides = True

    def spread(self, model: nn.Module, optimizer: torch.optim.Optimizer, average: nn.Module | None) -> nn.Module:
        mesh = init_device_mesh(self.runtime.device.type, (self.runtime.world_size,))
        names = {parameter: name for name, parameter in model.named_parameters()}
        for module in (model, average):
            if module is not None:
                shard(module, mesh)
        parts = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [parts[names[parameter]] for parameter in group["params"]]
        return model

    def micro_step(self, model: nn.Module, last: bool) -> AbstractContextManager:
        assert isinstance(model, FSDPModule)
        return _exchanging(model, last)

    def clip(self, parameters: Iterable[Tensor], norms: Sequence[Tensor], limit: float) -> Tensor:
        return whole_tensor(super().clip(parameters, norms, limit))

    def fit(self, whole: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return whole
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    @contextmanager
    def whole(self, module: nn.Module) -> Iterator[None]:
        parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
                part.set_reshard_after_forward(part is not module, recurse=False)

    def gathered(self, module: nn.Module) -> dict[str, Tensor]:
        found = {}
        for name, tensor in module.state_dict().items():
            tensor = whole_tensor(tensor)
            found[name] = tensor.cpu() if self.runtime.is_main else tensor.new_empty(0)
        return found


@contextmanager
def _exchanging(model: FSDPModule, last: bool) -> Iterator[None]:
    model.set_requires_gradient_sync(last)
    yield


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Divides the parameters of each block, and together those that remain."""
    for block in blocks(model):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def blocks(model: nn.Module) -> list[nn.Module]:
    """What a network repeats, of detectors and segmentors their ``backbone``: modules in lists, several of a class, the
    innermost such that have parts.

    Which parts of a head compute may depend on a process's images; its parameters stay together, so that no process
    waits for a part that another has no use for.
    """
    lists = [part for part in getattr(model, "backbone", model).modules() if isinstance(part, LISTS)]
    inside = [child for part in lists for child in part if _is_block(child)]
    kinds = Counter(type(child) for child in inside)
    found = [child for child in inside if kinds[type(child)] > 1]
    return [child for child in found if not any(part in found for part in list(child.modules())[1:])]


def _is_block(module: nn.Module) -> bool:
    is_list = isinstance(module, nn.Sequential) or any(isinstance(part, nn.ModuleList) for part in module.modules())
    return not is_list and next(module.children(), None) is not None and next(module.parameters(), None) is not None


def choose_parallel(name: str, runtime: Runtime) -> Parallel:
    """TRAIN.PARALLEL for these processes; one alone has nothing to divide."""
    return Sharded(runtime) if name == "fsdp" and runtime.world_size > 1 else Parallel(runtime)
