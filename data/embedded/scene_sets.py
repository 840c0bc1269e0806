"""digits-coco and digits-ade: the scenes of ``scenes.py`` in the layouts of COCO 2017 and of ADE20K.

A stamp in the folder holds the parameters and the size of every file. Where it agrees, nothing is written; where it
does not, the set is written anew. A folder without it, or with other files beside, belongs to somebody else and is left
alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from elsa.core import write_folder

from ..listing import files_below
from .scenes import SCENE_CLASSES, SPLITS, Scene, Scenes

DIGITS_ADE_CLASSES = (*SCENE_CLASSES, "texture")
VERSION = 1  # of what is drawn and how it is written; another one makes written sets obsolete
STAMP = "digits.json"
_VAL_IDS = 1_000_000  # image ids of validation scenes lie above
_LARGEST = _VAL_IDS - 1

Fill = Callable[[Path, dict[str, int], int], None]


def write_digits_coco(root: str | Path, train: int = 800, val: int = 200, seed: int = 0) -> Path:
    """Writes digits-coco in COCO's layout, unless it is there: ``root/{train,val}2017/*.jpg`` and
    ``root/annotations/instances_{train,val}2017.json``.

    Category 1 is the digit 0, category 10 the digit 9. Masks are uncompressed run-length codes, for a 0 has a hole;
    area and box are those of the visible mask. ``digit_id`` in an annotation is the handwritten digit that it shows.

    Args:
        train: training scenes.
        val: validation scenes.
        seed: of all scenes; a scene depends on split, seed and its number alone.

    Raises:
        ValueError: a number of scenes below 1.
        FileExistsError: another folder lies at ``root``.
    """
    return _write(root, "coco", {"train": train, "val": val}, seed, _fill_coco)


def write_digits_ade(root: str | Path, train: int = 800, val: int = 200, seed: int = 0) -> Path:
    """Writes digits-ade in ADE20K's layout, unless it is there: ``root/images/{training,validation}/*.jpg`` and
    ``root/annotations/{training,validation}/*.png``.

    The same scenes as digits-coco. Labels: 0 unlabelled, 1 … 10 the digits 0 … 9, 11 the patterned region; a loader
    with ``reduce_zero_label=True`` makes that 255 (ignored) and 0 … 10, the order of ``DIGITS_ADE_CLASSES``.
    Arguments and errors as in ``write_digits_coco``.
    """
    return _write(root, "ade", {"train": train, "val": val}, seed, _fill_ade)


def _write(root: str | Path, layout: str, counts: dict[str, int], seed: int, fill: Fill) -> Path:
    for split, count in counts.items():
        if not 1 <= count <= _LARGEST:
            raise ValueError(f"{split} must be between 1 and {_LARGEST} scenes, got {count}")
    stamp = {"version": VERSION, "layout": layout, **counts, "seed": seed}

    def fill_and_stamp(folder: Path) -> None:
        fill(folder, counts, seed)
        files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*.*"))}
        (folder / STAMP).write_text(json.dumps({**stamp, "files": files}, indent=0))

    return write_folder(root, partial(_is_complete, stamp), fill_and_stamp, may_replace=_is_ours_alone)


def _stamp(root: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((root / STAMP).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "layout" in content else None


def _is_ours_alone(root: Path) -> bool:
    """Whether every file in a folder is one of those that its stamp names."""
    if (stamp := _stamp(root)) is None:
        return False
    files = stamp.get("files")
    named = {*(files if isinstance(files, dict) else ()), STAMP}
    return all(str(path.relative_to(root)) in named for path in files_below(root))


def _is_complete(wanted: dict[str, Any], root: Path) -> bool:
    found = _stamp(root) or {}
    files = found.pop("files", {})
    try:
        sizes = files.items() if isinstance(files, dict) else ()
        return found == wanted and bool(sizes) and all((root / name).stat().st_size == size for name, size in sizes)
    except OSError:
        return False


def _save_image(scene: Scene, path: Path) -> None:
    Image.fromarray(scene.image).save(path, quality=92, subsampling=0)


# ---- ADE20K --------------------------------------------------------------------------------------------------------


def ade_labels(scene: Scene) -> np.ndarray:
    """(H, W) uint8: 0 unlabelled, 1 … 10 the digits, 11 the patterned region."""
    of_owner = np.array([0, *(label + 1 for label in scene.labels)], np.uint8)  # owner −1 comes first
    labels = of_owner[scene.owner + 1]
    labels[scene.texture] = len(DIGITS_ADE_CLASSES)
    return labels


def _fill_ade(root: Path, counts: dict[str, int], seed: int) -> None:
    for split, name in zip(SPLITS, ("training", "validation"), strict=True):
        images, annotations = root / "images" / name, root / "annotations" / name
        images.mkdir(parents=True)
        annotations.mkdir(parents=True)
        scenes = Scenes(split, seed)
        for number in range(counts[split]):
            scene, stem = scenes.draw(number), f"digits_{split}_{number + 1:08d}"
            _save_image(scene, images / f"{stem}.jpg")
            Image.fromarray(ade_labels(scene)).save(annotations / f"{stem}.png")


# ---- COCO ----------------------------------------------------------------------------------------------------------


def _fill_coco(root: Path, counts: dict[str, int], seed: int) -> None:
    (root / "annotations").mkdir()
    for split in SPLITS:
        folder = root / f"{split}2017"
        folder.mkdir()
        scenes, content = Scenes(split, seed), _coco_header()
        first = 1 + (_VAL_IDS if split == "val" else 0)
        for number in range(counts[split]):
            scene, image_id = scenes.draw(number), first + number
            name = f"{image_id:012d}.jpg"
            _save_image(scene, folder / name)
            height, width = scene.owner.shape
            content["images"].append(
                {"id": image_id, "file_name": name, "width": width, "height": height, "license": 1}
            )
            content["annotations"] += _coco_annotations(scene, image_id)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content, separators=(",", ":")))


def _coco_header() -> dict[str, Any]:
    return {
        "info": {
            "description": "digits-coco: scenes of handwritten digits",
            "version": str(VERSION),
            "year": 1998,
            "contributor": "E. Alpaydin, C. Kaynak (Optical Recognition of Handwritten Digits, UCI)",
            "url": "https://doi.org/10.24432/C50P49",
        },
        "licenses": [{"id": 1, "name": "CC BY 4.0", "url": "https://creativecommons.org/licenses/by/4.0/"}],
        "images": [],
        "annotations": [],
        "categories": [
            {"id": number, "name": name, "supercategory": "digit"} for number, name in enumerate(SCENE_CLASSES, 1)
        ],
    }


def _coco_annotations(scene: Scene, image_id: int) -> list[dict[str, Any]]:
    found = []
    for instance, (label, source) in enumerate(zip(scene.labels, scene.sources, strict=True)):
        mask = scene.mask(instance)
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        left, top, right, bottom = map(int, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        found.append(
            {
                "id": image_id * 100 + instance + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
                "area": int(mask.sum()),
                "bbox": [left, top, right - left, bottom - top],
                "iscrowd": 0,
                "digit_id": source,
            }
        )
    return found


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run-length code of a mask (H, W): lengths of alternating runs, column by column, from a run
    of background (which may be 0 long) on."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff([0, *changes.tolist(), mask.size]).tolist()
