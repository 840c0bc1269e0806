"""Our backbones and parts of heads in mmengine's registries. Importing it registers them.

It has to come before anything imports ``mmcv.ops``: see ``operators``.
"""

from . import operators

operators.provide()

from .backbone import DenseBackbone  # noqa: E402
from .loss import ClassWeightedLoss  # noqa: E402

__all__ = ["ClassWeightedLoss", "DenseBackbone"]
