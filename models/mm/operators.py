"""mmcv's compiled operators that our detectors and segmentors need, on torchvision's.

mmcv-lite has no compiled operators, and compiling mmcv takes a toolkit and many minutes. Mask R-CNN, Cascade Mask R-CNN
and UPerNet need two of its operators only, NMS and RoIAlign; torchvision's compute the same, on CPU and GPU. A compiled
mmcv is used where there is one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms  # importing it registers torch.ops.torchvision

NAME = "mmcv._ext"


class MissingOperator(RuntimeError):
    """A model asks for an operator that only a compiled mmcv has."""


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Indices of the boxes (N, 4) that greedy non-maximum suppression keeps, by descending score.

    ``offset`` 1 counts the last pixel as part of a box, as old data sets do.
    """
    boxes = boxes.float()
    if offset:
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), dim=1)
    return torchvision_nms(boxes, scores.float(), iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes RoIAlign of input (B, C, H, W) for rois (N, 5) into output (N, C, aligned_height, aligned_width)."""
    _check_average(pool_mode)
    size = (aligned_height, aligned_width)
    output.copy_(
        torch.ops.torchvision.roi_align(input.float(), rois.float(), spatial_scale, *size, sampling_ratio, aligned)
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Writes the gradient of the input of RoIAlign into grad_input (B, C, H, W)."""
    _check_average(pool_mode)
    size = (aligned_height, aligned_width)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.float(), rois.float(), spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned
        )
    )


def _check_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise MissingOperator("RoIAlign with pool_mode 'max' needs a compiled mmcv")


class Finder:
    """Finds these operators where ``mmcv.ops`` looks for compiled ones, and nothing else; asked last, so
    that a compiled mmcv goes before."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(NAME, _Loader()) if name == NAME else None


class _Loader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Operators()

    def exec_module(self, module: ModuleType) -> None:
        """It is complete."""


def provide() -> None:
    """Gives mmcv these operators where it has no compiled ones. What is installed does so for every process that comes
    to ``mmcv._ext``, see ``elsa_mm.pth``; this is for a checkout that is used without."""
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)


class _Operators(ModuleType):
    """Stands in for ``mmcv._ext``: mmcv asks for some two hundred names on import, of which few are ever called."""

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        self.nms, self.roi_align_forward, self.roi_align_backward = nms, roi_align_forward, roi_align_backward

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise MissingOperator(f"mmcv's operator {name} needs a compiled mmcv; NMS and RoIAlign run without")

        return missing
