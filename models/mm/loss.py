"""Cross entropy with class weights and unlabelled pixels: mmseg looks the weight of the ignored label up, and fails."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class ClassWeightedLoss(nn.Module):
    """Cross entropy of the labelled pixels, averaged with the weights of their classes.

    The average is torch's ``cross_entropy(weight=…, ignore_index=…)``: Σ w[y]·ce / Σ w[y], zero where no pixel has a
    label.

    Args:
        class_weight: a weight per class; None weighs all alike.
        loss_weight: factor on the loss.
        loss_name: as mmseg names it; what starts with ``loss_`` is part of the total.
    """

    class_weight: Tensor | None

    def __init__(
        self, class_weight: Sequence[float] | None = None, loss_weight: float = 1.0, loss_name: str = "loss_ce"
    ) -> None:
        super().__init__()
        if class_weight is not None and (min(class_weight, default=0) < 0 or not sum(class_weight)):
            raise ValueError(f"class_weight must be weights of at least 0, not all 0, got {class_weight}")
        self.loss_weight, self.loss_name = loss_weight, loss_name
        weights = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float32)
        self.register_buffer("class_weight", weights, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor, weight: Tensor | None = None, ignore_index: int = 255) -> Tensor:
        """
        Args:
            logits: (B, C, H, W).
            labels: (B, H, W), 0 … C−1 or ``ignore_index``.
            weight: (B, H, W), a further weight of each pixel, from mmseg's pixel samplers.

        Raises:
            ValueError: another number of classes than of weights, or one logit, of which the loss is 0 always.
        """
        classes = logits.shape[1]
        if self.class_weight is not None and len(self.class_weight) != classes:
            raise ValueError(f"class_weight has {len(self.class_weight)} weights, the head {classes} classes")
        if classes == 1:
            raise ValueError("ClassWeightedLoss needs a logit for each of two classes or more, the head has one")
        labelled = labels != ignore_index
        logits, labels = logits.movedim(1, -1)[labelled].float(), labels[labelled]
        share = logits.new_ones(len(labels)) if self.class_weight is None else self.class_weight[labels]
        if weight is not None:
            share = share * weight[labelled]
        losses = F.cross_entropy(logits, labels, reduction="none")
        return self.loss_weight * (losses * share).sum() / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
