"""Networks for other runtimes: written, read again, and compared with PyTorch before they get their names."""

from .options import FORMATS, HUB
from .subject import Subject
from .writing import export_network

__all__ = ["FORMATS", "HUB", "Subject", "export_network"]
