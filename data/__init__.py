"""Images for classification: sources, transforms, loaders; the embedded digits and the scenes made of them.

Code only; data lies elsewhere.
"""

from elsa.core import DataError

from .decode import UnreadableImage, decode, decode_labels, read_header
from .embedded.digits import write_digits
from .embedded.emoji import write_emoji
from .embedded.scene_sets import DIGITS_ADE_CLASSES, write_digits_ade, write_digits_coco
from .embedded.scenes import SCENE_CLASSES
from .images.balance import class_weights
from .images.classes import natural
from .images.loaders import Batch, EvalLoader, eval_loader, train_loader
from .images.mix import build_mix, build_mix_token
from .images.sources import Source, open_splits
from .images.token_labels import ABOUT_LABELS, LabelMaps, TokenLabels, label_path, token_targets, write_label_map
from .images.transforms import CROPS, View, eval_transform, image_size, train_transform, whole_image_transform
from .listing import image_files, left_out
from .order import BadImages, TrainLoader, divide_batch

__all__ = [
    "ABOUT_LABELS",
    "CROPS",
    "DIGITS_ADE_CLASSES",
    "SCENE_CLASSES",
    "BadImages",
    "Batch",
    "DataError",
    "EvalLoader",
    "LabelMaps",
    "Source",
    "TokenLabels",
    "TrainLoader",
    "UnreadableImage",
    "View",
    "build_mix",
    "build_mix_token",
    "class_weights",
    "decode",
    "decode_labels",
    "divide_batch",
    "eval_loader",
    "eval_transform",
    "image_files",
    "image_size",
    "label_path",
    "left_out",
    "natural",
    "open_splits",
    "read_header",
    "token_targets",
    "train_loader",
    "train_transform",
    "whole_image_transform",
    "write_digits",
    "write_digits_ade",
    "write_digits_coco",
    "write_emoji",
    "write_label_map",
]
