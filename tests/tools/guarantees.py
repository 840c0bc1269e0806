"""What the suite of guarantees needs: a case for each task, and comparisons of what runs leave."""

from __future__ import annotations

import json
import struct
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors.torch
import torch


@dataclass
class Case:
    """A small recipe of a task, and how the same things are said in each.

    Attributes:
        metric: what the best checkpoint has most of; images: of the validation split.
        keys: what is set → the key's name; bf16: ``--set`` for it.
        single: options of evaluate that make it as the training's evaluation.
    """

    task: str
    recipe: Path
    metric: str
    data: Path
    images: int
    keys: dict[str, str]
    bf16: list[str]
    single: list[str] = field(default_factory=list)

    def set(self, **values: object) -> list[str]:
        """``--set`` with the task's names: save, accumulate, ema, clip, data, workers, skipped."""
        return ["--set", *(f"{self.keys[name]}={value}" for name, value in values.items())]

    @property
    def saved_recipe(self) -> str:
        return "config.yaml" if self.task == "classification" else "config.py"


KEYS = dict(save="LOG.SAVE_STEPS", accumulate="TRAIN.ACCUM", ema="TRAIN.EMA_DECAY", clip="TRAIN.CLIP_GRAD",
            data="DATA.ROOT", workers="DATA.WORKERS", skipped="TRAIN.MAX_SKIPPED")  # fmt: skip
DENSE_KEYS = dict(save="train_cfg.save_steps", accumulate="optim_wrapper.accumulative_counts", ema="run.ema_decay",
                  clip="optim_wrapper.clip_grad", data="data_root", workers="train_dataloader.num_workers",
                  skipped="run.max_skipped")  # fmt: skip
BF16 = ["AMP.ENABLED=true", "AMP.DTYPE=bfloat16"]
DENSE_BF16 = ["optim_wrapper.type=AmpOptimWrapper", "optim_wrapper.dtype=bfloat16"]

# Appended to a recipe, these make the gradient of a batch the mean of its images' gradients, whatever images they are
# with: no drop path, mixing or batch norm, images of one size, all anchors and proposals sampled (none suppressed, none
# ignored, none positive but the objects themselves), losses divided by numbers that are the same for each image; and
# SGD, which does not magnify rounding.
LINEAR = {
    "classification": """
AUG: {MIXUP: 0, CUTMIX: 0}
""",
    "detection": """
model["backbone"]["drop_path_rate"] = 0.0
_smooth = dict(_delete_=True, type="SmoothL1Loss", beta=1.0, loss_weight=1.0)  # the gradient of L1 jumps at zero
model["rpn_head"] = dict(anchor_generator=dict(ratios=[1.0, 2.0]), loss_bbox=_smooth)
_all = dict(num=10**6, pos_fraction=1.0)
model["train_cfg"] = dict(
    rpn=dict(assigner=dict(pos_iou_thr=0.5, neg_iou_thr=0.5), sampler=_all),
    rpn_proposal=dict(nms_pre=10**6, max_per_img=10**6, nms=dict(iou_threshold=1.0), min_bbox_size=-1),
    rcnn=dict(assigner=dict(pos_iou_thr=0.999, neg_iou_thr=0.999, min_pos_iou=0.999, match_low_quality=False),
              sampler=_all),
)
train_dataloader["dataset"]["dataset"]["pipeline"] = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(64, 64), keep_ratio=False),
    dict(type="PackDetInputs"),
]
optim_wrapper = dict(optimizer=dict(_delete_=True, type="SGD", lr=0.05, momentum=0.9, weight_decay=0.01))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.5, by_epoch=False, begin=0, end=3),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=2, milestones=[1], gamma=0.5),
]
""",
    "segmentation": """
model["backbone"]["drop_path_rate"] = 0.0
_norm = dict(type="GN", num_groups=4, requires_grad=True)
_loss = dict(_delete_=True, type="CrossEntropyLoss", loss_weight=1.0)
model["decode_head"].update(norm_cfg=_norm, loss_decode=_loss)
model["auxiliary_head"] = dict(norm_cfg=_norm, loss_decode=_loss)
model["data_preprocessor"] = dict(size=(64, 64))
train_dataloader["dataset"]["dataset"]["pipeline"] = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadCheckedAnnotations"),
    dict(type="Resize", scale=(64, 64), keep_ratio=False),
    dict(type="PackSegInputs"),
]
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=0.05, momentum=0.9, weight_decay=0.01),
    paramwise_cfg=dict(_delete_=True),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.5, by_epoch=False, begin=0, end=3),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=3, end=6),
]
""",
}


def content(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def records(folder: Path, kind: str) -> list[dict]:
    return [record for record in map(json.loads, (folder / "log.jsonl").open()) if record["kind"] == kind]


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".") or path.name.endswith(".tmp")]


def assert_same_run(one: Path, other: Path) -> None:
    """Last and best checkpoint with all they hold, and the weights, to the last bit; the log and the summary tell the
    same, each step and each evaluation once; nothing is left over."""
    for name in ("last.pt", "best.pt"):
        first, second = content(one / name), content(other / name)
        assert first.keys() == second.keys()
        for entry in first.keys() - {"config", "recipe"}:  # LOG.SAVE_STEPS, the data's place and others may differ
            assert same(first[entry], second[entry]), (name, entry)
    for name in ("last.safetensors", "best.safetensors"):
        assert (other / name).exists(), name
    told = [[(record["step"], record["lr"]) for record in records(folder, "eval")] for folder in (one, other)]
    assert told[0] == told[1]
    lines = [[(record["step"], record["lr"]) for record in records(folder, "train")] for folder in (one, other)]
    assert lines[1] == sorted(set(lines[1])) and set(lines[0]) <= set(lines[1])
    best = [json.loads((folder / "summary.json").read_text())["best"] for folder in (one, other)]
    assert best[0] == best[1]
    assert left_over(other) == []


def saved(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """The weights that were evaluated, by name."""
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


def weights(path: Path) -> torch.Tensor:
    """All parameters in a row; statistics of batch norm are none."""
    state = content(path)["state_dict"]
    names = [name for name in sorted(state) if state[name].is_floating_point() and "running_" not in name]
    return torch.cat([state[name].double().flatten() for name in names])


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)  # nan: a class that the images do not have


def is_finite(path: Path) -> bool:
    """Whether all tensors of a checkpoint are: weights, average and optimizer."""

    def tensors(value: object) -> list[torch.Tensor]:
        items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
        return [value] if isinstance(value, torch.Tensor) else [tensor for item in items for tensor in tensors(item)]

    return all(torch.isfinite(tensor).all() for tensor in tensors(content(path)))


def payload(path: Path) -> np.ndarray:
    """Positions of the bytes of a checkpoint's records: of tensors, and of what torch pickles about them."""
    if path.suffix == ".safetensors":
        (length,) = struct.unpack("<Q", path.read_bytes()[:8])
        return np.arange(8 + length, path.stat().st_size)
    places = []
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        for record in archive.infolist():
            stream.seek(record.header_offset + 26)  # lengths of name and extra field in the record's own header
            name, extra = struct.unpack("<HH", stream.read(4))
            start = record.header_offset + 30 + name + extra
            places.append(np.arange(start, start + record.file_size))
    return np.concatenate(places)
