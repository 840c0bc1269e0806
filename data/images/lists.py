"""Images that a list names: a table with a line of column names (CSV, TSV), or a text of ``PATH LABEL`` lines."""

from __future__ import annotations

import csv
import difflib
import os
from array import array
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from elsa.core import ConfigError, DataError, did_you_mean, logger

from ..flat import Integers
from ..listing import endings
from .classes import Classes, order_classes
from .folders import ListedFiles, check_root, split_names

TABLES, ENDINGS = (".csv", ".tsv"), (".csv", ".tsv", ".txt")
SEPARATORS = (",", "\t", ";")
# Usual names of the columns, the more telling first.
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "filepath", "img", "image_name")
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name", "label_name", "class_id", "y")
LOOK_AT = 1000  # files, when a list is opened


class Rows(NamedTuple):
    """The lines of a list: of each its image as it is written, the word for its class, and the line's number."""

    images: list[str]
    words: list[str]
    lines: Integers


def read_list(path: Path, image_key: str = "", label_key: str = "") -> Rows:
    """What a list names.

    Args:
        image_key, label_key: names of a table's columns; "": the usual ones, or the only ones there may be.

    Raises:
        DataError: no such file, no images, or a line without image or label; the message has its number.
        ConfigError: names of columns for a text, which has none.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise DataError(f"list {path} cannot be read: {reason}") from error
    if path.suffix.lower() in TABLES:
        rows = _of_table(path, text, image_key, label_key)
    else:
        for key, given in (("IMAGE_KEY", image_key), ("LABEL_KEY", label_key)):
            if given:
                raise ConfigError(f"DATA.{key} {given} has no effect: {path} has no columns with names; write ''")
        rows = _of_text(path, text)
    if not rows.images:
        raise DataError(f"list {path} names no images")
    return rows


def _of_text(path: Path, text: str) -> Rows:
    images, words, numbers = [], [], array("q")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        image, _, word = line.rpartition("\t" if "\t" in line else " ")
        if not (image := image.strip()) or not (word := word.strip()):
            raise DataError(f'{path}, line {number}: {line!r:.80} is neither "PATH LABEL" nor "PATH<tab>CLASS"')
        images.append(image)
        words.append(word)
        numbers.append(number)
    return Rows(images, words, Integers(numbers))


def _of_table(path: Path, text: str, image_key: str, label_key: str) -> Rows:
    first = text.partition("\n")[0]
    reader = csv.reader(text.splitlines(keepends=True), delimiter=max(SEPARATORS, key=first.count))
    images, words, numbers = [], [], array("q")
    try:
        columns = [name.strip() for name in next(reader, [])]
        image, label = _columns(path, columns, image_key, label_key)
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            cells = [row[place].strip() if place < len(row) else "" for place in (image, label)]
            if not all(cells):
                what = f"no {columns[image] if not cells[0] else columns[label]!r}"
                raise DataError(f"{path}, line {reader.line_num}: {what} in {','.join(row)!r:.80}")
            images.append(cells[0])
            words.append(cells[1])
            numbers.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}") from error
    return Rows(images, words, Integers(numbers))


def _columns(path: Path, columns: list[str], image_key: str, label_key: str) -> tuple[int, int]:
    """The places of image and label."""
    read = endings()
    if any(os.path.splitext(name)[1].lower() in read for name in columns):
        raise DataError(
            f"{path}: its first line must name the columns, like image,label; it is {','.join(columns)!r:.80}"
        )
    image = _column(path, columns, "IMAGE_KEY", image_key, IMAGE_COLUMNS)
    others = [name for place, name in enumerate(columns) if place != image]
    label = others[0] if len(others) == 1 and not label_key else label_key
    return image, _column(path, columns, "LABEL_KEY", label, LABEL_COLUMNS)


def _column(path: Path, columns: list[str], key: str, wanted: str, usual: tuple[str, ...]) -> int:
    listed = ", ".join(columns) or "none"
    if wanted:
        if wanted not in columns:
            near = did_you_mean(wanted, columns)
            raise DataError(f"DATA.{key} {wanted} is no column of {path}{near}; it has {listed}")
        return columns.index(wanted)
    low = [name.lower() for name in columns]
    if found := next((name for name in usual if name in low), None):
        return low.index(found)
    raise DataError(f"which column of {path} holds the {usual[0]}? Set DATA.{key}; it has {listed}")


# ---- splits


def find_list(root: Path, split: str) -> Path | None:
    """The list of a split: a path, from ``root``, or the split's name, under any of its usual ones, with an ending."""
    for name in split_names(split):
        for ending in ("", *ENDINGS):
            with suppress(OSError, ValueError):  # names that no file can have
                if (path := root / f"{name}{ending}").is_file():
                    return path
    return None


