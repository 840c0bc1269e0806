"""Training and evaluation of any nn.Module on any loader: configuration, steps, loop, checkpoints, logs."""

from .checkpoint import BEST, LAST, sha256, write_json, write_text, write_then_rename
from .config import ConfigError, differences, dump, flatten, load_config, plain
from .evaluate import Metrics, evaluate, mistakes_first
from .logbook import Logbook, peak_memory_gb, read_log
from .losses import TokenLabelLoss
from .optim import build_optimizer, build_schedule
from .precision import Precision, choose_precision
from .runtime import (
    Runtime,
    StopRequest,
    describe_environment,
    distributed,
    logger,
    seed_everything,
    setup_logging,
)
from .step import StepRecord, TokenLabelStep, TrainState, TrainStep
from .train import Trainer, TrainingError

__all__ = [
    "BEST",
    "LAST",
    "ConfigError",
    "Logbook",
    "Metrics",
    "Precision",
    "Runtime",
    "StepRecord",
    "StopRequest",
    "TokenLabelLoss",
    "TokenLabelStep",
    "TrainState",
    "TrainStep",
    "Trainer",
    "TrainingError",
    "build_optimizer",
    "build_schedule",
    "choose_precision",
    "describe_environment",
    "differences",
    "distributed",
    "dump",
    "evaluate",
    "flatten",
    "load_config",
    "logger",
    "mistakes_first",
    "peak_memory_gb",
    "plain",
    "read_log",
    "seed_everything",
    "setup_logging",
    "sha256",
    "write_json",
    "write_text",
    "write_then_rename",
]
