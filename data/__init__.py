"""Images for classification: sources, transforms, loaders, and the embedded digits. Code only; data lies elsewhere."""

from .digits import write_digits
from .loaders import Batch, EvalLoader, TrainLoader, eval_loader, eval_transform, train_loader
from .mix import build_mix
from .sources import UNREADABLE, DataError, Source, open_splits

__all__ = [
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
]
