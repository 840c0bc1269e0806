"""Training, resuming, evaluating and predicting with a detector, as a user does it."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "run"


@pytest.fixture
def trained(tool, detector, run_folder):
    """The folder of an uninterrupted run, the same for all tests: read only."""
    if not run_folder.exists():
        outcome = tool("train", detector, "--output", run_folder)
        assert outcome.code == 0, outcome.err
    return run_folder


def read(path):
    return json.loads(path.read_text())


def test_train_evaluate_predict(tool, detector, trained, coco, tmp_path):
    """The three verbs on one run; what they leave is what they say."""
    summary, log = read(trained / "summary.json"), [json.loads(line) for line in (trained / "log.jsonl").open()]
    assert summary["iterations"] == 8
    train = [record for record in log if record["kind"] == "train"]
    assert [record["step"] for record in train] == [2, 4, 6, 8]
    assert {"loss", "loss_mask", "lr", "images_per_s", "data_wait", "memory_gb", "epoch"} <= set(train[0])
    assert train[0]["lr"] < train[-1]["lr"] <= 1e-3
    for name in ("best.pt", "best.safetensors", "last.pt", "last.safetensors", "config.py", "environment.json"):
        assert (trained / name).is_file()
    assert list((trained / "tensorboard").iterdir())
    assert np.asarray(Image.open(trained / "curves.png").convert("L")).std() > 10
    assert {path.suffix for path in trained.iterdir()} <= {
        ".pt",
        ".safetensors",
        ".py",
        ".json",
        ".jsonl",
        ".png",
        ".log",
        "",
    }

    outcome = tool(
        "evaluate", detector, trained / "last.pt", "--output", tmp_path / "eval", "--pictures", "2", "--per-class"
    )
    assert outcome.code == 0, outcome.err
    results = read(tmp_path / "eval" / "results.json")
    assert results["count"] == 3
    last = [record for record in log if record["kind"] == "eval"][-1]
    for kind in ("bbox", "segm"):
        assert results["metrics"][f"coco/{kind}_mAP"] == last[f"coco/{kind}_mAP"] == summary["last"][f"coco/{kind}_mAP"]
        assert {f"coco/{kind}_{column}" for column in ("mAP_50", "mAP_75", "mAP_s", "AR@100", "AR_l@1000")} <= set(
            results["metrics"]
        )
        assert {f"coco/{kind}_AP/{digit}" for digit in range(10)} <= set(results["metrics"])
    assert np.asarray(Image.open(tmp_path / "eval" / "predictions.png").convert("L")).std() > 10

    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "bad.jpg").write_bytes(b"no image")
    (folder / "good.jpg").write_bytes((coco / "val2017" / "001.jpg").read_bytes())
    outcome = tool(
        "predict", detector, trained / "best.safetensors", folder, "--output", tmp_path / "said", "--threshold", "0"
    )
    assert outcome.code == 0, outcome.err
    assert "bad.jpg" in outcome.err
    assert len(list((tmp_path / "said").glob("*.png"))) == 1
    said = read(tmp_path / "said" / "predictions.json")
    assert [image["file_name"] for image in said["images"]] == [str(folder / "good.jpg")]
    assert [category["name"] for category in said["categories"]] == list("0123456789")
    index = COCO()
    index.dataset = said
    index.createIndex()
    for annotation in said["annotations"]:
        mask = coco_masks.decode(annotation["segmentation"])
        assert mask.shape == (said["images"][0]["height"], said["images"][0]["width"])
        assert mask.sum() == annotation["area"]
        assert annotation["category_id"] in index.cats


def test_an_image_that_cannot_be_read_is_left_out_and_counted(tool, detector, coco, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(coco, root)
    (root / "train2017" / "003.jpg").write_bytes(b"\xff\xd8 cut")
    outcome = tool("train", detector, "--output", tmp_path / "run", "--set", f"data_root={root}")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("skipping") == 1
    assert read(tmp_path / "run" / "summary.json")["unreadable"][0].startswith(str(root / "train2017" / "003.jpg"))
    for number in (1, 2):
        (root / "train2017" / f"00{number}.jpg").write_bytes(b"\xff\xd8 cut")
    outcome = tool("train", detector, "--output", tmp_path / "other", "--set", f"data_root={root}")
    assert outcome.code == 1
    assert "3 images cannot be read (max_bad is 2)" in outcome.err.splitlines()[-1]


def test_a_detector_that_finds_nothing_has_an_ap_of_zero(tool, detector, trained, tmp_path):
    options = ["--set", "model.test_cfg.rcnn.score_thr=1.0", "train_cfg.max_epochs=1"]
    indivisible = "optim_wrapper.accumulative_counts=5"  # a matter of training alone
    outcome = tool("evaluate", detector, trained / "last.pt", "--output", tmp_path / "eval", *options, indivisible)
    assert outcome.code == 0, outcome.err
    metrics = read(tmp_path / "eval" / "results.json")["metrics"]
    assert metrics["coco/bbox_mAP"] == metrics["coco/segm_AR_l@1000"] == 0
    assert tool("train", detector, "--output", tmp_path / "run", *options).code == 0
    assert read(tmp_path / "run" / "summary.json")["last"]["coco/bbox_mAP"] == 0


def test_a_run_that_diverges_is_ended(tool, detector, tmp_path):
    outcome = tool("train", detector, "--output", tmp_path / "run", "--set", "optim_wrapper.optimizer.lr=100",
                   "param_scheduler.0.start_factor=1.0", "run.max_skipped=2")  # fmt: skip
    assert outcome.code == 1
    ended = r" is (nan|inf) at step \d+ \(epoch \d\), the 3rd such step in a row: loss "  # which, depends on rounding
    assert re.search(ended, outcome.err.splitlines()[-1])
    assert "Traceback" not in outcome.err
