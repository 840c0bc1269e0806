"""What every package needs: errors, seeds, files that are whole or not there, logging. Imports nothing of ours."""

from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    ProcessLost,
    TrainingError,
    UnreadableData,
    UserError,
    did_you_mean,
    one_line,
)
from .files import (
    check_writable,
    make_folder,
    sha256,
    sweep,
    to_json,
    write_folder,
    write_json,
    write_text,
    write_then_rename,
)
from .heap import keep_freed_memory
from .locks import lock_file
from .log import logger, setup_logging, silence, without_warnings
from .progress import Progress
from .seeds import mix_seed, seed_everything
from .version import __version__

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ProcessLost",
    "Progress",
    "TrainingError",
    "UnreadableData",
    "UserError",
    "__version__",
    "check_writable",
    "did_you_mean",
    "keep_freed_memory",
    "lock_file",
    "logger",
    "make_folder",
    "mix_seed",
    "one_line",
    "seed_everything",
    "setup_logging",
    "sha256",
    "silence",
    "sweep",
    "to_json",
    "without_warnings",
    "write_folder",
    "write_json",
    "write_text",
    "write_then_rename",
]
