"""Images for classification: sources, transforms, loaders, and the embedded digits. Code only; data lies elsewhere."""

from .digits import write_digits
from .loaders import Batch, EvalLoader, TrainLoader, eval_loader, train_loader
from .mix import build_mix
from .sources import DataError, Source, open_splits

__all__ = [
    "Batch",
    "DataError",
    "EvalLoader",
    "Source",
    "TrainLoader",
    "build_mix",
    "eval_loader",
    "open_splits",
    "train_loader",
    "write_digits",
]
