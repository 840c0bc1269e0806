"""ELSA models. Importing this package registers their names in timm."""

from .elsa import ELSA, ELSABlock
from .pretrained import CheckpointError, LoadReport, load_pretrained, read_checkpoint
from .registry import VARIANTS
from .swin import ELSASwin, ELSASwinMaps

__all__ = [
    "ELSA",
    "VARIANTS",
    "CheckpointError",
    "ELSABlock",
    "ELSASwin",
    "ELSASwinMaps",
    "LoadReport",
    "load_pretrained",
    "read_checkpoint",
]
