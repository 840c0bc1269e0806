"""WebDataset shards of images for classification: what they are made of, and how they are written."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
from torch.utils.data import IterableDataset

from elsa.core import ConfigError, DataError, Progress, logger, make_folder, sweep, write_json
from elsa.data import BadImages, Source, open_splits
from elsa.data.images.folders import find_split, open_folders
from elsa.data.images.lists import number_lists, read_list
from elsa.data.images.shard_writer import Shards, plan_shards
from elsa.data.images.shards import index_path, write_index
from elsa.data.survey import silent, survey

from . import command
from .data_check import at_least

INFO = "_info.json"  # timm's name for it
PLAN = "_unfinished.json"  # what the shards are made of, until all are there
SPLITS = {"train": "train", "val": "validation"}  # ours → DATA.TRAIN_SPLIT and DATA.VAL_SPLIT as they are by default
MB = 10**6


def parse(description: str | None) -> argparse.Namespace:
    arguments = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("source", type=Path, metavar="SOURCE", help="a recipe or its name, a folder, or a list of files")
    add("--val", type=Path, metavar="LIST", help="validation images, where SOURCE is a list")
    add("--output", type=Path, metavar="DIR", required=True, help="folder for the shards, new or empty")
    add("--name", help="what the shards' names begin with (default: the folder's name)")
    add("--size-mb", type=at_least(1), default=256, metavar="MB", help="of a shard, about (default 256)")
    add("--shuffle", type=at_least(0), default=0, metavar="SEED", help="of the training images' order (default 0)")
    add("--classes", default="", help="order of a folder's or list's classes, see DATA.CLASSES")
    add("--max-bad", type=at_least(0), default=10, metavar="N", help="unreadable images that may be left out")
    add("--workers", type=at_least(0), default=min(os.cpu_count() or 1, 16), metavar="N", help="processes that write")
    add("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="of a recipe")
    args = arguments.parse_args()
    args.name = args.name or args.output.resolve().name
    if "/" in args.name or "." in args.name:
        raise ConfigError(f"--name {args.name} must have no / and no dot")
    return args


def make_shards(args: argparse.Namespace) -> None:
    """Writes all splits and, when every shard is whole, what readers need: the index and the info file.

    Raises:
        ConfigError: the folder holds other things, or has no room.
        DataError: no images, or too many that cannot be read.
    """
    sources = open_sources(args)
    if (args.output / INFO).exists():
        raise ConfigError(f"--output {args.output} holds shards already; choose another, or remove it")
    planned = []
    for name, source in sources.items():
        seed = args.shuffle if name == "train" else None
        planned.append(plan_shards(source, args.output, SPLITS[name], args.name, args.size_mb * MB, seed))
    _check_room(planned, args.output)
    make_folder(args.output)
    _claim(args.output, planned)
    bad = BadImages(args.max_bad, "--max-bad")
    progress = Progress(sum(len(shards.order) for shards in planned), "writing shards", "image", shown=True)
    for shards in planned:
        for number, told in survey(shards.write, range(len(shards)), args.workers, silent, "shards", chunk=1):
            progress.advance(len(shards.members(number)))
            bad.add(told)
            bad.merge(())  # there is no other process that met any
    progress.close()
    _conclude(args, planned, next(iter(sources.values())).classes)


def _conclude(args: argparse.Namespace, planned: list[Shards], classes: list[str]) -> None:
    splits = {}
    for shards in planned:
        written = shards.open(args.workers)
        write_index(index_path(args.output, shards.split), written)
        splits[shards.split] = {
            "name": shards.split,
            "filenames": [path.name for path in written.shards],
            "shard_lengths": np.diff(written.starts.array).tolist(),
            "num_samples": len(written),
        }
        left_out = len(shards.order) - len(written)
        logger.info("%s: %d images in %d shards%s", shards.split, len(written), len(shards),
                    f", {left_out} left out" if left_out else "")  # fmt: skip
    write_json(args.output / INFO, {"splits": splits, **({"classes": classes} if classes else {})})
    (args.output / PLAN).unlink()
    logger.info("%s: train with --set DATA.DATASET=wds/%s DATA.ROOT=%s", args.output, args.name, args.output)


def _check_room(planned: list[Shards], folder: Path) -> None:
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    there = sum(path.stat().st_size for path in folder.glob("*.tar")) if folder.is_dir() else 0
    needed = sum(len(shards.order) * shards.sample_bytes for shards in planned) - there
    if needed > (free := shutil.disk_usage(existing).free):
        raise ConfigError(f"--output {folder}: the shards take about {needed / MB:.0f} MB, {free / MB:.0f} MB are free")


def _claim(folder: Path, planned: list[Shards]) -> None:
    """Makes the folder these shards' own; of an interrupted writing of the same ones it goes on."""
    sweep(folder)
    plan, path = {shards.split: shards.fingerprint() for shards in planned}, folder / PLAN
    if path.exists():
        if json.loads(path.read_text(encoding="utf-8")) != plan:
            raise ConfigError(
                f"--output {folder} holds the beginning of other shards: of other images, another --size-mb, --shuffle "
                "or --classes; choose another, or remove it"
            )
        there = len(list(folder.glob("*.tar")))
        logger.info("%s: %d of %d shards are there", folder, there, sum(len(shards) for shards in planned))
        return
    if any(folder.iterdir()):
        raise ConfigError(f"--output {folder} is not empty; shards go into a folder of their own")
    write_json(path, plan)


# ---- what shards are made of


def open_sources(args: argparse.Namespace) -> dict[str, Source]:
    """The splits "train" and "val", as far as they are there.

    Raises:
        ConfigError: an option that the source has no use for.
        DataError: no images there, or a reader without random access.
    """
    is_folder = args.source.is_dir()
    is_list = args.source.is_file() and not command.is_recipe(args.source)
    for option, given, fits in (("--val", args.val, is_list), ("--classes", args.classes, is_folder or is_list),
                                ("--set", args.overrides, not is_folder and not is_list)):  # fmt: skip
        if given and not fits:
            kind = "folder" if is_folder else "list" if is_list else "recipe"
            raise ConfigError(f"{option} has no effect where SOURCE is a {kind}: {args.source}")
    if is_list:
        return _open_lists(args)
    if is_folder:
        names = tuple(name for name in SPLITS if find_split(args.source, name)) or ("train",)
        opened = open_folders(args.source, "train", "val", names, args.classes, None)
        sources = [Source(items, "RGB", classes.names, True) for items, classes in opened]
        return dict(zip(names, sources, strict=True))
    task, recipe = command.read(command.find_recipe(args.source), args.overrides)
    if task.name != "classification":
        raise ConfigError(f"{args.source}: a recipe of {task.name}; this is for classification")
    sources = open_splits(recipe.config, *SPLITS)
    if any(isinstance(source, IterableDataset) for source in sources):
        raise DataError(f"DATA.DATASET {recipe.config.DATA.DATASET} is a stream; shards need random access")
    return dict(zip(SPLITS, sources, strict=True))


def _open_lists(args: argparse.Namespace) -> dict[str, Source]:
    paths = {name: path for name, path in (("train", args.source), ("val", args.val)) if path}
    files, classes = number_lists({path: read_list(path) for path in paths.values()}, None, args.classes)
    return {name: Source(files[path], "RGB", classes.names, True) for name, path in paths.items()}
