"""A check of a data set: what it is asked for, and how its report is told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from elsa.core import ConfigError
from elsa.data.checks import Report, check_ade20k, check_coco, check_imagenet
from elsa.data.decode import ORIENTATIONS, TURNED
from elsa.data.label_colours import WRITTEN

from . import command
from .recipe_check import check_recipe

CHECKS = {"coco": check_coco, "imagenet": check_imagenet, "ade20k": check_ade20k}


def parse(description: str | None) -> argparse.Namespace:
    arguments = argparse.ArgumentParser(
        description=description, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ", ".join(CHECKS)
    arguments.add_argument(
        "dataset", metavar="KIND|CONFIG", help=f"{kinds}; or a recipe, which says where its data lie"
    )
    arguments.add_argument("root", type=Path, metavar="ROOT", nargs="?", help="of a KIND")
    arguments.add_argument(
        "--classes", type=at_least(1), metavar="N", help="of a data set that is not the published one"
    )
    arguments.add_argument("--splits", nargs="+", choices=("train", "val"), default=["train", "val"])
    arguments.add_argument("--fast", action="store_true", help="image sizes only, nothing is decoded")
    arguments.add_argument(
        "--workers", type=at_least(0), default=min(os.cpu_count() or 1, 16), metavar="N", help="processes that decode"
    )
    arguments.add_argument("--show", type=at_least(1), default=5, metavar="N", help="findings told of each kind")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="write all findings to this file")
    arguments.add_argument("--set", dest="overrides", metavar="KEY=VALUE", nargs="+", action="extend", default=[],
                           help="of a recipe")  # fmt: skip
    boxes = arguments.add_argument_group("coco alone")
    boxes.add_argument("--boxes", action="store_true", help="masks are not looked at: objects need none")
    maps = arguments.add_argument_group("ade20k alone, as in the recipe")
    maps.add_argument("--zero-is-a-class", action="store_true", help="reduce_zero_label=False: labels are 0 … N-1")
    maps.add_argument(
        "--label-map",
        type=replacement,
        nargs="+",
        metavar="OLD=NEW",
        help="label_map: what numbers in files stand for, or colours, R,G,B=NEW",
    )
    maps.add_argument("--image-orientation", choices=ORIENTATIONS, help="stored: cameras' notes (EXIF) do not count")
    args = arguments.parse_args()
    is_kind = args.dataset in CHECKS
    if not is_kind and not command.is_recipe(Path(args.dataset)):
        arguments.error(f"argument KIND|CONFIG: invalid choice: {args.dataset!r} (choose from {kinds}, or a recipe)")
    if is_kind and args.root is None:
        arguments.error(f"the following arguments are required: ROOT, the folder of {args.dataset}")
    return args


def check(args: argparse.Namespace) -> Report:
    """
    Raises:
        ConfigError: an option that the check has no use for.
        DataError: no such folder.
    """
    common = dict(fast=args.fast, workers=args.workers, progress=show_progress)
    splits = tuple(dict.fromkeys(args.splits))
    if args.dataset in CHECKS:
        if args.overrides:
            raise ConfigError(f"--set is of a recipe; {args.dataset} ROOT has none")
        options = dict(classes=args.classes, splits=splits, **of_boxes(args), **of_maps(args))
        return CHECKS[args.dataset](args.root, **options, **common)
    if args.root is not None:
        raise ConfigError(f"ROOT {args.root} has no effect: the recipe {args.dataset} says where its data lie")
    for name in ("classes", "boxes", "zero_is_a_class", "label_map", "image_orientation"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')} has no effect: the recipe {args.dataset} says it")
    return check_recipe(Path(args.dataset), args.overrides, splits, common)


def of_boxes(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a check of objects alone has.

    Raises:
        ConfigError: one of them for another check.
    """
    if args.dataset == "coco":
        return dict(masks=not args.boxes)
    if args.boxes:
        raise ConfigError(f"--boxes is of objects; {args.dataset} has none")
    return {}


def of_maps(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a check of label maps alone has.

    Raises:
        ConfigError: one of them for another check.
    """
    if args.dataset == "ade20k":
        orientation = args.image_orientation or TURNED
        replaced = dict(args.label_map or ())
        return dict(reduced=not args.zero_is_a_class, replaced=replaced, orientation=orientation)
    for name in ("zero_is_a_class", "label_map", "image_orientation"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')} is of label maps; {args.dataset} has none")
    return {}


def replacement(text: str) -> tuple[str, int]:
    old, _, new = text.partition("=")
    if not ((old.isdecimal() or WRITTEN.fullmatch(old)) and new.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW, like 255=1 or 128,0,0=1")
    return old, int(new)


def at_least(lowest: int) -> Any:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {lowest}")
        return int(text)

    return whole_number


def show_progress(results: Iterable[Any], total: int, description: str) -> Iterator[Any]:
    """A bar with rate and ETA; where no one watches, one every half minute."""
    interval = 0.2 if sys.stderr.isatty() else 30
    yield from tqdm(results, description, total, unit="", mininterval=interval, leave=False, delay=interval)


def tell(report: Report, show: int) -> None:
    print(f"{report.dataset} in {report.root}")
    for name, count in report.counts.items():
        print(f"  {name}: {count}")
    for note in report.notes:
        print(f"  {note}")
    if report.ok:
        print("OK")
        return
    print(f"NOT OK: {len(report.findings)} findings")
    for kind, findings in report.by_kind().items():
        print(f"{kind}: {len(findings)}")
        for finding in findings[:show]:
            print(f"  {finding.place}" + (f" ({finding.detail})" if finding.detail else ""))
        if len(findings) > show:
            print(f"  … and {len(findings) - show} more")
