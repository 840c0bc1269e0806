"""Images for classification: sources, transforms, loaders; the embedded digits and the scenes made of them.

Code only; data lies elsewhere.
"""

from .digits import write_digits
from .loaders import Batch, EvalLoader, TrainLoader, eval_loader, train_loader
from .mix import build_mix, build_mix_token
from .scene_sets import DIGITS_ADE_CLASSES, write_digits_ade, write_digits_coco
from .scenes import SCENE_CLASSES
from .sources import UNREADABLE, DataError, Source, open_splits
from .token_labels import LabelMaps, TokenLabels, label_path, token_targets, write_label_map
from .transforms import View, eval_transform, train_transform, whole_image_transform

__all__ = [
    "DIGITS_ADE_CLASSES",
    "SCENE_CLASSES",
    "UNREADABLE",
    "Batch",
    "DataError",
    "EvalLoader",
    "LabelMaps",
    "Source",
    "TokenLabels",
    "TrainLoader",
    "View",
    "build_mix",
    "build_mix_token",
    "eval_loader",
    "eval_transform",
    "label_path",
    "open_splits",
    "token_targets",
    "train_loader",
    "train_transform",
    "whole_image_transform",
    "write_digits",
    "write_digits_ade",
    "write_digits_coco",
    "write_label_map",
]
