"""timm's readers: torchvision's data sets, Hugging Face's, TensorFlow's, and WebDataset's shards."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import create_dataset
from torch.utils.data import IterableDataset
from torchvision.datasets import DatasetFolder
from yacs.config import CfgNode

from elsa.core import DataError, did_you_mean

from ..listing import endings
from .folders import ListedFiles

PREFIXES = ("torch", "hfds", "wds", "hfids", "tfds")
READ_WHOLE = ("wds", "hfids")  # streams of images as their files are, not yet converted


def open_reader(config: CfgNode, mode: str, name: str) -> IterableDataset | tuple[Any, list[str]]:
    """The split "train" or "val": a stream, or what gives (image, label) by index and the names of the classes.

    Raises:
        DataError: whatever keeps the reader from being opened, in one line.
    """
    data, is_training = config.DATA, name == "train"
    prefix, _, path = data.DATASET.partition("/")
    key = "DATA.TRAIN_SPLIT" if is_training else "DATA.VAL_SPLIT"
    split = data.TRAIN_SPLIT if is_training else data.VAL_SPLIT
    where = f"DATA.DATASET {data.DATASET}, root {data.ROOT}, split {split}"
    try:
        dataset = create_dataset(
            data.DATASET,
            root=data.ROOT,
            split=split,
            is_training=is_training,
            batch_size=data.BATCH if is_training else data.EVAL_BATCH,
            seed=config.TRAIN.SEED,
            input_img_mode="" if prefix in READ_WHOLE else mode,  # decode() sees them with all they say
            **_keys(prefix, path, data, split),
        )
    except DataError:
        raise
    except (ImportError, AttributeError) as error:  # AttributeError: a folder named like the package
        raise DataError(f"DATA.DATASET {data.DATASET} needs a package that is not installed: {error}") from error
    except Exception as error:  # readers raise whatever the packages below them do
        raise DataError(f"{where}: {_first_line(error)}") from error
    if isinstance(dataset, IterableDataset):
        if prefix == "wds":
            _check_shards(dataset.reader, key, split, is_training)
        return dataset
    items = getattr(dataset, "reader", dataset)
    if not len(items):
        raise DataError(f"{where}: no images")
    classes = _class_names(items)
    if classes and len(classes) != config.MODEL.NUM_CLASSES:
        raise DataError(
            f"{data.DATASET} has {len(classes)} classes, but MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}"
        )
    if isinstance(items, DatasetFolder):
        items = ListedFiles(Path(), items.samples)
    elif hasattr(items, "loader"):  # torchvision's, of files: decode() opens them instead
        items.loader = str
    return items, classes


def _class_names(items: Any) -> list[str]:
    """In the order of the labels; empty where the reader does not tell."""
    if names := getattr(items, "classes", None):
        return [" ".join(name) if isinstance(name, tuple) else str(name) for name in names]
    indices = getattr(items, "class_to_idx", None) or {}
    return [str(name) for name in sorted(indices, key=indices.__getitem__)]


def _keys(prefix: str, path: str, data: CfgNode, split: str) -> dict[str, str]:
    """Which columns, fields or endings of a sample hold image and label."""
    if prefix == "torch":
        for name in ("IMAGE_KEY", "LABEL_KEY"):
            if data[name]:
                raise DataError(f"DATA.{name} {data[name]} has no effect with DATA.DATASET {data.DATASET}: write ''")
        return {}
    keys = {"input_key": data.IMAGE_KEY, "target_key": data.LABEL_KEY}
    if prefix == "hfds":
        keys = _columns(path, data, split)
    elif prefix == "wds" and not data.IMAGE_KEY:
        keys["input_key"] = ";".join(sorted(ending[1:] for ending in endings()))
    return {name: key for name, key in keys.items() if key}


def _columns(path: str, data: CfgNode, split: str) -> dict[str, str]:
    """The columns of a Hugging Face data set that hold image and label: the usual ones, or the only ones of that kind.

    Raises:
        DataError: none, or several; the message has the columns that there are.
    """
    import datasets

    features = datasets.load_dataset(path, split=split, cache_dir=data.ROOT).features
    kinds = {name: type(feature).__name__ for name, feature in features.items()}
    listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    labels = [name for name, feature in features.items() if _holds_labels(feature)]
    images = [name for name, kind in kinds.items() if kind == "Image"]
    image = _column("IMAGE_KEY", data, images, "image", kinds, listed)
    return {"input_key": image, "target_key": _column("LABEL_KEY", data, labels, "label", kinds, listed)}


def _holds_labels(feature: Any) -> bool:
    return type(feature).__name__ == "ClassLabel" or str(getattr(feature, "dtype", "")).startswith(("int", "uint"))


def _column(key: str, data: CfgNode, fitting: list[str], usual: str, kinds: Mapping[str, str], listed: str) -> str:
    if wanted := data[key]:
        if wanted not in fitting:
            what = "no column" if wanted not in kinds else f"no {usual}s"
            raise DataError(
                f"DATA.{key} {wanted} is {what} of {data.DATASET}{did_you_mean(wanted, fitting)}; it has {listed}"
            )
        return wanted
    named = [name for name in fitting if kinds[name] == "ClassLabel"] or fitting
    choice = usual if usual in fitting else named[0] if len(named) == 1 else ""
    if not choice:
        raise DataError(f"which column of {data.DATASET} holds the {usual}? Set DATA.{key}; it has {listed}")
    return choice


# ---- WebDataset


def _check_shards(reader: Any, key: str, split: str, is_training: bool) -> None:
    """Refuses shards that are not there and numbers of samples that are not right; what can be counted is counted.

    Raises:
        DataError: naming the shard, or the split with the number that it should have.
    """
    shards = [os.path.join(reader.root, name) for name in reader.split_info.filenames]
    if not shards:
        raise DataError(f"{key} {split} names no shards")
    local = [Path(shard) for shard in shards if "://" not in shard and not shard.startswith("pipe:")]
    if absent := [str(shard) for shard in local if not shard.is_file()]:
        raise DataError(f"{key} {split}: {len(absent)} of {len(shards)} shards do not exist: {', '.join(absent[:3])}")
    stated = int(reader.num_samples or 0)
    if is_training:
        for shard in local:
            _count_samples(shard, reader.input_key, first=True)
    elif len(local) == len(shards):
        counted = sum(_count_samples(shard, reader.input_key) for shard in local)
        if stated not in (0, counted):
            cure = (
                "correct its _info.json"
                if reader.split_info.shard_lengths
                else f"write {split.partition('|')[0]}|{counted}"
            )
            raise DataError(f"{key} {split} says {stated} samples, its shards hold {counted}: {cure}")
        reader.num_samples = stated = counted
    if not stated:
        raise DataError(f"{key} {split} does not say how many samples there are: write {split}|NUMBER")


def _count_samples(shard: Path, image_key: str, first: bool = False) -> int:
    """Samples with an image in a shard: neighbouring files whose names are alike up to the first dot.

    Args:
        first: look at the first file alone, for whether this is a tar file at all.
    """
    wanted, count, previous = set(image_key.split(";")), 0, None
    try:
        with tarfile.open(shard) as archive:
            while (entry := archive.next()) is not None:
                archive.members = []
                parts = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]*)", entry.name)
                if first:
                    return 1
                if parts and entry.isreg() and parts[2].lower() in wanted and parts[1] != previous:
                    count, previous = count + 1, parts[1]
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"shard {shard} is no tar file that can be read: {_first_line(error)}") from error
    return count


def check_shares(source: IterableDataset, workers: int, processes: int) -> None:
    """Raises DataError where shards are too few for every process to have one, so that some would wait for ever.

    Shards are dealt to the loader processes in turn, those of the first training process first.
    """
    info = getattr(source.reader, "split_info", None)
    shards = len(getattr(info, "filenames", None) or ())
    if shards and shards <= (processes - 1) * workers:
        served = -(-shards // workers)
        raise DataError(
            f"{shards} shards for {processes} processes with {workers} loader processes each: {processes - served} of "
            f"them would have none. More than ({processes} - 1) × {workers} shards are needed: divide the data into "
            "more, or take fewer processes or a smaller DATA.WORKERS"
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__} {text}" if isinstance(error, (KeyError, IndexError)) or not text else text
