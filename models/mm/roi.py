"""RoI features in float32: under mixed precision mmdet 3 rounds box coordinates to the features' type.

A coordinate of 1300.7 becomes 1301 in float16 and 1304 in bfloat16; mmdet 2.11, which trained the released detectors,
computed RoIAlign in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class Float32RoIExtractor(SingleRoIExtractor):
    """mmdet's SingleRoIExtractor on features cast to float32."""

    def forward(self, feats: Sequence[Tensor], rois: Tensor, roi_scale_factor: float | None = None) -> Tensor:
        """Maps (B, C, H_l, W_l) per level, rois (N, 5) in pixels → (N, C, size, size) in float32."""
        return super().forward(tuple(level.float() for level in feats), rois.float(), roi_scale_factor)
