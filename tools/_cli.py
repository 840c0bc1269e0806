"""What all tools share: arguments, and how a mistake is told."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from timm.data import get_img_extensions
from yacs.config import CfgNode

from elsa.data import DataError
from elsa.engine import BEST, LAST, ConfigError, TrainingError, dump, load_config, write_json
from elsa.models import CheckpointError

USER_ERRORS = (ConfigError, DataError, CheckpointError)


def parser(description: str, checkpoint: bool) -> argparse.ArgumentParser:
    """CONFIG [CHECKPOINT] --output --set --device --print-config."""
    arguments = argparse.ArgumentParser(description=description, allow_abbrev=False)
    arguments.add_argument("config", type=Path, metavar="CONFIG", help="a file of configs/, for example")
    if checkpoint:
        arguments.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pt, .pth or .safetensors")
        arguments.add_argument(
            "--trust-checkpoint",
            action="store_true",
            help="allow the file to run pickled code; only for files from a source you trust",
        )
    arguments.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override configuration values, e.g. --set TRAIN.LR=5e-4 DATA.BATCH=512",
    )
    arguments.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    arguments.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    return arguments


def read(arguments: argparse.ArgumentParser) -> tuple[argparse.Namespace, CfgNode | None]:
    """The parsed arguments and the resolved configuration; --print-config ends here.

    The configuration is None for ``*.py``: detection and segmentation, which mmengine reads (see _dense).
    """
    args = arguments.parse_args()
    if args.config.suffix == ".py":
        require_dense_packages()
        return args, None
    config = load_config(args.config, args.overrides)
    if args.print_config:
        print(dump(config, comments=True), end="")
        sys.exit(0)
    return args, config


def require_dense_packages() -> None:
    """Says what to run where the packages for detection and segmentation are not installed."""
    packages = ("mmengine", "mmcv", "mmdet", "mmseg", "pycocotools")
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"detection and segmentation need {', '.join(missing)}, not installed: bash scripts/setup.sh --dense"
        )


def run(main: Callable[[], None]) -> None:
    """Runs a tool: a user's mistake becomes one line and exit code 2, a training that cannot go on exit code 1."""
    try:
        main()
    except USER_ERRORS as error:
        _fail(error, 2)
    except TrainingError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(error: object, code: int) -> None:
    rank = os.environ.get("RANK", "0")
    print(f"{'' if rank == '0' else f'[rank {rank}] '}error: {error}", file=sys.stderr)
    sys.exit(code)


def check_writable(folder: Path) -> None:
    """Refuses an output folder that could not be written, before any work."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"--output {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"--output {folder}: {existing} is not writable")


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {folder} cannot be made: {error.strerror}") from error


def resume_path(args: argparse.Namespace) -> Path | None:
    """The checkpoint that ``--resume`` names, or None for a fresh run.

    Raises:
        ConfigError: OUTPUT holds a run and nothing says what to do with it.
    """
    last = args.output / f"{LAST}.pt"
    if args.resume is None:
        if last.exists() and not args.overwrite:
            raise ConfigError(
                f"{args.output} holds a run; --resume auto continues it, --overwrite replaces it, "
                "or choose another --output"
            )
        return None
    path = last if args.resume == "auto" else Path(args.resume)
    if args.resume == "auto" and not last.exists():
        return None
    return path / f"{LAST}.pt" if path.is_dir() else path


def start_folder(args: argparse.Namespace, fresh: bool, environment: dict[str, Any]) -> None:
    """Makes the run's folder, clears it of a run that is to be replaced, and notes this launch."""
    folder = args.output
    if fresh and args.overwrite:
        for name in (f"{LAST}.pt", f"{LAST}.safetensors", f"{BEST}.pt", f"{BEST}.safetensors", "log.jsonl"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    make_folder(folder)
    launches = folder / "environment.json"
    before = json.loads(launches.read_text()) if launches.exists() and not fresh else []
    write_json(launches, [*before, {"time": time.strftime("%Y-%m-%d %H:%M:%S"), **environment}])


def find_images(place: Path) -> list[Path]:
    """The image, or all images below a folder.

    Raises:
        DataError: nothing there.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise DataError(f"{place} does not exist")
    endings = set(get_img_extensions())
    if not (paths := sorted(path for path in place.rglob("*") if path.suffix.lower() in endings)):
        raise DataError(f"{place} has no images (of {', '.join(sorted(endings))})")
    return paths
