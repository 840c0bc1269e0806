"""Token labels (arXiv 2104.10858): a map of soft labels beside every training image, and the targets cut from it."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from elsa.core import DataError

from .sources import Source
from .transforms import View

SUFFIX = ".pt"
ABOUT_LABELS = "labels.json"  # what label maps of our own come from


@dataclass
class TokenLabels:
    """Of a batch: label maps (B, 2, K, h, w), boxes (B, 4) and flips (B, 2) of its images, see LabelMaps and View."""

    maps: Tensor
    boxes: Tensor
    flips: Tensor

    @classmethod
    def stack(cls, rows: Sequence[tuple[Tensor, View]]) -> TokenLabels:
        maps, views = zip(*rows, strict=True)
        return cls(
            torch.stack(maps), torch.tensor([view.box for view in views]), torch.tensor([view.flips for view in views])
        )

    def pin_memory(self) -> TokenLabels:
        return TokenLabels(self.maps.pin_memory(), self.boxes.pin_memory(), self.flips.pin_memory())

    def to(self, device: torch.device) -> TokenLabels:
        return TokenLabels(*(tensor.to(device, non_blocking=True) for tensor in (self.maps, self.boxes, self.flips)))


class LabelMaps:
    """The label maps of a split: ``folder/NAME.pt`` beside the image NAME, see ``label_path``.

    A file holds one tensor (2, K, h, w): scores of K classes per cell, and those classes' indices. A class that a cell
    does not name has score 0. All maps have the shape of the first one.

    Raises:
        DataError: no such folder, maps of other classes, images without a map, or images that would share one.
    """

    def __init__(self, folder: str | Path, source: Source, num_classes: int) -> None:
        self.folder, self.source, self.num_classes = Path(folder), source, num_classes
        if not self.folder.is_dir():
            raise DataError(f"TOKENS.LABELS {folder} does not exist; tools/make_token_labels.py writes it")
        self._check_classes()
        names = [label_path(source, index) for index in range(len(source))]
        if shared := [name for name, count in Counter(names).items() if count > 1]:
            raise DataError(f"{len(shared)} label maps would belong to several images: {', '.join(shared[:5])}")
        there = {
            os.path.relpath(os.path.join(place, file), self.folder)
            for place, _, files in os.walk(self.folder)
            for file in files
        }
        if missing := [name for name in names if name not in there]:
            raise DataError(
                f"{len(missing)} of {len(names)} images have no label map in {folder}: {', '.join(missing[:5])}"
            )
        self.shape = tuple(self._read(0).shape)
        if len(self.shape) != 4 or self.shape[0] != 2 or 0 in self.shape:
            raise DataError(
                f"{self.folder / names[0]} has shape {self.shape}; a label map is (2, classes, rows, columns)"
            )

    def _check_classes(self) -> None:
        """Maps of our own name the classes that their numbers mean; published ones do not."""
        path = self.folder / ABOUT_LABELS
        try:
            named = json.loads(path.read_text(encoding="utf-8")).get("classes") if path.exists() else None
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
        own = self.source.classes
        if isinstance(named, list) and own and named != own:
            odd = [f"{a} there, {b} in the data" for a, b in zip(named, own, strict=False) if a != b]
            listed = f"{'; '.join(odd[:3])}; " if odd else ""
            raise DataError(
                f"TOKENS.LABELS {self.folder} has maps of other classes: {listed}{len(named)} there ({named!s:.200}), "
                f"{len(own)} in the data ({own!s:.200})"
            )

    def load(self, index: int) -> Tensor:
        """The map of an image: (2, K, h, w), float32.

        Raises:
            DataError: it cannot be read, has another shape, or names a class that there is not.
        """
        path, content = self.folder / label_path(self.source, index), self._read(index)
        if tuple(content.shape) != self.shape:
            raise DataError(f"{path} has shape {tuple(content.shape)}, the first label map has {self.shape}")
        scores, classes = content.float()
        if not torch.isfinite(scores).all():
            raise DataError(f"{path} has scores that are not finite")
        low, high = classes.min().item(), classes.max().item()
        if low < 0 or high >= self.num_classes or (classes != classes.round()).any():
            raise DataError(f"{path} names classes {low:g} … {high:g}; the classes are 0 … {self.num_classes - 1}")
        return content.float()

    def _read(self, index: int) -> Tensor:
        path = self.folder / label_path(self.source, index)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise DataError(
                f"label map {path} is damaged, or holds more than a tensor; nothing of it was run"
            ) from error
        except (OSError, RuntimeError, EOFError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), "it is empty")
            raise DataError(f"label map {path} cannot be read: {reason}") from error
        if not isinstance(content, Tensor):
            raise DataError(f"label map {path} holds a {type(content).__name__}, not a tensor")
        return content


def label_path(source: Source, index: int) -> str:
    """The file of an image's label map within the folder: the image's own path and name, or its number."""
    return source.relative_name(index) + SUFFIX


def write_label_map(path: Path, scores: Tensor, classes: Tensor) -> None:
    """Writes scores and class indices, (K, h, w) each, as LabelMaps reads them.

    In half precision, as the published ones, where it holds every class index exactly.
    """
    content = torch.stack([scores, classes.to(scores.dtype)])
    torch.save(content.half() if classes.max() <= 2048 else content.float(), path)


def token_targets(
    labels: TokenLabels | None, classes: Tensor, num_classes: int, grid: tuple[int, int], smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Class probabilities of a batch: ground truth (B, C), class token (B, C), patch tokens (B, N, C).

    The region of the label map that the image shows is cut out by RoIAlign, to one cell for the class token and to
    ``grid`` (rows, columns) for the patch tokens, flipped as the image was, then goes through a softmax. Without label
    maps every token gets the image's own class. All are smoothed: (1 − s) · p + s / C.

    Args:
        labels: of the batch, or None.
        classes: (B,), the images' own.
    """
    truth = F.one_hot(classes, num_classes).float()
    if labels is None:
        of_class, of_tokens = truth, truth[:, None].expand(-1, grid[0] * grid[1], -1)
    else:
        scores, named = labels.maps.unbind(1)
        batch, _, height, width = scores.shape
        dense = scores.new_zeros(batch, num_classes, height, width).scatter_(1, named.long(), scores)
        boxes = list((labels.boxes * labels.boxes.new_tensor([width, height, width, height]))[:, None])
        of_class = roi_align(dense, boxes, 1, aligned=True).flatten(1).softmax(1)
        of_tokens = roi_align(dense, boxes, grid, aligned=True)
        for axis, flipped in zip((3, 2), labels.flips.unbind(1), strict=True):
            of_tokens = torch.where(flipped[:, None, None, None], of_tokens.flip(axis), of_tokens)
        of_tokens = of_tokens.flatten(2).transpose(1, 2).softmax(2)
    return tuple(target * (1 - smoothing) + smoothing / num_classes for target in (truth, of_class, of_tokens))
