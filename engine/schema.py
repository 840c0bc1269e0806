"""Every key of the classification configuration: default, type, range and meaning, in one table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .augment_policy import fault
from .trackers import KINDS


@dataclass(frozen=True)
class Key:
    """One entry of the table.

    Attributes:
        default: also gives the type, unless ``kind`` does.
        help: one line for people.
        low, high: the allowed range, both ends included; above, below: both ends excluded.
        instead: what to write instead of a value out of range.
        choices: the allowed values.
        kind: the type, where the default is None.
        of: the type of the items of a tuple.
        listed: whether a list of numbers ``of`` that type may stand in its place; the limits are theirs.
        nullable: whether null is allowed; null: what it stands for.
        empty: whether a string may be empty, for none.
        may_change: whether a resumed run may have another value.
    """

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    instead: str = ""
    choices: tuple[Any, ...] = ()
    kind: type | None = None
    of: type = float
    listed: bool = False
    nullable: bool = False
    null: str = "none"
    empty: bool = False
    may_change: bool = False

    def item(self) -> Key:
        """The rule for one item of a tuple."""
        choices = () if self.listed else self.choices
        return replace(self, default=self.of(), kind=self.of, choices=choices, nullable=False, listed=False)

    def range(self) -> str:
        """The limits in words; empty where there are none."""
        low, high = (first if first is not None else other for first, other in
                     ((self.low, self.above), (self.high, self.below)))  # fmt: skip
        if low is not None and high is not None:
            return f"between {_text(low)} and {_text(high)}"
        limits = (("at least", self.low), ("above", self.above), ("at most", self.high), ("below", self.below))
        return " and ".join(f"{word} {_text(limit)}" for word, limit in limits if limit is not None)

    def excluded(self) -> str:
        """The ends of a range "between" two that do not belong to it, in words."""
        ends = " and ".join(_text(limit) for limit in (self.above, self.below) if limit is not None)
        return ends if self.range().startswith("between") else ""

    def allows(self, value: float) -> bool:
        """Whether a number lies within the limits; one that is not finite never does."""
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def hints(self) -> str:
        """What else a refusal says: the ends that are excluded, what to write instead, and what to write for none."""
        notes = (f"{self.excluded()} excluded" if self.excluded() else "", self.instead, self.none())
        return "".join(f"; {note}" for note in notes if note)

    def none(self) -> str:
        """What to write for none, where that is allowed."""
        return f"null for {self.null}" if self.nullable else "'' for none" if self.empty else ""

    def describe(self) -> str:
        limits = self.allowed()
        if self.range():
            bounds = f"{self.range()}{f', without {self.excluded()}' if self.excluded() else ''}"
            limits = f"{limits} {bounds}" if self.listed else bounds
        return f"{self.help}{f' [{limits}]' if limits else ''}{f' ({self.none()})' if self.none() else ''}"

    def allowed(self) -> str:
        """The choices in words; empty where there are none."""
        words = ", ".join(map(str, self.choices))
        return f"{words or 'a number'}, or a list of numbers" if self.listed else words


def _text(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


_PROBABILITY: dict[str, Any] = dict(low=0.0, high=1.0)
_FLIP: dict[str, Any] = dict(low=0.0, below=1.0, instead="with 1 no image stays as it is; 0.5 is usual, 0 for none")
_OR_NULL: dict[str, Any] = dict(kind=float, nullable=True)
_AVERAGE = dict(instead="0.9999 is usual, which others call a momentum of 0.0001", **_OR_NULL)
_COUNT: dict[str, Any] = dict(high=10**9)
_OF_ONE: dict[str, Any] = dict(low=0.0, high=1.0, instead="numbers of images in 0 … 255 are to be divided by 255")

SCHEMA: dict[str, Key] = {
    # ---- the network
    "MODEL.NAME": Key("elsa_swin_tiny", "a timm model name; ELSA models are registered there"),
    "MODEL.NUM_CLASSES": Key(1000, "classes of the head; must equal those of the data", low=2, high=10**7),
    "MODEL.IN_CHANS": Key(3, "channels of the images", choices=(1, 3)),
    "MODEL.DROP_PATH": Key(0.0, "stochastic depth of the last block, rising linearly from 0", low=0, high=0.9),
    "MODEL.DROP": Key(0.0, "dropout before the head (and after the embedding)", low=0, high=0.9),
    "MODEL.KWARGS": Key({}, "further keyword arguments of the model, e.g. {lam: 1, elsa_kernel: 5}"),
    "MODEL.PRETRAINED": Key("", "checkpoint to start from", empty=True),
    "MODEL.PRETRAINED_IGNORE": Key((), "patterns of tensors not to take from it, e.g. [head.*]", of=str),
    "MODEL.GRAD_CHECKPOINTING": Key(False, "recompute activations in backward to save memory", may_change=True),
    # ---- the data
    "DATA.DATASET": Key("folder", "folder, list, digits, or a timm reader: torch/NAME, hfds/NAME, wds/NAME"),
    "DATA.ROOT": Key("datasets/imagenet", "where the data lies: ROOT/train/CLASS/*, ROOT/val/CLASS/*", may_change=True),
    "DATA.TRAIN_SPLIT": Key("train", "name of the training split, or its list of images and labels (.csv, .txt)"),
    "DATA.VAL_SPLIT": Key("validation", "name of the validation split, or its list; a folder may be called val"),
    "DATA.CLASSES": Key("", "order of the classes: text, natural (0 … 10), or a file of their names", empty=True),
    "DATA.IMAGE_KEY": Key("", "column or ending that holds the image, of list, hfds, hfids, tfds, wds", empty=True),
    "DATA.LABEL_KEY": Key("", "column or field that holds the label, likewise", empty=True),
    "DATA.IMG_SIZE": Key(224, "side of the square input in pixels, or [height, width]", low=8, high=8192,
                         of=int, listed=True),
    "DATA.BATCH": Key(1024, "images per optimizer step, over all processes and TRAIN.ACCUM", low=1, high=10**7),
    "DATA.EVAL_BATCH": Key(128, "images per process in evaluation", low=1, high=10**6, may_change=True),
    "DATA.WORKERS": Key(8, "loader processes per training process", low=0, high=1024, may_change=True),
    "DATA.MEAN": Key((0.485, 0.456, 0.406), "normalisation, per channel of an image in 0 … 1", **_OF_ONE),
    "DATA.STD": Key((0.229, 0.224, 0.225), "normalisation, per channel", **{**_OF_ONE, "low": 0.001}),
    "DATA.SAMPLER": Key("shuffle", "shuffle: every image once an epoch; balanced: an epoch of as many images, of every "
                        "class equally many, those of rare classes again with other augmentation",
                        choices=("shuffle", "balanced")),
    "DATA.CLASS_WEIGHTS": Key("none", "weights w of the classes in the training loss: an image's is the sum of "
                              "w[c] · t[c] · -log p[c] over the classes c, t its target (mixed and smoothed or not), a "
                              "batch's the mean over its images; balanced: images / (classes × images of the class)",
                              choices=("none", "balanced"), listed=True, above=0.0, high=10**6),
    "DATA.MAX_BAD": Key(10, "unreadable images skipped before the run stops", low=0, may_change=True, **_COUNT),
    # ---- augmentation of training images (timm's transforms)
    "AUG.SCALE": Key((0.08, 1.0), "area of the random crop, share of the image", low=0.01, high=1.0),
    "AUG.RATIO": Key((3 / 4, 4 / 3), "aspect ratio of the random crop", low=0.2, high=5.0),
    "AUG.HFLIP": Key(0.5, "probability of a horizontal flip", **_FLIP),
    "AUG.VFLIP": Key(0.0, "probability of a vertical flip", **_FLIP),
    "AUG.COLOR_JITTER": Key(0.0, "strength of colour jitter, without AUG.AUTO_AUGMENT", low=0.0, high=1.0),
    "AUG.AUTO_AUGMENT": Key("rand-m9-mstd0.5-inc1", "timm's policy string", empty=True),
    "AUG.INTERPOLATION": Key("random", "of training images", choices=("random", "bilinear", "bicubic")),
    "AUG.ERASE": Key(0.25, "probability of random erasing", **_PROBABILITY),
    "AUG.ERASE_MODE": Key("pixel", "what erased pixels become", choices=("const", "rand", "pixel")),
    "AUG.MIXUP": Key(0.8, "alpha of mixup; 0 for none", low=0.0, high=100.0),
    "AUG.CUTMIX": Key(1.0, "alpha of cutmix; 0 for none", low=0.0, high=100.0),
    "AUG.MIX_PROB": Key(1.0, "probability of mixup or cutmix on a batch", **_PROBABILITY),
    "AUG.MIX_SWITCH": Key(0.5, "probability of cutmix where both are on", **_PROBABILITY),
    "AUG.SMOOTHING": Key(0.1, "label smoothing", low=0.0, high=0.9, instead="0.1 is usual, 0 for none"),
    # ---- token labeling (arXiv 2104.10858), of models that give token logits: elsa_volo_*
    "TOKENS.ENABLED": Key(False, "a target for the class token and for every patch token; without mixup and cutmix"),
    "TOKENS.LABELS": Key("", "label maps of tools/make_token_labels.py, else the class", empty=True, may_change=True),
    "TOKENS.CLASS_WEIGHT": Key(1.0, "weight of the class token's loss", low=0.0, high=1000.0),
    "TOKENS.PATCH_WEIGHT": Key(0.5, "weight of the patch tokens' loss", low=0.0, high=1000.0),
    "TOKENS.GROUND_TRUTH": Key(False, "mix the image's own class into the class token's target, as in fine-tuning"),
    "TOKENS.MIX": Key(1.0, "alpha of mix-token; 0 for none", low=0.0),
    # ---- optimisation
    "TRAIN.EPOCHS": Key(300, "epochs of the schedule, warm-up included", low=1, high=10**6),
    "TRAIN.COOLDOWN_EPOCHS": Key(10, "further epochs at TRAIN.MIN_LR", low=0, high=10**6),
    "TRAIN.WARMUP_EPOCHS": Key(20, "epochs of linear warm-up from TRAIN.WARMUP_LR", low=0, high=10**6),
    "TRAIN.LR": Key(1e-3, "learning rate for DATA.BATCH; never rescaled, but see TRAIN.LR_RULE", above=0.0, high=100.0),
    "TRAIN.LR_RULE": Key("none", "where the processes cannot share DATA.BATCH: none refuses; linear and sqrt take the "
                         "nearest batch that they can, and scale the learning rates by its ratio or the root",
                         choices=("none", "linear", "sqrt")),
    "TRAIN.WARMUP_LR": Key(1e-6, "learning rate at the start of warm-up", low=0.0, high=100.0),
    "TRAIN.MIN_LR": Key(1e-5, "learning rate at the end of the schedule", low=0.0, high=100.0),
    "TRAIN.SCHEDULE": Key("cosine", "shape of the schedule (timm)", choices=("cosine", "linear", "constant")),
    "TRAIN.LR_EVERY": Key("epoch", "when the learning rate changes", choices=("epoch", "step")),
    "TRAIN.OPTIMIZER": Key("adamw", "a timm optimizer name, apex_fused_adam or apex_fused_lamb"),
    "TRAIN.BETAS": Key((0.9, 0.999), "of Adam-like optimizers", low=0.0, below=1.0),
    "TRAIN.EPS": Key(1e-8, "of Adam-like optimizers", low=1e-30, high=0.1, instead="1e-8 is usual"),
    "TRAIN.MOMENTUM": Key(0.9, "of SGD-like optimizers", low=0.0, below=1.0),
    "TRAIN.WEIGHT_DECAY": Key(0.05, "not applied to biases, norms and what the model exempts", low=0.0, high=10.0),
    "TRAIN.NO_DECAY": Key((), "patterns of further exempt parameters, e.g. ['*.rb', '*.ghost_head']", of=str),
    "TRAIN.FREEZE": Key((), "patterns of parameters that do not learn, e.g. ['patch_embed.*', 'layers.[01].*']; "
                        "drop path and the statistics of batch norm go on in them", of=str),
    "TRAIN.LAYER_DECAY": Key(None, "layer-wise learning-rate decay", low=0.1, high=1.0, **_OR_NULL),
    "TRAIN.CLIP_GRAD": Key(5.0, "largest gradient norm", low=1e-6, **_OR_NULL),
    "TRAIN.EARLY_STOP": Key(0, "epochs without an evaluation better than the best that end the training; 0: never",
                            low=0, may_change=True, **_COUNT),
    "TRAIN.ACCUM": Key(None, "micro-batches per optimizer step", kind=int, low=1, high=10**6, may_change=True,
                       nullable=True, null="the fewest whose memory, as estimated, a GPU has; 1 on a CPU"),
    "TRAIN.EMA_DECAY": Key(None, "decay of the weights' moving average", low=0.5, below=1.0, **_AVERAGE),
    "TRAIN.SEED": Key(0, "of everything random; same seed, same run on a CPU", low=0, high=2**31 - 1),
    "TRAIN.COMPILE": Key(False, "torch.compile training and its evaluations; the first step takes minutes",
                         may_change=True),
    "TRAIN.PARALLEL": Key("ddp", "ddp: each process holds the whole model; fsdp: a part (FSDP2)",
                          choices=("ddp", "fsdp"), may_change=True),
    "TRAIN.TIMEOUT": Key(10.0, "minutes after which a silent process ends the run", above=0.0, high=10080.0,
                         may_change=True),
    "TRAIN.MAX_SKIPPED": Key(10, "most steps in a row skipped for gradients that are not finite; one more ends the run",
                             low=0, may_change=True, **_COUNT),
    # ---- evaluation
    "EVAL.EVERY": Key(1, "epochs between evaluations; the last epoch always counts", low=1, **_COUNT),
    "EVAL.CROP": Key(0.9, "side of the centre crop over the short side", low=0.25, high=2.0, instead="0.9 is 90 %"),
    "EVAL.INTERPOLATION": Key("bicubic", "of evaluation images", choices=("bilinear", "bicubic", "nearest")),
    "EVAL.WEIGHTS": Key("auto", "auto: the EMA where there is one", choices=("auto", "model", "ema")),
    # ---- mixed precision
    "AMP.ENABLED": Key(True, "autocast; on a CPU only where AMP.DTYPE names a type"),
    "AMP.BACKEND": Key("native", "torch itself, or NVIDIA's apex.amp (float16)", choices=("native", "apex")),
    "AMP.DTYPE": Key("auto", "auto: bfloat16 where the GPU has it, else float16, whose loss is scaled",
                     choices=("auto", "bfloat16", "float16")),
    # ---- logs and checkpoints
    "LOG.EVERY": Key(50, "steps between log lines", low=1, may_change=True, **_COUNT),
    "LOG.SAVE_STEPS": Key(0, "steps between saves within an epoch, 0 for none", low=0, may_change=True, **_COUNT),
    "LOG.TENSORBOARD": Key(True, "write TensorBoard files", may_change=True),
    "LOG.IMAGES": Key(0, "images in TensorBoard of a batch and of predictions, at each evaluation", low=0, high=64,
                      may_change=True),
    "LOG.TRACKERS": Key((), "trackers of experiments that get the numbers too, e.g. [wandb]", of=str,
                        choices=tuple(KINDS), may_change=True),
}  # fmt: skip


def check_together(values: dict[str, Any]) -> Iterator[str]:
    """Problems that one key alone does not show."""
    epochs, warmup = values["TRAIN.EPOCHS"], values["TRAIN.WARMUP_EPOCHS"]
    if warmup >= epochs:
        yield f"TRAIN.WARMUP_EPOCHS {warmup} must be smaller than TRAIN.EPOCHS {epochs}"
    if values["TRAIN.MIN_LR"] > values["TRAIN.LR"]:
        yield f"TRAIN.MIN_LR {values['TRAIN.MIN_LR']:g} is larger than TRAIN.LR {values['TRAIN.LR']:g}"
    if warmup and values["TRAIN.WARMUP_LR"] > values["TRAIN.LR"]:
        yield (
            f"TRAIN.WARMUP_LR {values['TRAIN.WARMUP_LR']:g} is larger than TRAIN.LR {values['TRAIN.LR']:g}: "
            "warm-up rises from it"
        )
    if values["MODEL.PRETRAINED_IGNORE"] and not values["MODEL.PRETRAINED"]:
        yield "MODEL.PRETRAINED_IGNORE has no effect without MODEL.PRETRAINED: write []"
    if problem := fault(values["AUG.AUTO_AUGMENT"]):
        yield f"AUG.AUTO_AUGMENT {values['AUG.AUTO_AUGMENT']!r} {problem}; {SCHEMA['AUG.AUTO_AUGMENT'].none()}"
    weights, classes = values["DATA.CLASS_WEIGHTS"], values["MODEL.NUM_CLASSES"]
    if isinstance(weights, tuple) and len(weights) != classes:
        yield f"DATA.CLASS_WEIGHTS needs one number per class (MODEL.NUM_CLASSES {classes}), got {len(weights)}"
    if values["TOKENS.ENABLED"] and weights != "none":
        yield "DATA.CLASS_WEIGHTS has no meaning for token labels, which spread an image over classes: write none"
    if values["DATA.SAMPLER"] == weights == "balanced":
        yield "DATA.SAMPLER and DATA.CLASS_WEIGHTS are both balanced, which evens out the classes twice: keep one"
    if values["TOKENS.ENABLED"] and not values["TOKENS.CLASS_WEIGHT"] + values["TOKENS.PATCH_WEIGHT"]:
        yield "TOKENS.CLASS_WEIGHT and TOKENS.PATCH_WEIGHT are both 0: nothing would be learned"
    if values["TRAIN.LR_RULE"] == "none" and values["DATA.BATCH"] % (values["TRAIN.ACCUM"] or 1):
        yield f"DATA.BATCH {values['DATA.BATCH']} is no multiple of TRAIN.ACCUM {values['TRAIN.ACCUM']}"
    if values["TOKENS.ENABLED"] and values["AUG.MIX_PROB"] and (values["AUG.MIXUP"] or values["AUG.CUTMIX"]):
        yield "TOKENS.ENABLED mixes tokens: AUG.MIXUP and AUG.CUTMIX must be 0"
    if values["TOKENS.LABELS"] and not values["TOKENS.ENABLED"]:
        yield f"TOKENS.LABELS {values['TOKENS.LABELS']} has no effect unless TOKENS.ENABLED is true"
    jitter, policy = values["AUG.COLOR_JITTER"], values["AUG.AUTO_AUGMENT"]
    if jitter and policy and "3a" not in policy:
        yield f"AUG.COLOR_JITTER {jitter:g} has no effect beside AUG.AUTO_AUGMENT {policy!r}: write 0, or '' for it"
    for name in ("AUG.SCALE", "AUG.RATIO", "TRAIN.BETAS", "DATA.IMG_SIZE"):
        if isinstance(values[name], tuple) and len(values[name]) != 2:
            yield f"{name} needs 2 numbers, got {list(values[name])}"
    for name in ("AUG.SCALE", "AUG.RATIO", "TRAIN.BETAS"):
        if values[name][0] > values[name][1]:
            yield f"{name} must rise, got {list(values[name])}"
    for name in ("DATA.MEAN", "DATA.STD"):
        if len(values[name]) != values["MODEL.IN_CHANS"]:
            yield f"{name} needs one number per channel ({values['MODEL.IN_CHANS']}), got {list(values[name])}"
    if values["LOG.IMAGES"] and not values["LOG.TENSORBOARD"]:
        yield f"LOG.IMAGES {values['LOG.IMAGES']} has no effect unless LOG.TENSORBOARD is true"
    if values["AMP.BACKEND"] == "apex":
        if not values["AMP.ENABLED"]:
            yield "AMP.BACKEND apex has no effect unless AMP.ENABLED is true"
        if values["AMP.DTYPE"] == "bfloat16":
            yield "AMP.BACKEND apex computes in float16, and AMP.DTYPE is bfloat16: write float16, or native"
        for name, value in (("TRAIN.PARALLEL", "fsdp"), ("TRAIN.COMPILE", True)):
            if values[name] == value:
                yield f"AMP.BACKEND apex works without {name} {str(value).lower()} only: write native"
    if values["EVAL.WEIGHTS"] == "ema" and values["TRAIN.EMA_DECAY"] is None:
        yield "EVAL.WEIGHTS is ema, but TRAIN.EMA_DECAY is null: no average is kept"
