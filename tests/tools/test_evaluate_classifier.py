"""What an evaluation of a classifier leaves: classes, confusions, calibration, a table of predictions."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

KWARGS = dict(embed_dim=8, num_heads=[1, 1, 2, 2], elsa_kernel=3, window_size=3)


@pytest.fixture
def checkpoint(tmp_path):
    """The small network with random weights that give every class some images."""
    torch.manual_seed(3)
    model = timm.create_model("elsa_swin_nano", num_classes=4, img_size=32, **KWARGS)
    torch.nn.init.normal_(model.head.weight)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def evaluated(tool, config, checkpoint, tmp_path):
    """``evaluated(name, *options)`` → results.json and the rows of the table."""

    def call(name, *options):
        table = tmp_path / name / "table.csv"
        outcome = tool("evaluate", config, checkpoint, "--output", tmp_path / name, "--predictions", table, *options)
        assert outcome.code == 0, outcome.err
        return read(tmp_path / name)

    return call


def read(folder):
    with (folder / "table.csv").open(newline="") as file:
        return json.loads((folder / "results.json").read_text()), list(csv.DictReader(file))


def matrix(results):
    whole = np.zeros((4, 4), int)
    for true, predicted, images in results["confusion"]["cells"]:
        whole[true, predicted] = images
    return whole


def test_the_results_agree_with_the_table_of_predictions(evaluated, images, tmp_path):
    results, rows = evaluated("out")
    assert [row["image"] for row in rows] == [f"{images}/val/class{c}/{n}.png" for c in range(4) for n in range(5)]
    assert [row["true"] for row in rows] == [f"class{c}" for c in range(4) for _ in range(5)]
    counted = np.zeros((4, 4), int)
    for row in rows:
        counted[int(row["true"][-1]), int(row["predicted"][-1])] += 1
    assert (matrix(results) == counted).all()
    assert results["metrics"]["top1"] == 100 * counted.trace() / 20
    for number, told in enumerate(results["classes"]):
        right = int(counted[number, number])
        assert told == dict(name=f"class{number}", images=5, correct=right, accuracy=pytest.approx(20 * right))
    assert results["mean_class_accuracy"] == pytest.approx(results["metrics"]["top1"])
    shares = np.array([[float(row[name]) for name in ("probability", "p2", "p3", "p4")] for row in rows])
    assert shares.sum(1) == pytest.approx(np.ones(20), abs=1e-5)
    assert (np.diff(shares) <= 0).all()
    assert all(len({row["predicted"], row["top2"], row["top3"], row["top4"]}) == 4 for row in rows)
    hits = np.array([row["predicted"] == row["true"] for row in rows])
    bins = np.ceil(15 * shares[:, 0]).astype(int)
    gaps = [abs(hits[bins == b].mean() - shares[bins == b, 0].mean()) * (bins == b).sum() for b in set(bins.tolist())]
    assert results["calibration"]["ece"] == pytest.approx(sum(gaps) / 20, abs=1e-5)
    assert sum(part["images"] for part in results["calibration"]["bins"]) == 20
    assert results["tta"] is None
    for name in ("confusion.png", "calibration.png"):
        assert (np.asarray(Image.open(tmp_path / "out" / name).convert("L")) < 250).mean() > 0.1


def test_two_processes_leave_what_one_does(evaluated, start, config, checkpoint, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["--output", tmp_path / "two", "--predictions", tmp_path / "two/table.csv", "--device", "cpu"]
    process = start(launcher, "evaluate", config, checkpoint, *options)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    (one, rows), (two, others) = evaluated("one"), read(tmp_path / "two")
    for name in ("count", "classes", "confusion", "mean_class_accuracy"):
        assert one[name] == two[name]
    assert one["calibration"]["ece"] == pytest.approx(two["calibration"]["ece"], abs=1e-6)
    told = ("image", "true", "predicted")
    assert [[row[name] for name in told] for row in rows] == [[row[name] for name in told] for row in others]
    shares = ([float(row["probability"]) for row in table] for table in (rows, others))
    assert next(shares) == pytest.approx(next(shares), abs=1e-5)


def test_unreadable_images_are_left_out_of_the_table(evaluated, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images/val/class1/3.png").write_bytes(b"no image")
    results, rows = evaluated("out", "--set", f"DATA.ROOT={tmp_path / 'images'}")
    assert [told["images"] for told in results["classes"]] == [5, 4, 5, 5]
    assert len(rows) == 19
    assert not any(row["image"].endswith("class1/3.png") for row in rows)


def test_views_are_recorded_and_change_the_probabilities(evaluated):
    options = ["--set", "EVAL.CROP=0.8"]
    plain, before = evaluated("plain", *options)
    results, after = evaluated("ten", "--tta", "flip, five-crop", *options)
    assert results["tta"] == {"of": ["flip", "five-crop"], "views": 10}
    assert results["count"] == plain["count"] == 20
    assert [row["image"] for row in before] == [row["image"] for row in after]
    assert results["metrics"]["loss"] != plain["metrics"]["loss"]


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--tta", "flipp"], ["--tta flipp must be flip, flip-vertical, five-crop", "did you mean flip?"]),
        (["--tta", "flip,flip"], ["--tta flip,flip names flip twice"]),
        (["--tta", ""], ["--tta '' must be"]),
        (["--tta", "five-crop", "--set", "EVAL.CROP=1.0"], ["EVAL.CROP 1.0", "choose less"]),
        (["--predictions", "table.txt"], ["--predictions must be a .csv file, got table.txt"]),
        (["--predictions", "/dev/null/a.csv"], ["--predictions /dev/null"]),
    ],
)
def test_what_is_not_possible_is_refused_before_any_work(refused, tool, config, checkpoint, tmp_path, options, parts):
    outcome = tool("evaluate", config, checkpoint, "--output", tmp_path / "out", *options)
    refused(outcome, *parts)
    assert not (tmp_path / "out").exists()
