"""What a checkpoint tells of itself, and whether it belongs to the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elsa.core import ConfigError
from elsa.data import natural


def class_names(content: Mapping[str, Any]) -> list[str]:
    """The classes that a checkpoint names: ours, mmdet 2's and mmseg 0's, mmengine's; empty where it names none."""
    meta = content.get("meta") or {}
    names = content.get("classes") or meta.get("CLASSES") or (meta.get("dataset_meta") or {}).get("classes") or []
    return [str(name) for name in names]


def check_classes(path: Path, content: Mapping[str, Any], classes: Sequence[str], cure: str = "") -> None:
    """Raises ConfigError where the file names other classes than the data has, or in another order.

    Args:
        cure: how the message ends.
    """
    named, known = class_names(content), [str(name) for name in classes]
    if not named or not known or named == known:
        return
    odd = [f"{mine} in the file, {theirs} in the data" for mine, theirs in zip(named, known, strict=False)
           if mine != theirs]  # fmt: skip
    counts = f"{path} has {len(named)} classes, the data {len(known)}"
    lists = f"the file's: {in_short(named)}; the data's: {in_short(known)}"
    raise ConfigError(f"{'; '.join([counts, *odd[:3]])}; {lists}{cure}")


def check_belongs(path: Path, content: Mapping[str, Any], source: Any, cure: str = "") -> None:
    """``check_classes`` for images to be classified; a file that names no classes must leave no doubt of their order.

    Args:
        source: a Source, or a stream, which has no names to compare.
    """
    classes = getattr(source, "classes", [])
    stated = "; DATA.CLASSES can name a file with FOLDER<tab>NAME in the order of the labels"
    check_classes(path, content, classes, stated + cure)
    if getattr(source, "order_is_open", False) and not class_names(content):
        by_text, by_number = in_short(sorted(classes), 5), in_short(natural(classes), 5)
        raise ConfigError(
            f"{path} names no classes, and the data's have two usual orders: as text {by_text}, or by number "
            f"{by_number}. Set DATA.CLASSES=natural for a checkpoint trained by timm, text for torchvision's "
            f"order{cure}"
        )


def in_short(names: Sequence[str], most: int = 15) -> str:
    return ", ".join(names[:most]) + (f", … and {len(names) - most} more" if len(names) > most else "")


def about(content: Mapping[str, Any]) -> dict[str, Any]:
    """The short facts that a checkpoint tells of itself."""
    meta = content if {"format", "arch"} & content.keys() else content.get("meta") or content
    return {name: value for name, value in meta.items() if isinstance(value, (int, float)) or
            (isinstance(value, str) and len(value) < 100)}  # fmt: skip
