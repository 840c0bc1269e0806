"""Which label a class folder has, and what checkpoints call it: DATA.CLASSES."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from elsa.core import DataError, did_you_mean

TEXT, NATURAL = "text", "natural"


@dataclass(frozen=True)
class Classes:
    """Classes in the order of their labels.

    Attributes:
        folders: their folders' names; names: what checkpoints call them, the same unless a file says otherwise.
        open: whether nobody said in which of two usual orders they are, see ``orders_differ``.
        origin: where the order comes from, for messages.
    """

    folders: list[str]
    names: list[str]
    open: bool
    origin: str


def order_classes(found: Iterable[str], wanted: str, place: Path) -> Classes:
    """The classes that the folders in ``place`` are.

    Args:
        found: the folders' names.
        wanted: "" or "text": sorted as text, as torchvision does; "natural": numbers by their value, as timm does; or
            a text file with a folder's name a line, in the order of the labels, and where a tab follows, what
            checkpoints call the class.

    Raises:
        DataError: such a file cannot be read, names a folder twice, or lacks one.
    """
    if wanted not in ("", TEXT, NATURAL):
        classes = _read(Path(wanted))
        if unknown := sorted(set(found) - set(classes.folders)):
            near = did_you_mean(unknown[0], classes.folders)
            raise DataError(f"{place} has classes that DATA.CLASSES {wanted} does not name: {_some(unknown)}{near}")
        return classes
    folders = natural(found) if wanted == NATURAL else sorted(found)
    return Classes(folders, folders, not wanted and orders_differ(folders), str(place))


def natural(names: Iterable[str]) -> list[str]:
    """Sorted as timm's readers do it: numbers by their value, without regard to capitals."""

    def key(name: str) -> list[str | int]:
        parts = re.split(r"([0-9]+)", name.lower())
        return [int(part) if index % 2 else part for index, part in enumerate(parts)]

    return sorted(sorted(names), key=key)


def orders_differ(names: Iterable[str]) -> bool:
    """Whether classes have other labels sorted as text (0, 1, 10, 2) than by their numbers (0, 1, 2, 10)."""
    names = list(names)
    return sorted(names) != natural(names)


def _read(path: Path) -> Classes:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or "no text in UTF-8"
        hint = did_you_mean(str(path), (TEXT, NATURAL))
        raise DataError(
            f"DATA.CLASSES must be text, natural or a file of folder names; {path} cannot be read: {what}{hint}"
        ) from error
    rows = [line.rstrip("\r").partition("\t") for line in lines if line.strip()]
    folders = [folder for folder, _, _ in rows]
    names = [name or folder for folder, _, name in rows]
    for what, listed in (("folder", folders), ("name", names)):
        if twice := [name for name, count in Counter(listed).items() if count > 1]:
            raise DataError(f"DATA.CLASSES {path} has the {what} {twice[0]!r} twice")
    return Classes(folders, names, False, str(path))


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
