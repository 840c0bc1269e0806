"""Images of mmdet's and mmseg's pipelines by ``elsa.data.decode``."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from ..decode import decode

LOADERS = ("LoadImageFromFile", "mmcv.LoadImageFromFile", "mmdet.LoadImageFromFile", "mmseg.LoadImageFromFile")


@TRANSFORMS.register_module()
class DecodeImage(BaseTransform):
    """``img_path`` → ``img`` (H, W, 3) uint8 in the order blue, green, red that mm's pipelines have, with its shape.

    Raises:
        UnreadableImage: the file cannot be decoded.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        pixels = np.asarray(decode(results["img_path"]))
        results["img"] = np.ascontiguousarray(pixels[..., ::-1])
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        return results


def with_our_decoder(node: Any) -> Any:
    """A configuration in which DecodeImage stands for whatever loads images from files."""
    if isinstance(node, dict):
        if node.get("type") in LOADERS:
            return {"type": "DecodeImage"}
        return {name: with_our_decoder(value) for name, value in node.items()}
    return type(node)(map(with_our_decoder, node)) if isinstance(node, (list, tuple)) else node
