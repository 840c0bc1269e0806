"""Our backbones and parts of heads in mmengine's registries, and the operators that mmcv lacks.

Importing it registers ``DenseBackbone`` and ``ClassWeightedLoss``; ``elsa.models.mm.roi``, which needs mmdet, registers
``Float32RoIExtractor``. mmdet, mmseg and mmcv may be imported before or after it, see ``operators``.
"""

from . import operators
from .backbone import DenseBackbone
from .loss import ClassWeightedLoss

operators.provide()

__all__ = ["ClassWeightedLoss", "DenseBackbone"]
