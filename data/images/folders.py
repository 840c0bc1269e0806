"""Images in class folders, and in tar files that hold such folders."""

from __future__ import annotations

import difflib
import io
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np

from elsa.core import DataError, logger

from ..flat import Integers, Texts
from ..listing import endings, files_in, folders_in, is_hidden, names_below
from .classes import Classes, order_classes

SPLIT_NAMES = (("train", "training"), ("val", "validation", "valid", "eval", "evaluation"), ("test", "testing"))


class ListedFiles:
    """Image files with their labels; items are (path of the image, class index).

    Attributes:
        root: the folder that names are relative to; labels: theirs.
    """

    def __init__(self, root: Path, pairs: Iterable[tuple[str, int]]) -> None:
        labels = array("i")

        def names() -> Iterator[str]:
            for name, label in pairs:
                labels.append(label)
                yield name

        self.root, self.names = root, Texts(names())
        self.labels = Integers(labels)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.filename(index), self.labels[index]

    def filename(self, index: int, absolute: bool = True) -> str:
        return os.path.join(self.root, self.names[index]) if absolute else self.names[index]


class FolderImages(ListedFiles):
    """``path/CLASS/**/IMAGE`` in the order of ``classes``.

    Attributes:
        left_out: how many files are no images by their names, by ending; outside: files in no class folder.
    """

    def __init__(self, path: Path, classes: list[str]) -> None:
        self.left_out: Counter[str] = Counter()
        self.outside = len(files_in(path))
        super().__init__(path, self._files(path, classes))

    def _files(self, path: Path, classes: list[str]) -> Iterator[tuple[str, int]]:
        own, read = set(folders_in(path)), endings()
        for index, label in enumerate(classes):
            for name in names_below(path / label) if label in own else ():
                ending = os.path.splitext(name)[1].lower()
                if ending in read:
                    yield f"{label}/{name}", index
                else:
                    self.left_out[ending or "without ending"] += 1

    def notes(self) -> list[str]:
        """What lies there and is not used, in words."""
        found = []
        if self.left_out:
            listed = ", ".join(f"{count} {ending}" for ending, count in sorted(self.left_out.items()))
            found.append(
                f"{self.root}: {self.left_out.total()} files in class folders are no images by their names ({listed})"
            )
        if self.outside:
            found.append(f"{self.root}: {self.outside} files lie beside the class folders, in none of them")
        return found


