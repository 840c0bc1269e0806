"""Losses of classification: with weights of the classes, and of token labeling (arXiv 2104.10858)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WeightedCrossEntropy(nn.Module):
    """Cross entropy with a weight for each class, for class indices and for class probabilities alike.

    The loss of an image is Σ_c w[c] · t[c] · −log p[c], t its target after label smoothing, and that of a batch the
    mean over its images. torch's own mean over class indices divides by the weights that a batch happens to hold
    instead, so that the gradient would depend on how the batch is divided among processes and micro-batches.

    Args:
        weights: of the classes, (C,), positive.
        label_smoothing: ε: the target becomes (1 − ε) · t + ε / C.
    """

    def __init__(self, weights: Tensor, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.weights, self.label_smoothing = weights, label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of logits (B, C) and targets (B,) or (B, C)."""
        losses = F.cross_entropy(
            logits, targets, weight=self.weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return losses.mean()


class TokenLabelLoss(nn.Module):
    """Cross entropy of the class token and of the patch tokens, each with soft targets.

    Args:
        class_weight, patch_weight: of the two terms.
        ground_truth: whether to mix the image's own class into the class token's target: r · target + (1 − r) · own,
            r = ``share``, or ``agreed_share`` where the two name the same class.
    """

    def __init__(
        self,
        class_weight: float = 1.0,
        patch_weight: float = 0.5,
        ground_truth: bool = False,
        share: float = 0.9,
        agreed_share: float = 0.5,
    ) -> None:
        super().__init__()
        self.class_weight, self.patch_weight, self.ground_truth = class_weight, patch_weight, ground_truth
        self.share, self.agreed_share = share, agreed_share

    def forward(
        self,
        of_class: Tensor,
        of_patches: Tensor,
        targets: tuple[Tensor, Tensor, Tensor],
        kept: Tensor | float = 1.0,
    ) -> Tensor:
        """The mean loss.

        Args:
            of_class: logits of the class token, (B, C).
            of_patches: logits of the patch tokens, (B, N, C), those in the mix-token box put back to their image.
            targets: probabilities: ground truth (B, C), class token (B, C), patch tokens (B, N, C).
            kept: λ, the share of tokens outside the mix-token box: the class token saw λ of its image and 1 − λ of the
                image's mirror in the batch.
        """
        loss = F.cross_entropy(of_class, self.target_of_class(targets, kept))
        of_patches = F.cross_entropy(of_patches.flatten(0, 1), targets[2].flatten(0, 1))
        return self.class_weight * loss + self.patch_weight * of_patches

    def target_of_class(self, targets: tuple[Tensor, Tensor, Tensor], kept: Tensor | float = 1.0) -> Tensor:
        """What the class token is to say, (B, C); arguments as above."""
        own, target, _ = targets
        if self.ground_truth:
            agreed = (own.argmax(1) == target.argmax(1))[:, None]
            share = torch.where(agreed, self.agreed_share, self.share)
            target = share * target + (1 - share) * own
        return kept * target + (1 - kept) * target.flip(0)
