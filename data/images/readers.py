"""timm's readers: torchvision's data sets, Hugging Face's, TensorFlow's, and WebDataset's shards."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import create_dataset
from torch import Tensor
from torch.utils.data import IterableDataset
from torchvision.datasets import DatasetFolder
from yacs.config import CfgNode

from elsa.core import DataError, did_you_mean, logger

from .folders import ListedFiles
from .shards import ShardImages, image_keys, index_path, open_shards

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
            is_training=is_training and prefix != "wds",  # of shards on a disk the samples are counted here
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
    if prefix == "wds":
        return _open_wds(dataset, config, key, is_training)
    if isinstance(dataset, IterableDataset):
        return dataset
    items = getattr(dataset, "reader", dataset)
    if not len(items):
        raise DataError(f"{where}: no images")
    classes = _class_names(items)
    _check_count(classes, config)
    if isinstance(items, DatasetFolder):
        items = ListedFiles(Path(), items.samples)
    elif hasattr(items, "loader"):  # torchvision's, of files: decode() opens them instead
        items.loader = str
    return items, classes


def _check_count(classes: Sequence[str], config: CfgNode) -> None:
    if classes and len(classes) != (count := config.MODEL.NUM_CLASSES):
        raise DataError(f"{config.DATA.DATASET} has {len(classes)} classes, but MODEL.NUM_CLASSES is {count}")


def check_label(label: Any, count: int, what: str) -> None:
    """Raises DataError where a reader gives a label that is none of 0 … count − 1."""
    if not isinstance(label, (int, np.integer, Tensor)) or not 0 <= int(label) < count:
        raise DataError(
            f"{what} has the label {label!r:.60}; with MODEL.NUM_CLASSES {count} labels are 0 … {count - 1}"
        )


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
        keys["input_key"] = image_keys()
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


def _open_wds(
    dataset: IterableDataset, config: CfgNode, key: str, is_training: bool
) -> IterableDataset | tuple[ShardImages, list[str]]:
    """Shards on a disk by index, and others, of an address or a command, as timm's stream.

    Raises:
        DataError: naming the shard, or the split with the number of samples that it should have.
    """
    reader, split = dataset.reader, config.DATA[key.removeprefix("DATA.")]
    shards = [os.path.join(reader.root, name) for name in reader.split_info.filenames]
    if not shards:
        raise DataError(f"{key} {split} names no shards")
    classes = [str(name) for name in reader.info.get("classes", ())]
    _check_count(classes, config)
    if not all(_is_local(shard) for shard in shards):
        if not reader.num_samples:
            raise DataError(f"{key} {split} does not say how many samples there are: write {split}|NUMBER")
        reader.is_training, dataset.classes = is_training, classes
        return dataset
    paths = [Path(shard) for shard in shards]
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise DataError(f"{key} {split}: {len(absent)} of {len(paths)} shards do not exist: {', '.join(absent[:3])}")
    index = index_path(Path(reader.root), reader.split_info.name) if reader.split_info.name else None
    label_key = reader.target_key or reader.split_info.alt_label or ""
    items, total = open_shards(paths, index, reader.input_key, label_key, config.DATA.WORKERS)
    stated = int(reader.num_samples or 0)
    if stated and not len(items) <= stated <= total:
        name = split.partition("|")[0]
        cure = "correct its _info.json" if reader.split_info.shard_lengths else f"write {name}|{total}"
        raise DataError(f"{key} {split} says {stated} samples, its shards hold {total}: {cure}")
    highest = int(items.labels.array.argmax())
    check_label(items.labels[highest], config.MODEL.NUM_CLASSES, items.filename(highest))
    return items, classes


def _is_local(shard: str) -> bool:
    """Whether it is a file that can be read anywhere: no address, no command, not compressed."""
    return shard.endswith(".tar") and not re.match(r"\w+:", shard)


def check_shares(source: IterableDataset, name: str, workers: int, rank: int, processes: int) -> None:
    """Says once what an epoch of shards loses that do not divide evenly among all loader processes.

    Shards are dealt to the loader processes in turn, those of the first training process first, and each gives as many
    images as any other: of more shards it leaves images out, fewer it reads again.

    Args:
        name: DATA.DATASET.

    Raises:
        DataError: the shards are too few for every training process to have one: some would wait for ever.
    """
    info = getattr(source.reader, "split_info", None)
    shards, readers = len(getattr(info, "filenames", None) or ()), processes * workers
    if shards and shards <= (processes - 1) * workers:
        served = -(-shards // workers)
        raise DataError(
            f"{shards} shards for {processes} processes with {workers} loader processes each: {processes - served} of "
            f"them would have none. More than ({processes} - 1) × {workers} shards are needed: divide the data into "
            "more, or take fewer processes or a smaller DATA.WORKERS"
        )
    few, more = divmod(shards, readers)
    if rank == 0 and more and name.startswith("wds/"):
        lost = more * (readers - more) / (readers * shards)
        fitting = [f"DATA.WORKERS={count}" for count in range(1, workers) if shards % (processes * count) == 0]
        cures = (f"a multiple of {readers} shards", *fitting[-1:], "or plain .tar files on a local disk, read exactly")
        logger.warning(
            "%s: %d shards for %d processes × %d loader processes = %d: %d of them read %d and %d read %d, but all "
            "give as many images, so of an epoch's images up to %.2g%% come twice and as many not at all; instead "
            "take %s",
            *(name, shards, processes, workers, readers, more, few + 1, readers - more, few, 100 * lost),
            ", ".join(cures),
        )


def _first_line(error: Exception) -> str:
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__} {text}" if isinstance(error, (KeyError, IndexError)) or not text else text
