"""ELSA models. Importing this package registers their names in timm."""

from elsa.core import CheckpointError

from .elsa import ELSA, ELSABlock
from .pretrained import LoadReport, load_pretrained, read_checkpoint
from .registry import VARIANTS
from .swin import ELSASwin, ELSASwinMaps
from .volo import ELSAVOLO, ELSAVOLOMaps

__all__ = [
    "ELSA",
    "ELSAVOLO",
    "VARIANTS",
    "CheckpointError",
    "ELSABlock",
    "ELSASwin",
    "ELSASwinMaps",
    "ELSAVOLOMaps",
    "LoadReport",
    "load_pretrained",
    "read_checkpoint",
]
