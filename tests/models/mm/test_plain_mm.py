"""docs/plain-mm.md, every block of it: our backbones with mm's own Runner, inferencers and scripts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elsa.models import VARIANTS, ELSASwin
from elsa.models.mm import DenseBackbone

# What makes the page's configurations small enough for a test; they are its ``_base_``.
SMALL_DETECTOR = """
_base_ = "page/detector.py"
slim = dict(in_channels=32)
model = dict(
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(variant="elsa_swin_nano", pretrained="classifier.pt"),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=32),
    rpn_head=dict(in_channels=32, feat_channels=32, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=32),
        bbox_head=dict(in_channels=32, fc_out_channels=64),
        mask_roi_extractor=dict(out_channels=32),
        mask_head=dict(num_convs=1, in_channels=32, conv_out_channels=32),
    ),
    train_cfg=dict(rpn_proposal=dict(nms_pre=100, max_per_img=50), rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=dict(nms_pre=100, max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=5)),
)
image = dict(type="LoadImageFromFile")
labels = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)
resize = dict(type="Resize", scale=(64, 64), keep_ratio=True)
keys = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
train_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(pipeline=[image, labels, resize, dict(type="PackDetInputs")])
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False,
    dataset=dict(pipeline=[image, resize, labels, dict(type="PackDetInputs", meta_keys=keys)]),
)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""
SMALL_SEGMENTOR = """
_base_ = "page/segmentor.py"
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(variant="elsa_swin_nano", pretrained="classifier.pt"),
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=16),
    auxiliary_head=dict(in_channels=128, channels=16),
)
image, labels = dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", reduce_zero_label=True)
resize, crop = dict(type="Resize", scale=(64, 64), keep_ratio=True), dict(type="RandomCrop", crop_size=(64, 64))
pack = dict(type="PackSegInputs")
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=[image, labels, resize, crop, pack])
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=[image, resize, labels, pack]))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


@pytest.fixture(scope="module")
def page(root) -> dict[str, list[tuple[str, str]]]:
    """{heading: [(language, code)]} of docs/plain-mm.md."""
    heading, blocks = "", {}
    text = (root / "docs/plain-mm.md").read_text()
    for found in re.finditer(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        heading = found[1] or heading
        if found[2]:
            blocks.setdefault(heading, []).append((found[2], found[3]))
    return blocks


def run(folder: Path, *command: str) -> str:
    """What a command that succeeds says, in a process of its own: mm's registries and loggers are global."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def prepare(folder: Path, config: str, small: str) -> Path:
    """The page's configuration under ``page``, a small one of the same name based on it, and a classifier."""
    (folder / "page").mkdir()
    name = config.split("\n")[0].removeprefix("# ")
    (folder / "page" / name).write_text(config)
    (folder / name).write_text(small)
    torch.save({"state_dict": ELSASwin(**asdict(VARIANTS["elsa_swin_nano"])).state_dict()}, folder / "classifier.pt")
    return folder


def like_ours(run_folder: Path, classes: list[str], palette: list[list[int]] | None = None) -> None:
    """Writes ``runs/ours/last.pt`` as our trainer does, with the weights of mm's checkpoint and other class names."""
    theirs = Path((run_folder / "last_checkpoint").read_text())
    weights = torch.load(theirs, weights_only=False)["state_dict"]
    meta = {"dataset_meta": {"classes": classes, **({"palette": palette} if palette else {})}}
    empty = {name: {} for name in ("config", "data", "optimizer", "scaler", "schedule")}
    numbers = dict.fromkeys(("step", "epoch", "last_eval", "best_step", "loss_steps", "skipped", "skipped_in_row"), 0)
    ours = {"format": 3, "task": "", "arch": "", **empty, **numbers, "best": 0.0, "loss_sum": 0.0, "history": []}
    (run_folder.parent / "ours").mkdir()
    torch.save({**ours, "state_dict": weights, "classes": classes, "meta": meta}, run_folder.parent / "ours/last.pt")


