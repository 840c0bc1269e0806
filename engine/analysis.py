"""What an evaluation's predictions tell beyond accuracy: each class, which is taken for which, and calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .evaluate import Predictions

BINS = 15


@dataclass(frozen=True)
class ClassCounts:
    """Of C classes.

    Attributes:
        images, correct: (C,) images of each class, and how many of them are told right.
        cells: (M, 3) the entries of the confusion matrix that are not 0: true class, predicted class, images; in the
            order of the true class, then of the predicted one.
    """

    images: np.ndarray
    correct: np.ndarray
    cells: np.ndarray

    @property
    def accuracy(self) -> np.ndarray:
        """(C,) in per cent; NaN where a class has no image."""
        return 100 * self.correct / np.where(self.images, self.images, np.nan)

    @property
    def matrix(self) -> np.ndarray:
        """(C, C) images by true class (row) and predicted class (column); for few classes."""
        whole = np.zeros((len(self.images),) * 2, np.int64)
        whole[self.cells[:, 0], self.cells[:, 1]] = self.cells[:, 2]
        return whole

    @property
    def mistakes(self) -> np.ndarray:
        """(M, 3) the cells beside the diagonal, most images first, then the largest share of the true class."""
        wrong = self.cells[self.cells[:, 0] != self.cells[:, 1]]
        share = wrong[:, 2] / self.images[wrong[:, 0]]
        return wrong[np.lexsort((wrong[:, 1], wrong[:, 0], -share, -wrong[:, 2]))]


def count_classes(predictions: Predictions, classes: int) -> ClassCounts:
    """The counts of ``classes`` classes."""
    targets, predicted = predictions.targets, predictions.classes[:, 0]
    keys, images = np.unique(targets * classes + predicted, return_counts=True)
    return ClassCounts(
        np.bincount(targets, minlength=classes),
        np.bincount(targets[targets == predicted], minlength=classes),
        np.stack([keys // classes, keys % classes, images], 1),
    )


@dataclass(frozen=True)
class Calibration:
    """How far the probability of the predicted class is the share of right answers (Guo et al., On Calibration of
    Modern Neural Networks, 2017, section 2).

    Attributes:
        images: (BINS,) images whose probability p is in bin b: b / BINS < p ≤ (b + 1) / BINS.
        confidence, accuracy: (BINS,) mean probability and share of right answers of a bin, 0 … 1; NaN in an empty bin.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def ece(self) -> float:
        """The expected calibration error, 0 … 1: the mean of |accuracy − confidence| over the bins, each weighted by
        its images."""
        filled = self.images > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((self.images[filled] * gaps).sum() / self.images.sum())


def calibrate(predictions: Predictions) -> Calibration:
    shares = predictions.shares[:, 0].astype(np.float64)
    hits = predictions.targets == predictions.classes[:, 0]
    place = np.searchsorted(np.arange(1, BINS) / BINS, shares)
    images, share, right = (np.bincount(place, weight, BINS) for weight in (None, shares, hits))
    among = np.where(images, images, np.nan)
    return Calibration(images, share / among, right / among)
