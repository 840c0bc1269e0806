"""Images for classification: sources, transforms, loaders; the embedded digits and the scenes made of them.

Code only; data lies elsewhere.
"""

from .digits import write_digits
from .loaders import Batch, EvalLoader, TrainLoader, eval_loader, eval_transform, train_loader
from .mix import build_mix
from .scene_sets import DIGITS_ADE_CLASSES, write_digits_ade, write_digits_coco
from .scenes import SCENE_CLASSES
from .sources import UNREADABLE, DataError, Source, open_splits

__all__ = [
    "DIGITS_ADE_CLASSES",
    "SCENE_CLASSES",
    "UNREADABLE",
    "Batch",
    "DataError",
    "EvalLoader",
    "Source",
    "TrainLoader",
    "build_mix",
    "eval_loader",
    "eval_transform",
    "open_splits",
    "train_loader",
    "write_digits",
    "write_digits_ade",
    "write_digits_coco",
]
