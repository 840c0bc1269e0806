"""A check of the data that a recipe names, as the recipe takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elsa.core import ConfigError, DataError
from elsa.data.checks import CocoPlace, MapPlace, Report, check_ade20k, check_coco, check_imagenet, check_lists
from elsa.data.decode import TURNED

from . import command


def check_recipe(path: Path, overrides: list[str], splits: tuple[str, ...], common: Mapping[str, Any]) -> Report:
    """
    Args:
        splits: of "train" and "val".
        common: what all checks take.

    Raises:
        ConfigError: a recipe whose data are drawn, or are read by a package of others.
        DataError: no such folder.
    """
    task, recipe = command.read(command.find_recipe(path), overrides)
    checks = {"classification": _of_images, "detection": _of_objects, "segmentation": _of_maps}
    report = checks[task.name](recipe.config, splits, dict(common))
    report.dataset = str(path)
    return report


def _of_images(config: Any, splits: tuple[str, ...], common: dict[str, Any]) -> Report:
    data = config.DATA
    common |= dict(classes=config.MODEL.NUM_CLASSES, splits=splits)
    names = {"train": data.TRAIN_SPLIT, "val": data.VAL_SPLIT}
    if data.DATASET == "list":
        keys = data.IMAGE_KEY, data.LABEL_KEY
        return check_lists(data.ROOT, names=names, wanted=data.CLASSES, keys=keys, **common)
    if data.DATASET != "folder":
        raise ConfigError(f"DATA.DATASET {data.DATASET} is not checked: folder and list are")
    return check_imagenet(data.ROOT, names=names, **common)


def _of_objects(config: Any, splits: tuple[str, ...], common: dict[str, Any]) -> Report:
    places, root = {}, Path()
    for split, dataset in _datasets(config, splits):
        root, meta = Path(dataset.get("data_root") or ""), dataset.get("metainfo") or {}
        images = root / (dataset.get("data_prefix") or {}).get("img", "")
        classes = tuple(meta.get("classes") or ())
        places[split] = CocoPlace(root / dataset.ann_file, images, classes, meta.get("category_names"))
    pipeline = config.train_dataloader.dataset.get("dataset", config.train_dataloader.dataset).pipeline
    masks = any(step.get("with_mask") for step in pipeline)
    return check_coco(_root(root, config), splits=tuple(places), masks=masks, places=places, **common)


def _of_maps(config: Any, splits: tuple[str, ...], common: dict[str, Any]) -> Report:
    places, root, dataset = {}, Path(), None
    for split, dataset in _datasets(config, splits):
        root, prefix = Path(dataset.get("data_root") or ""), dataset.data_prefix
        listed = dataset.get("ann_file")
        endings = dataset.get("img_suffix"), dataset.get("seg_map_suffix")
        names = tuple((root / listed).read_text("utf-8-sig").split("\n")) if listed else None
        names = names and tuple(name.strip() for name in names if name.strip())
        places[split] = MapPlace(root / prefix.img_path, root / prefix.seg_map_path, endings, names)
    meta = dataset.get("metainfo") or {} if dataset else {}
    options = dict(
        classes=len(meta["classes"]) if meta.get("classes") else None,
        reduced=dataset.get("reduce_zero_label", True) if dataset else True,
        replaced=meta.get("label_map"),
        orientation=config.get("image_orientation", TURNED),
    )
    return check_ade20k(_root(root, config), splits=tuple(places), places=places, **options, **common)


def _datasets(config: Any, splits: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """(split, settings) of the data sets of "train" and "val", wrappers taken off."""
    for split in splits:
        dataset = config[f"{split}_dataloader"].dataset
        while "dataset" in dataset:
            dataset = dataset.dataset
        yield split, dataset


def _root(root: Path, config: Any) -> Path:
    if config.get("embedded") and not root.is_dir():
        raise DataError(f"{root} is not there yet: the first training draws it")
    return root