class TarImages:
    """Images of a tar file, and of tar files in it, as ``CLASS/**/IMAGE``; items are (bytes, class index).

    The names of inner tar files are folders; a folder that all lies in (``train/CLASS/IMAGE``) does not count.

    Attributes:
        classes: names of the folders, sorted as text.
        names, offsets, sizes: of each image, where its bytes are; labels: theirs, once ``number`` was called.

    Raises:
        DataError: it is no tar file, or holds no images in folders.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        names, offsets, sizes = list[str](), array("q"), array("q")
        try:
            with tarfile.open(path, "r:") as archive:
                for name, offset, size in _members(archive, PurePosixPath(), 0, endings()):
                    names.append(name)
                    offsets.append(offset)
                    sizes.append(size)
        except (OSError, tarfile.TarError, ValueError) as error:
            raise DataError(f"{path} is no tar file that can be read: {error}") from error
        names = _without_common_folder(names)
        kept = [index for index, name in enumerate(names) if "/" in name]
        if not kept:
            raise DataError(f"{path} has no images in class folders; expected CLASS/IMAGE in it")
        self.names = Texts(name for name in names if "/" in name)
        self.offsets, self.sizes = (Integers(Integers(column).array[kept]) for column in (offsets, sizes))
        self.classes = sorted({_first_folder(name) for name in self.names})
        self.labels = Integers(array("i"))

    def number(self, classes: list[str]) -> None:
        """Gives the images the labels of these classes, and sorts them by label and name."""
        indices, names = {label: index for index, label in enumerate(classes)}, list(self.names)
        labels = [indices[_first_folder(name)] for name in names]
        order = sorted(range(len(names)), key=lambda index: (labels[index], names[index]))
        self.names = Texts(names[index] for index in order)
        self.labels = Integers(array("i", (labels[index] for index in order)))
        self.offsets, self.sizes = (Integers(column.array[order]) for column in (self.offsets, self.sizes))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            return io.BytesIO(file.read(self.sizes[index])), self.labels[index]

    def filename(self, index: int, absolute: bool = True) -> str:
        name = self.names[index]
        return f"{self.path}/{name}" if absolute else name


def _members(
    archive: tarfile.TarFile, folder: PurePosixPath, start: int, read: frozenset[str]
) -> Iterator[tuple[str, int, int]]:
    """(path, offset, size) of the images in an archive that begins ``start`` bytes into the file and counts as
    ``folder``."""
    while (entry := archive.next()) is not None:
        archive.members = []  # or a list of millions grows
        place = folder / entry.name
        if not entry.isreg() or any(is_hidden(part) for part in place.parts):
            continue
        if place.suffix.lower() == ".tar":
            with tarfile.open(fileobj=archive.extractfile(entry), mode="r:") as inner:
                yield from _members(inner, place.with_suffix(""), start + entry.offset_data, read)
        elif place.suffix.lower() in read:
            yield str(place), start + entry.offset_data, entry.size


def _first_folder(name: str) -> str:
    return name.partition("/")[0]


def _without_common_folder(names: list[str]) -> list[str]:
    """Without the folders that hold all the class folders."""
    while names and all(name.count("/") > 1 for name in names):
        if len({_first_folder(name) for name in names}) > 1:
            break
        names = [name.partition("/")[2] for name in names]
    return names


def open_folders(
    root: Path, train: str, validation: str, names: tuple[str, ...], wanted: str, count: int | None
) -> list[tuple[FolderImages | TarImages, Classes]]:
    """Splits "train" and "val" of a folder of class folders or of tar files, with the classes of the training split.

    Args:
        train, validation: the splits' names; names: the ones to open.
        wanted: DATA.CLASSES, see ``order_classes``. count: MODEL.NUM_CLASSES; None: any.

    Raises:
        DataError: what is needed is not there, or not as expected.
    """
    check_root(root, "DATA.ROOT")
    paths = [_split_path(root, train if name == "train" else validation) for name in names]
    reference = find_split(root, train) or paths[0]
    for path in paths:
        if path.is_dir() != reference.is_dir():
            raise DataError(f"{reference} and {path}: use folders for both splits, or tar files for both")
    tars = {} if reference.is_dir() else {path: TarImages(path) for path in {*paths, reference}}
    labels = {path: tars[path].classes if tars else folders_in(path) for path in {*paths, reference}}
    if not labels[reference]:
        raise DataError(f"{reference} has no class folders; expected {reference}/CLASS/IMAGE")
    classes = order_classes(labels[reference], wanted, reference)
    if count is not None and len(classes.folders) != count:
        listed = ", ".join(classes.folders[:8]) + (" …" if len(classes.folders) > 8 else "")
        raise DataError(
            f"{classes.origin} has {len(classes.folders)} classes ({listed}), but MODEL.NUM_CLASSES is {count}"
        )
    for path in paths:
        if unknown := sorted(set(labels[path]) - set(classes.folders)):
            raise DataError(f"{path} has classes that {classes.origin} has not: {', '.join(unknown[:5])}")
    opened: list[tuple[FolderImages | TarImages, Classes]] = []
    for path in paths:
        items = tars[path] if tars else FolderImages(path, classes.folders)
        if isinstance(items, TarImages):
            items.number(classes.folders)
        _check_present(items, classes, path, path == reference)
        opened.append((items, classes))
    return opened


def _check_present(items: FolderImages | TarImages, classes: Classes, path: Path, is_reference: bool) -> None:
    """Tells which classes have no images and which files are not used; the training split needs some of each class."""
    for note in items.notes() if isinstance(items, FolderImages) else ():
        logger.info("%s", note)
    if not len(items):
        raise DataError(f"{path} has no images")
    present = set(np.unique(items.labels.array).tolist())
    if empty := [name for index, name in enumerate(classes.folders) if index not in present]:
        listing = f"{len(empty)} of {len(classes.folders)} classes have no image in {path}: {', '.join(empty[:5])}"
        if is_reference:
            raise DataError(listing)
        logger.warning("%s", listing)


def check_root(root: Path, option: str) -> None:
    """Raises DataError, with the nearest name, where the folder that ``option`` names is not there."""
    try:
        if root.is_dir():
            return
        near = [] if root.exists() else difflib.get_close_matches(root.name, [p.name for p in root.parent.glob("*")], 1)
        hint = f"; did you mean {root.parent / near[0]}?" if near else ""
        raise DataError(f"{option} {root} {'is not a folder' if root.exists() else f'does not exist{hint}'}")
    except OSError as error:
        raise DataError(f"{option} {root} cannot be entered: {error.strerror}") from error


def find_split(root: Path, split: str) -> Path | None:
    """The folder or tar file of a split, under any of its usual names; None where there is none."""
    for name in split_names(split):
        for path, is_there in ((root / name, Path.is_dir), (root / f"{name}.tar", Path.is_file)):
            with suppress(OSError, ValueError):  # names that no file can have
                if is_there(path):
                    return path
    return None


def _split_path(root: Path, split: str) -> Path:
    if path := find_split(root, split):
        return path
    try:
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    except OSError as error:
        raise DataError(f"DATA.ROOT {root} cannot be entered: {error.strerror}") from error
    choices = " or ".join(split_names(split))
    raise DataError(f"DATA.ROOT {root} has no folder (nor .tar file) {choices}; it holds {there}")


def split_names(split: str) -> list[str]:
    """What a split may be called, its own name first."""
    synonyms = next((group for group in SPLIT_NAMES if split in group), (split,))
    return list(dict.fromkeys((split, *synonyms)))
