"""What TensorBoard shows beside the numbers of a detector or segmentor: a batch after augmentation, and predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from elsa.data.decode import TURNED
from elsa.engine import Step

from ..pictures import as_image, fitted
from .pictures import WIDTH, PicturesOfTest, pixels_of, side_by_side


class DenseGallery:
    """Pictures with ground truth, of predictions of the evaluation that has just been; ``note`` takes them in.

    Args:
        count: images of each picture; drawing: what draws one.
        batches: of an evaluation.
    """

    def __init__(self, count: int, drawing: Any, batches: int, orientation: str = TURNED) -> None:
        self.count, self.drawing, self.batches, self.orientation = count, drawing, batches, orientation
        self.kept = PicturesOfTest(0, batches, drawing, orientation)

    def batch(self, step: Step, batch: Mapping[str, Any]) -> np.ndarray:
        cells = []
        for image, sample in list(zip(batch["inputs"], batch["data_samples"], strict=True))[: self.count]:
            cells.append(
                (fitted(self.drawing(pixels_of(image), sample, with_truth=True), WIDTH, 3 * WIDTH), "", "black")
            )
        return np.asarray(as_image(side_by_side(cells, "")))

    def note(self, number: int, found: Sequence[Any]) -> None:
        """Called with each batch of an evaluation, from 0."""
        if number == 0:
            self.kept = PicturesOfTest(self.count, self.batches, self.drawing, self.orientation)
        self.kept.note(number, found)

    def predictions(self, model: nn.Module) -> np.ndarray | None:
        return np.asarray(as_image(side_by_side(self.kept.cells, ""))) if self.kept.cells else None