def open_lists(
    root: Path,
    splits: Mapping[str, str],
    names: Iterable[str],
    wanted: str,
    count: int | None,
    image_key: str = "",
    label_key: str = "",
) -> list[tuple[ListedFiles, Classes]]:
    """Splits "train" and "val", of which lists name the images, with the classes of the training split.

    Args:
        root: the folder that the paths begin at.
        splits: "train" and "val" → their lists.
        names: of the splits to open.
        wanted: DATA.CLASSES; count: MODEL.NUM_CLASSES, None: any.
        image_key, label_key: see ``read_list``.

    Raises:
        DataError: what is needed is not there, or not as expected.
    """
    check_root(root, "DATA.ROOT")
    paths = {name: _path(root, splits[name]) for name in names}
    reference = find_list(root, splits["train"]) or next(iter(paths.values()))
    rows = {path: read_list(path, image_key, label_key) for path in dict.fromkeys((reference, *paths.values()))}
    files, classes = number_lists(rows, root, wanted)
    if count is not None:
        _check_labels(rows, files, classes, count)
    for path in dict.fromkeys(paths.values()):
        _check_present(files[path], classes, path, path == reference, count)
        _check_there(path, files[path])
    return [(files[path], classes) for path in paths.values()]


def _path(root: Path, split: str) -> Path:
    if path := find_list(root, split):
        return path
    kinds = "".join(f", {split}{ending}" for ending in ENDINGS if not Path(split).suffix)
    there = sorted(path.name for ending in ENDINGS for path in root.glob(f"*{ending}"))[:8]
    raise DataError(f"DATA.ROOT {root} has no list {split}{kinds}; it has {', '.join(there) or 'none'}")


def number_lists(lists: Mapping[Path, Rows], root: Path | None, wanted: str) -> tuple[dict[Path, ListedFiles], Classes]:
    """The images of lists, the training split's first, with their labels. Words that are numbers all are the labels
    themselves, unless DATA.CLASSES says that they are names; then classes have no other names.

    Args:
        root: what paths begin at; None: the list's own folder.

    Raises:
        DataError: a class that the first list has not.
    """
    first, *others = lists
    own = set(lists[first].words)
    classes = Classes([], [], False, str(first))
    if not wanted and all(word.isdecimal() for rows in lists.values() for word in set(rows.words)):
        indices = {word: int(word) for rows in lists.values() for word in set(rows.words)}
    else:
        classes = order_classes(own, wanted, first)
        indices = {word: index for index, word in enumerate(classes.folders)}
        for path in others:
            if unknown := sorted(set(lists[path].words) - indices.keys()):
                raise DataError(f"{path} has classes that {classes.origin} has not: {', '.join(unknown[:5])}")
    files = {}
    for path, rows in lists.items():
        pairs = ((image, indices[word]) for image, word in zip(rows.images, rows.words, strict=True))
        files[path] = ListedFiles(path.parent if root is None else root, pairs)
    return files, classes


def _check_labels(lists: Mapping[Path, Rows], files: Mapping[Path, ListedFiles], classes: Classes, count: int) -> None:
    if classes.folders and len(classes.folders) != count:
        listed = ", ".join(classes.folders[:8]) + (" …" if len(classes.folders) > 8 else "")
        raise DataError(
            f"{classes.origin} has {len(classes.folders)} classes ({listed}), but MODEL.NUM_CLASSES is {count}"
        )
    for path, images in files.items():
        highest = int(images.labels.array.argmax())
        if (label := images.labels[highest]) >= count:
            raise DataError(
                f"{path}, line {lists[path].lines[highest]}: label {label}; with MODEL.NUM_CLASSES {count} labels are "
                f"0 … {count - 1}; DATA.CLASSES=natural takes the numbers for names of classes"
            )


def _check_present(images: ListedFiles, classes: Classes, path: Path, is_reference: bool, count: int | None) -> None:
    """The training list needs some image of each class; of another one it is told which have none."""
    number = len(classes.folders) or count or 0
    if empty := np.setdiff1d(np.arange(number), images.labels.array).tolist():
        named = ", ".join(classes.folders[index] if classes.folders else str(index) for index in empty[:5])
        listing = f"{len(empty)} of {number} classes have no image in {path}: {named}"
        if is_reference:
            raise DataError(listing)
        logger.warning("%s", listing)


def _check_there(path: Path, images: ListedFiles) -> None:
    """Looks for files, spread over the list."""
    looked = range(0, len(images), max(1, len(images) // LOOK_AT))
    absent = [images.filename(index) for index in looked if not os.path.isfile(images.filename(index))]
    if absent:
        near = difflib.get_close_matches(Path(absent[0]).name, _beside(absent[0]), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{path}: {len(absent)} of {len(looked)} images looked at are not there: {', '.join(absent[:3])}{hint}"
        )


def _beside(file: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(os.path.dirname(file))
    return []
