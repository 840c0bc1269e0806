"""mmcv's compiled operators that our detectors and segmentors need, on torchvision's.

mmcv-lite has no compiled operators, and compiling mmcv takes a toolkit and many minutes. Mask R-CNN, Cascade Mask R-CNN
and UPerNet need two of its operators only, NMS and RoIAlign; torchvision's compute the same, on CPU and GPU. A compiled
mmcv is used where there is one.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
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


def provide() -> bool:
    """Puts these operators where ``mmcv.ops`` looks for compiled ones, unless there are some; whether it did."""
    if NAME in sys.modules:
        return isinstance(sys.modules[NAME], _Operators)
    if importlib.util.find_spec("mmcv") is None or importlib.util.find_spec(NAME) is not None:
        return False
    sys.modules[NAME] = _Operators()
    return True


class _Operators(ModuleType):
    """Stands in for ``mmcv._ext``: mmcv asks for some two hundred names on import, of which few are ever called."""

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        self.__spec__ = ModuleSpec(NAME, None)
        self.nms, self.roi_align_forward, self.roi_align_backward = nms, roi_align_forward, roi_align_backward

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> None:
            raise MissingOperator(f"mmcv's operator {name} needs a compiled mmcv; NMS and RoIAlign run without")

        return missing
