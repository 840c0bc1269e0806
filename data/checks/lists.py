"""Images that lists name, of DATA.DATASET list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from elsa.core import DataError

from ..images.folders import check_root
from ..images.lists import find_list, number_lists, read_list
from ..survey import Progress, silent
from .report import SPLITS, Report, look_at_images


def check_lists(
    root: str | Path,
    classes: int | None = None,
    splits: tuple[str, ...] = SPLITS,
    fast: bool = False,
    workers: int = 0,
    progress: Progress = silent,
    names: Mapping[str, str] | None = None,
    wanted: str = "",
    keys: tuple[str, str] = ("", ""),
) -> Report:
    """Checks the images that ``root/train.csv`` and ``root/val.csv`` name, or other lists.

    Args:
        classes: how many there are; None: any.
        fast: sizes only, without decoding.
        names: split → its list, where that is another.
        wanted: DATA.CLASSES. keys: DATA.IMAGE_KEY and DATA.LABEL_KEY.

    Raises:
        DataError: no such folder.
    """
    root = Path(root)
    check_root(root, "ROOT")
    report = Report("list", str(root))
    rows = {}
    for split in splits:
        name = (names or {}).get(split, split)
        path = find_list(root, name)
        try:
            if path is None:
                raise DataError(f"{root} has no list {name}")
            rows[split] = path, read_list(path, *keys)
        except DataError as error:
            report.add("list unreadable", path or root / name, str(error))
    if not rows:
        return report
    try:
        files, known = number_lists(dict(rows.values()), root, wanted)
    except DataError as error:
        report.add("classes", root, str(error))
        return report
    for split, (path, listed) in rows.items():
        images, per_class = files[path], Counter(listed.words)
        report.counts |= {f"{split} classes": len(per_class), f"{split} images": len(images)}
        for name, count in Counter(listed.images).items():
            if count > 1:
                report.add("image listed more than once", name, f"{count} times in {path}")
        if split == "train" and classes is not None:
            report.expect("number of classes", path, len(known.folders or per_class), classes)
        every = [images.filename(index) for index in range(len(images))]
        there = [name for name in every if Path(name).is_file()]
        for name in sorted(set(every) - set(there)):
            report.add("image missing", name, f"named in {path}")
        list(look_at_images(report, split, there, not fast, workers, progress))
    shared = set.intersection(*(set(listed.images) for _, listed in rows.values())) if len(rows) > 1 else set()
    for name in sorted(shared) if len({path for path, _ in rows.values()}) > 1 else ():
        report.add("image in both lists", name, "what is validated on must not be trained on")
    return report
