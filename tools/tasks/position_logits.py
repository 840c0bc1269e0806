"""Class scores for every position of an image, from any image classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elsa.engine import ConfigError


def position_logits(model: nn.Module, images: Tensor, grid: int) -> Tensor:
    """Images (B, C_in, H, W) → logits (B, classes, grid, grid), float32.

    Each position of the classifier's last map goes through its head as if it were all of the image; models with token
    logits of their own (ELSA-VOLO) give those. The result is resized bilinearly.

    Raises:
        ConfigError: a model whose last features are no map and no tokens.
    """
    if hasattr(model, "token_stride"):
        logits = _as_map(model(images, token_logits=True)[1], images, model.token_stride)
    else:
        logits = _through_the_head(model, model.forward_features(images))
    return F.interpolate(logits.float(), (grid, grid), mode="bilinear", align_corners=False)


def best_classes(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Logits (B, classes, h, w) → scores and indices of the best ``top`` classes of each position, (B, top, h, w).

    A class that is left out counts as score 0. So that a softmax over those zeros gives the named classes exactly the
    probabilities that they have, and the others what remains in equal shares, the scores are the logits less the
    logarithm of the others' mean exponential. Where there are fewer classes than ``top`` the last one is repeated.
    """
    ordered, classes = logits.sort(dim=1, descending=True)
    named, others = ordered[:, :top], ordered[:, top:]
    if others.shape[1]:
        named = named - (others.logsumexp(1, keepdim=True) - torch.tensor(float(others.shape[1])).log())
    again = torch.arange(top, device=logits.device).clamp_max(logits.shape[1] - 1)
    return named[:, again], classes[:, :top][:, again]


def _through_the_head(model: nn.Module, features: Tensor) -> Tensor:
    """A timm model's last map or tokens → logits (B, classes, h, w)."""
    width = getattr(model, "num_features", None)
    if features.ndim == 4:
        last = features.shape[3] == width and (features.shape[1] != width or getattr(model, "output_fmt", "") == "NHWC")
        if not last:
            features = features.permute(0, 2, 3, 1)
        batch, height, columns, channels = features.shape
        alone = features.reshape(-1, 1, 1, channels)
        logits = model.forward_head(alone if last else alone.permute(0, 3, 1, 2))
        return logits.unflatten(0, (batch, height, columns)).permute(0, 3, 1, 2)
    if features.ndim == 3:
        prefix = getattr(model, "num_prefix_tokens", 0)
        tokens = features[:, prefix:]
        alone = tokens.flatten(0, 1)[:, None].expand(-1, 1 + prefix, -1)  # in the place of the class token, too
        logits = model.forward_head(alone).unflatten(0, tokens.shape[:2])
        side = round(tokens.shape[1] ** 0.5)
        if side**2 == tokens.shape[1]:
            return logits.transpose(1, 2).unflatten(2, (side, side))
    raise ConfigError(f"{type(model).__name__} gives features of shape {tuple(features.shape)}, neither map nor tokens")


def _as_map(tokens: Tensor, images: Tensor, stride: int) -> Tensor:
    size = tuple(-(-side // stride) for side in images.shape[-2:])
    return tokens.transpose(1, 2).unflatten(2, size)
