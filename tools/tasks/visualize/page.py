"""The page in which a click chooses the position whose attention is shown: one file, which needs no network."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from elsa.core import to_json, write_then_rename

from ..pictures import plain
from .attention import Layer

MOST_BYTES = 12_000_000  # of all attention that a page holds
LOSSLESS = 200_000  # bytes of a picture that stays as it is
TEMPLATE = Path(__file__).with_name("page.html")


def thinning(layer: Layer, grid: tuple[int, int], most: int) -> int:
    """Every how many rows and columns of a map are kept, so that its attention takes no more than ``most`` bytes."""
    taps = layer.module.num_heads * (layer.module.kernel_size**2 + 2)
    rows, columns = grid
    return next(step for step in itertools.count(1) if -(-rows // step) * -(-columns // step) * taps <= most or
                step >= max(grid))  # fmt: skip


def quantised(attention: Tensor, step: int) -> dict[str, Any]:
    """Attention (H, W, G, K²) for a page: of every ``step``-th row and column the taps as parts of 255 of the largest,
    and that one as parts of 65,535."""
    kept = attention[::step, ::step].cpu()
    peaks = kept.amax(-1, keepdim=True)
    levels = (kept / peaks * 255).round().to(torch.uint8).numpy()
    of_peaks = (peaks * 65535).round().numpy().astype("<u2")
    return {"rows": kept.shape[0], "columns": kept.shape[1], "step": step,
            "shares": _text(levels), "peaks": _text(of_peaks)}  # fmt: skip


def about(layer: Layer) -> dict[str, Any]:
    """What a page has of a layer, its ghost head's filters among it."""
    module = layer.module
    mul, add = (None if one is None else _filters(one.detach()) for one in module.ghost_maps())
    return {"stage": layer.stage, "block": layer.block, "name": layer.name, "stride": layer.stride,
            "heads": module.num_heads, "kernel": module.kernel_size, "dilation": module.dilation,
            "perHead": module.dim_v // module.num_heads, "mul": mul, "add": add}  # fmt: skip


def _filters(values: Tensor) -> dict[str, str]:
    """(C, K²) as parts −32,767 … 32,767 of each channel's largest."""
    scales = values.float().cpu().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 32767
    levels = (values.float().cpu() / scales).round().numpy().astype("<i2")
    return {"levels": _text(levels), "scales": _text(scales.numpy().astype("<f4"))}


def of_picture(pixels: np.ndarray, name: str, maps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    return {"name": plain(name), "width": width, "height": height, "image": _data_uri(pixels), "maps": list(maps)}


def _data_uri(pixels: np.ndarray) -> str:
    """The picture itself, or where that is large as a JPEG."""
    for form, options in (("png", {}), ("jpeg", {"quality": 92})):
        with io.BytesIO() as file:
            Image.fromarray(pixels).save(file, form, **options)
            content = file.getvalue()
        if len(content) <= LOSSLESS:
            break
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def _text(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def write_page(path: Path, content: dict[str, Any]) -> None:
    """The page of: network, checkpoint, layers, pictures, and what is shown first."""
    safe = to_json(content).replace("<", "\\u003c")  # no name can end the script element
    text = TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", safe, 1)
    write_then_rename(path, lambda beside: beside.write_text(text, encoding="utf-8"))