def write_label_maps(root: Path) -> None:
    """Squares of three classes in ADE20K's layout, 4 images to train with and 2 to validate; the rest is unlabelled."""
    random = np.random.default_rng(0)
    for split, count in (("training", 4), ("validation", 2)):
        for folder in ("images", "annotations"):
            (root / folder / split).mkdir(parents=True)
        for number in range(1, count + 1):
            pixels, labels = random.integers(0, 60, (64, 64, 3), dtype=np.uint8), np.zeros((64, 64), np.uint8)
            for label in (1, 2, 3):
                x, y = random.integers(0, 40, 2)
                pixels[y : y + 20, x : x + 20], labels[y : y + 20, x : x + 20] = 80 * label, label
            Image.fromarray(pixels).save(root / "images" / split / f"{number:03d}.jpg")
            Image.fromarray(labels).save(root / "annotations" / split / f"{number:03d}.png")


def test_detection(page, tmp_path, write_coco):
    (_, config), (_, train), (_, predict), (language, scripts) = page["Detection"]
    prepare(tmp_path, config, SMALL_DETECTOR)
    write_coco(tmp_path / "datasets/parts", ("bolt", "nut", "washer"), train=4, val=2)
    said = run(tmp_path, sys.executable, "-c", train)
    assert "coco/segm_mAP" in said.splitlines()[-1]
    (numbers,) = (tmp_path / "runs/detector").glob("*/vis_data/scalars.json")
    losses = [line["loss"] for line in map(json.loads, numbers.read_text().splitlines()) if "loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()

    like_ours(tmp_path / "runs/detector", ["a", "b", "c"])
    said = run(tmp_path, sys.executable, "-c", predict)
    assert re.search(r"^\[[012](, [012]){4}\] \[0\.\d+(, 0\.\d+){4}\]$", said, re.M)
    assert re.search(r"^.'a', 'b', 'c'. 5$", said, re.M)
    assert (tmp_path / "runs/found/vis/001.jpg").exists()

    ((_, weights),) = page["From the Runner to our tools"]
    run(tmp_path, sys.executable, "-c", weights)
    backbone = DenseBackbone("elsa_swin_nano", pretrained=str(tmp_path / "runs/detector/weights.pt"))
    backbone.init_weights()
    assert backbone.load_report.loaded == backbone.load_report.total

    assert language == "bash"
    assert "coco/bbox_mAP" in run(tmp_path, "bash", "-euc", scripts)


def test_segmentation(page, tmp_path):
    (_, config), (_, train), (_, predict) = page["Segmentation"]
    prepare(tmp_path, config, SMALL_SEGMENTOR)
    write_label_maps(tmp_path / "datasets/land")
    assert "'mIoU'" in run(tmp_path, sys.executable, "-c", train).splitlines()[-1]
    like_ours(tmp_path / "runs/segmentor", ["a", "b", "c"], [[0, 0, 0], [9, 9, 9], [99, 99, 99]])
    said = run(tmp_path, sys.executable, "-c", predict)
    assert re.search(r"^\(64, 64\)$", said, re.M)
    assert re.search(r"^.'a', 'b', 'c'. torch\.Size\(\[1, 64, 64\]\)$", said, re.M)


def test_a_forgotten_import_is_made_up_for_and_registers_everything(tmp_path):
    """Without a compiled mmcv the first attempt fails; the page says how to go on."""
    run(tmp_path, sys.executable, "-c", """
import contextlib
from mmengine.registry import MODELS
with contextlib.suppress(ModuleNotFoundError):
    import mmdet.apis
import elsa.models.mm
import mmdet.apis, mmseg.apis
assert MODELS.get("DenseBackbone") and MODELS.get("ClassWeightedLoss")
import elsa.models.mm.roi
assert MODELS.get("Float32RoIExtractor")
""")  # fmt: skip


def test_a_misspelt_script_is_named(tmp_path):
    command = (sys.executable, "-m", "elsa.models.mm", "mmdet", "tset")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("error: 'tset' is no script of mmdet; did you mean test?")
