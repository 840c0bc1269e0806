"""What all tools share: arguments, and how a mistake is told."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from yacs.config import CfgNode

from elsa.data import DataError
from elsa.engine import ConfigError, TrainingError, dump, load_config
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


def read(arguments: argparse.ArgumentParser) -> tuple[argparse.Namespace, CfgNode]:
    """The parsed arguments and the resolved configuration; --print-config ends here."""
    args = arguments.parse_args()
    config = load_config(args.config, args.overrides)
    if args.print_config:
        print(dump(config, comments=True), end="")
        sys.exit(0)
    return args, config


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


def check_writable(folder: Path, option: str = "--output") -> None:
    """Refuses an output folder that could not be written, before any work."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{option} {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {folder}: {existing} is not writable")


def make_folder(folder: Path, option: str = "--output") -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option} {folder} cannot be made: {error.strerror}") from error
