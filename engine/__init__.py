"""Training and evaluation of any nn.Module on any loader: recipe, plan, steps, loop, checkpoints, logs."""

from elsa.core import (
    ConfigError,
    TrainingError,
    logger,
    seed_everything,
    setup_logging,
    sha256,
    write_json,
    write_text,
    write_then_rename,
)

from .analysis import BINS, Calibration, ClassCounts, calibrate, count_classes
from .checkpoint import BEST, LAST, PREVIOUS
from .config import dump, flatten, load_config, load_recipe, plain, restore_recipe, split_overrides
from .distributed import Runtime, distributed
from .evaluate import Metrics, Predictions, evaluate, mistakes_first
from .launcher import forbid_restarts, join_slurm
from .logbook import Logbook, peak_memory_gb, read_log
from .losses import TokenLabelLoss, WeightedCrossEntropy
from .optim import build_optimizer, build_schedule, freeze
from .options import Options, read_options
from .parallel import Parallel, choose_parallel
from .plan import Batch, Plan, Recipe, divisions
from .precision import Precision, by_apex, choose_precision, fit_precision
from .run import RunFolder, describe_environment
from .signals import StopRequest
from .step import Schedule, Step, StepRecord, TokenLabelStep, TrainState, TrainStep
from .trainer import Evaluation, Trainer
from .views import FLIPS, AveragedViews

__all__ = [
    "BEST",
    "BINS",
    "FLIPS",
    "LAST",
    "PREVIOUS",
    "AveragedViews",
    "Batch",
    "Calibration",
    "ClassCounts",
    "ConfigError",
    "Evaluation",
    "Logbook",
    "Metrics",
    "Options",
    "Parallel",
    "Plan",
    "Precision",
    "Predictions",
    "Recipe",
    "RunFolder",
    "Runtime",
    "Schedule",
    "Step",
    "StepRecord",
    "StopRequest",
    "TokenLabelLoss",
    "TokenLabelStep",
    "TrainState",
    "TrainStep",
    "Trainer",
    "TrainingError",
    "WeightedCrossEntropy",
    "build_optimizer",
    "build_schedule",
    "by_apex",
    "calibrate",
    "choose_parallel",
    "choose_precision",
    "count_classes",
    "describe_environment",
    "distributed",
    "divisions",
    "dump",
    "evaluate",
    "fit_precision",
    "flatten",
    "forbid_restarts",
    "freeze",
    "join_slurm",
    "load_config",
    "load_recipe",
    "logger",
    "mistakes_first",
    "peak_memory_gb",
    "plain",
    "read_log",
    "read_options",
    "restore_recipe",
    "seed_everything",
    "setup_logging",
    "sha256",
    "split_overrides",
    "write_json",
    "write_text",
    "write_then_rename",
]
