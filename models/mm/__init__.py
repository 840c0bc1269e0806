"""Our backbones and parts of heads in mmengine's registries, and the operators that mmcv lacks.

Importing it registers ``DenseBackbone`` and ``ClassWeightedLoss``; ``elsa.models.mm.roi``, which needs mmdet, registers
``Float32RoIExtractor``. It has to come before ``mmdet.apis``, ``mmseg.apis`` and all that imports ``mmcv.ops``, see
``operators``; where that was forgotten and failed, it mends the next attempt.
"""

from . import operators
from .backbone import DenseBackbone
from .loss import ClassWeightedLoss

operators.provide()

__all__ = ["ClassWeightedLoss", "DenseBackbone"]
