"""Graphs for other runtimes: made of PyTorch's plain operators alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_asked = 0


@contextmanager
def portable() -> Iterator[None]:
    """In here ``torch.export`` gives graphs that run where the compiled operators are not installed: "auto" is the
    reference, and attention is its formula. ``torch.onnx.export`` needs no asking."""
    global _asked
    _asked += 1
    try:
        yield
    finally:
        _asked -= 1


def is_portable() -> bool:
    """Whether a graph is exported that must hold plain operators alone."""
    return torch.compiler.is_exporting() and (_asked > 0 or torch.onnx.is_in_onnx_export())
