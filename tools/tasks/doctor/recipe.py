"""The recipe that is named: whether its data are there, and how long it takes to read an image."""

from __future__ import annotations

import io
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from .finding import NOTE, OK, PROBLEM, Case, Finding
from .machine import DISK, GIB

MOST = 24  # images that are read
SLOW = 0.1  # seconds an image
SAMPLE = (500, 375)  # pixels: a usual image of ImageNet


def data(case: Case) -> Iterator[Finding]:
    """Whether a recipe can be read, and its data are where it says."""
    if case.config is None:
        return
    try:
        task, recipe = case.recipe()
    except Exception as error:
        text = str(error) or type(error).__name__
        yield Finding("recipe", PROBLEM, text, f"elsa train {case.config} --print-config")
        return
    yield Finding("recipe", OK, f"{case.config}, of {task.name}")
    given = f" --set {' '.join(case.overrides)}" if case.overrides else ""
    look = _folders if task.name == "classification" else _dense
    yield from look(recipe.config, case.config, f"elsa check_data {case.config}{given}")


def _folders(config: Any, name: str, check: str) -> Iterator[Finding]:
    """Of a classifier: DATA.ROOT, and its splits as a training opens them."""
    root, kind = Path(config.DATA.ROOT), config.DATA.DATASET
    if not root.exists():
        yield _absent("DATA.ROOT", root, kind == "digits", f"elsa doctor {name} --set DATA.ROOT=FOLDER")
        return
    yield from _little_room(root)
    if kind not in ("digits", "folder", "list"):
        yield Finding("data", OK, f"{root} is there, for {kind}")
        return
    from elsa.core import UserError
    from elsa.data import open_splits

    try:
        train, val = open_splits(config, "train", "val")
        yield Finding("data", OK, f"{root}: {len(train)} training and {len(val)} validation images")
    except (UserError, OSError) as error:
        yield Finding("data", PROBLEM, str(error), check)


def _dense(config: Any, name: str, check: str) -> Iterator[Finding]:
    """Of a detector or segmentor: every folder and file that its data sets name."""
    drawn, cure = bool(config.get("embedded")), f"elsa doctor {name} --set data_root=FOLDER/"
    named = [place for key, dataset in datasets(config) for place in _places(key, dataset)]
    roots = list(dict.fromkeys(path for key, path in named if key == "data_root"))
    places = {path: key for key, path in reversed(named)}  # each under the name that it has first
    if absent := [root for root in roots if not root.exists()]:
        yield from (_absent("data_root", root, drawn, cure) for root in absent)
    elif absent := sorted(path for path in places if not path.exists()):
        yield from (_absent(places[path], path, False, check) for path in absent)
    else:
        yield Finding("data", OK, f"all {len(places)} folders and files that the data sets name are there")
        for root in roots:
            yield from _little_room(root)


def datasets(config: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(key, settings) of the data sets of a configuration of mmengine's, wrappers taken off."""
    for key in ("train_dataloader", "val_dataloader", "test_dataloader"):
        waiting = [(config.get(key) or {}).get("dataset")]
        while waiting:
            found = waiting.pop()
            inner = found.get("dataset") or found.get("datasets") if isinstance(found, Mapping) else None
            if inner is not None:
                waiting += inner if isinstance(inner, (list, tuple)) else [inner]
            elif isinstance(found, Mapping):
                yield f"{key}.dataset", found


def _places(name: str, dataset: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """(key, path) of what a data set reads."""
    root = Path(dataset.get("data_root") or "")
    if dataset.get("data_root"):
        yield "data_root", root
    if dataset.get("ann_file"):
        yield f"{name}.ann_file", root / dataset["ann_file"]
    for key, below in (dataset.get("data_prefix") or {}).items():
        if isinstance(below, str):
            yield f"{name}.data_prefix.{key}", root / below


def _absent(name: str, path: Path, made: bool, cure: str) -> Finding:
    if made:
        return Finding("data", OK, f"{path} is not there yet: the first training makes it")
    return Finding("data", PROBLEM, f"{name} {path} does not exist (seen from {Path.cwd()})", cure)


def _little_room(root: Path) -> Iterator[Finding]:
    """Label maps and shards are written beside the data."""
    if (free := shutil.disk_usage(root).free / GIB) < DISK[0]:
        yield Finding("data", NOTE, f"{free:.3g} GiB free in {root}", f"du -sh {root}/* | sort -h")


def reading(case: Case) -> Iterator[Finding]:
    """Time to read and decode an image: of the recipe's, or without any a usual one from memory."""
    from elsa.data import decode

    sample = _sample()
    decode(io.BytesIO(sample))  # loads what reads a JPEG
    found, seconds = _images(case), []
    for file in found or [io.BytesIO(sample) for _ in range(MOST)]:
        start = time.perf_counter()
        decode(file)
        seconds.append(time.perf_counter() - start)
    typical, longest = statistics.median(seconds), max(seconds)
    what = f"one of {len(found)} training images" if found else f"a JPEG of {SAMPLE[0]}×{SAMPLE[1]} pixels in memory"
    times = f"{typical * 1e3:.3g} ms to read {what}, {longest * 1e3:.3g} ms at most"
    level, cure = (NOTE, f"elsa benchmark data {case.config or 'CONFIG'}") if typical > SLOW else (OK, "")
    yield Finding("images", level, f"{times}: {1 / typical:.0f}/s by each loader process", cure)


def _sample() -> bytes:
    import numpy as np
    from PIL import Image

    width, height = SAMPLE
    coarse = np.random.default_rng(0).integers(0, 256, (height // 25, width // 25, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize(SAMPLE, Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()


def _images(case: Case) -> list[Path]:
    """Some images of the recipe's training data, spread over them; none where there is no recipe, or no folder."""
    if case.config is None:
        return []
    try:
        task, recipe = case.recipe()
    except Exception:  # told by the check of the recipe
        return []
    folder = _train_folder(task.name, recipe.config)
    return _spread(folder) if folder is not None and folder.is_dir() else []


def _train_folder(task: str, config: Any) -> Path | None:
    if task == "classification":
        return Path(config.DATA.ROOT, config.DATA.TRAIN_SPLIT)
    for _, dataset in datasets(config):
        prefix = dataset.get("data_prefix") or {}
        if below := prefix.get("img") or prefix.get("img_path"):
            return Path(dataset.get("data_root") or "", below)
    return None


def _spread(folder: Path) -> list[Path]:
    """Up to ``MOST`` images of different folders below one, without listing millions."""
    from elsa.data.listing import endings

    read, found = endings(), list[Path]()
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) or [folder]
    chosen = folders[:: -(-len(folders) // MOST)]
    for place in chosen:
        images = (path for path in place.iterdir() if path.suffix.lower() in read)
        found += islice(images, -(-MOST // len(chosen)))
    return found[:MOST]
