"""Images for classification: sources, transforms, loaders; the embedded digits and the scenes made of them.

Code only; data lies elsewhere.
"""

from elsa.core import DataError

from .decode import UNREADABLE, decode, decode_labels
from .embedded.digits import write_digits
from .embedded.scene_sets import DIGITS_ADE_CLASSES, write_digits_ade, write_digits_coco
from .embedded.scenes import SCENE_CLASSES
from .images.loaders import Batch, EvalLoader, eval_loader, train_loader
from .images.mix import build_mix, build_mix_token
from .images.sources import Source, open_splits
from .images.token_labels import LabelMaps, TokenLabels, label_path, token_targets, write_label_map
from .images.transforms import View, eval_transform, train_transform, whole_image_transform
from .order import BadImages, TrainLoader, divide_batch

__all__ = [
    "DIGITS_ADE_CLASSES",
    "SCENE_CLASSES",
    "UNREADABLE",
    "BadImages",
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
    "decode",
    "decode_labels",
    "divide_batch",
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
