"""Images of mmdet's and mmseg's pipelines by ``elsa.data.decode``."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

from elsa.core import DataError

from ..decode import BECAUSE, ORIENTATIONS, TURNED, UnreadableImage, decode

OURS = "DecodeImage"
LOADERS = ("LoadImageFromFile", "mmcv.LoadImageFromFile", "mmdet.LoadImageFromFile", "mmseg.LoadImageFromFile", OURS)


@TRANSFORMS.register_module()
class DecodeImage(BaseTransform):
    """``img_path`` → ``img`` (H, W, 3) uint8 in the order blue, green, red that mm's pipelines have, with its shape.

    Args:
        orientation: "turned", as people see it, or "stored" where annotations were made without regard to the camera's
            note (EXIF).

    Raises:
        UnreadableImage: the file cannot be decoded, or has another size than its annotations say.
        DataError: its annotations belong to the other orientation.
    """

    def __init__(self, orientation: str = TURNED) -> None:
        self.orientation = orientation

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        path = results["img_path"]
        pixels = np.asarray(decode(path, orientation=self.orientation))
        results["img"] = np.ascontiguousarray(pixels[..., ::-1])
        results["img_shape"] = results["ori_shape"] = pixels.shape[:2]
        if "width" in results and "height" in results:
            check_size(path, pixels.shape[1::-1], (results["width"], results["height"]), self.orientation)
        return results


def check_size(path: str, found: tuple[int, ...], noted: tuple[int, int], orientation: str) -> None:
    """Raises where an image is not of the size, (width, height), that its annotations were made for."""
    if tuple(found) == noted:
        return
    other = next(choice for choice in ORIENTATIONS if choice != orientation)
    with_other = decode(path, orientation=other).size
    size, known = (f"{width}×{height}" for width, height in (found, noted))
    if with_other == noted:
        raise DataError(
            f"{path} is {size}, {orientation} by its camera's note (EXIF), its annotations are for {known}: "
            f"image_orientation = {other!r} in the recipe, or --set image_orientation={other}, says that annotations "
            f"belong to images as they are {other}"
        )
    raise UnreadableImage(f"{path}{BECAUSE}it is {size}, its annotations are for {known}")


def with_our_decoder(node: Any, orientation: str = TURNED) -> Any:
    """A configuration in which DecodeImage stands for whatever loads images from files.

    Args:
        orientation: of images whose step does not say one.
    """
    if isinstance(node, dict):
        if node.get("type") in LOADERS:
            return {"type": OURS, "orientation": node.get("orientation", orientation)}
        return {name: with_our_decoder(value, orientation) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return type(node)(with_our_decoder(value, orientation) for value in node)
    return node
