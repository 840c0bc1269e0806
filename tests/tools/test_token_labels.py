"""Label maps from a classifier, then ELSA-VOLO trained with them: the commands, their results and their refusals."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
import timm
import torch
from safetensors.torch import save_file

import elsa.models  # noqa: F401  (registers the names)
from elsa.engine import Trainer

GRID = ["--grid", "6", "--top", "3"]


@pytest.fixture
def classifier(config, tmp_path, root):
    """The configuration of a classifier and its weights, as initialised."""
    torch.manual_seed(0)
    small = dict(embed_dim=8, num_heads=[1, 1, 2, 2], elsa_kernel=3, window_size=3)
    model = timm.create_model("elsa_swin_nano", num_classes=4, **small)
    save_file(model.state_dict(), tmp_path / "classifier.safetensors")
    return config, tmp_path / "classifier.safetensors"


@pytest.fixture
def volo(tmp_path, images):
    """A very small ELSA-VOLO on the same images."""
    path = tmp_path / "volo.yaml"
    path.write_text(
        f"""
MODEL: {{NAME: elsa_volo_nano, NUM_CLASSES: 4, DROP_PATH: 0.1,
        KWARGS: {{layers: [1, 1, 1, 1], embed_dims: [16, 32], num_heads: [1, 1], stem_hidden_dim: 8}}}}
DATA: {{ROOT: {images}, IMG_SIZE: 32, BATCH: 8, EVAL_BATCH: 7, WORKERS: 0}}
AUG: {{MIXUP: 0.0, CUTMIX: 0.0}}
TOKENS: {{ENABLED: true, LABELS: {tmp_path / "labels"}}}
TRAIN: {{EPOCHS: 2, WARMUP_EPOCHS: 1, COOLDOWN_EPOCHS: 0, LR: 3.0e-3, EMA_DECAY: 0.5}}
AMP: {{ENABLED: false}}
LOG: {{EVERY: 2, TENSORBOARD: false}}
"""
    )
    return path


@pytest.fixture
def labels(tool, classifier, tmp_path):
    outcome = tool("make_token_labels", *classifier, "--output", tmp_path / "labels", *GRID)
    assert outcome.code == 0, outcome.err
    return tmp_path / "labels"


def maps(folder):
    return {str(path.relative_to(folder)): torch.load(path) for path in folder.rglob("*.pt")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- making label maps


def test_every_training_image_gets_its_map(labels, images, classifier):
    written = maps(labels)
    assert written.keys() == {str(p.relative_to(images / "train").with_suffix(".pt")) for p in images.glob("train/*/*")}
    for content in written.values():
        assert content.shape == (2, 3, 6, 6)
        assert (content[0].diff(dim=0) <= 0).all()  # best first
        assert (content[1].sort(dim=0).values.diff(dim=0) > 0).all()  # different classes
    about = json.loads((labels / "labels.json").read_text())
    assert (about["classifier"], about["grid"], about["top"]) == ("elsa_swin_nano", 6, 3)
    assert about["classes"] == [f"class{number}" for number in range(4)]


def test_started_again_it_makes_only_what_is_missing(tool, labels, classifier):
    before, lost, kept = maps(labels), labels / "class1/3.pt", labels / "class1/4.pt"
    lost.unlink()
    times = kept.stat().st_mtime_ns
    outcome = tool("make_token_labels", *classifier, "--output", labels, *GRID)
    assert "48 images, 48 of them in this share, 1 to label" in outcome.err
    assert "ETA" in outcome.err
    assert kept.stat().st_mtime_ns == times
    assert same(maps(labels), before)


def test_processes_and_shards_share_the_work(tool, start, labels, classifier, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    folder = tmp_path / "shared"
    process = start(launcher, "make_token_labels", *classifier, "--output", folder, *GRID, "--shard", "1/2")
    assert process.wait(timeout=120) == 0
    assert len(maps(folder)) == 24
    outcome = tool("make_token_labels", *classifier, "--output", folder, *GRID, "--shard", "2/2")
    assert outcome.code == 0, outcome.err
    expected = maps(labels)
    for name, content in maps(folder).items():
        torch.testing.assert_close(content, expected[name], atol=2e-2, rtol=0)
    assert len(maps(folder)) == 48


def test_an_unreadable_image_does_not_keep_training_from_its_labels(tool, classifier, volo, images, tmp_path):
    broken = tmp_path / "images"
    shutil.copytree(images, broken)
    (broken / "train/class2/0.png").write_bytes(b"no image")
    data = ["--set", f"DATA.ROOT={broken}"]
    outcome = tool("make_token_labels", *classifier, "--output", tmp_path / "labels", *GRID, *data)
    assert outcome.code == 0, outcome.err
    assert "class2/0.png cannot be read: " in outcome.err
    outcome = tool("train", volo, "--output", tmp_path / "run", *data)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "convnext_atto",
        "vit_tiny_patch16_224",
        "deit_tiny_distilled_patch16_224",
        "swin_tiny_patch4_window7_224",
        "elsa_volo_nano",
    ],
)
def test_any_classifier_scores_every_position(root, monkeypatch, name):
    from elsa.tools.tasks.position_logits import position_logits

    sized = {} if name in ("resnet18", "convnext_atto") else dict(img_size=224)
    model = timm.create_model(name, num_classes=7, **sized).eval()
    for module in model.modules():
        if getattr(module, "out_features", 0) == 7:
            torch.nn.init.normal_(module.weight)
    with torch.no_grad():
        x = torch.randn(2, 3, 224, 224)
        x[..., :112] = 0  # left and right differ, top and bottom hardly
        logits = position_logits(model, x, 7)
        assert logits.shape == (2, 7, 7, 7)
        assert logits.isfinite().all()
        if name == "resnet18":  # whose head is linear after the mean
            torch.testing.assert_close(logits.mean((2, 3)), model(x), atol=1e-4, rtol=1e-4)
        between_columns, between_rows = (logits.mean(axis).std(-1).mean() for axis in (2, 3))
        assert between_columns > between_rows


def test_named_scores_are_the_classifier_s_probabilities(root, monkeypatch):
    """After a softmax in which unnamed classes count as 0."""
    from elsa.tools.tasks.position_logits import best_classes

    logits = 3 * torch.randn(2, 9, 4, 5)
    scores, classes = best_classes(logits, 5)
    dense = torch.zeros_like(logits).scatter_(1, classes, scores).softmax(1)
    probabilities = logits.softmax(1)
    torch.testing.assert_close(dense.gather(1, classes), probabilities.topk(5, dim=1).values)
    torch.testing.assert_close(dense.sum(1), torch.ones(2, 4, 5))
    few, named = best_classes(logits[:, :3], 5)
    assert few.shape == named.shape == (2, 5, 4, 5)
    dense = torch.zeros(2, 3, 4, 5).scatter_(1, named, few).softmax(1)
    torch.testing.assert_close(dense, logits[:, :3].softmax(1))


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--grid", "0"], ["--grid must be between 1 and 1024", "0"]),
        (["--shard", "3/2"], ["--shard must be I/N", "'3/2'"]),
        ([*GRID[:2], "--top", "2"], ["holds other label maps", "top: 3 there, 2 now"]),
        (["--set", "MODEL.NUM_CLASSES=5"], ["head.weight is (4, 64), the model has (5, 64)"]),
    ],
)
def test_label_maps_that_cannot_be_made(tool, refused, labels, classifier, options, parts):
    before = maps(labels)
    refused(tool("make_token_labels", *classifier, "--output", labels, *options), *parts)
    assert same(maps(labels), before)


def test_label_maps_need_a_classifier_a_folder_and_a_checkpoint(tool, refused, classifier, tmp_path, root):
    refused(tool("make_token_labels", *classifier), "--output DIR is needed")
    detector = root / "configs/detection/mask_rcnn_elsa_swin_nano_digits.py"
    refused(tool("make_token_labels", detector, classifier[1], "--output", tmp_path / "x"), "a recipe of detection")
    refused(
        tool("make_token_labels", classifier[0], tmp_path / "no.pt", "--output", tmp_path / "x"), "no.pt does not exist"
    )
    assert not (tmp_path / "x").exists()


# ---- training with them


def test_training_with_label_maps_resumes_bit_for_bit(tool, volo, labels, tmp_path, monkeypatch):
    """Crops, boxes of mix-token and targets are those of a run that was never interrupted."""
    assert tool("train", volo, "--output", tmp_path / "whole").code == 0
    count = Trainer.count

    def count_and_interrupt(self, record):
        count(self, record)
        if self.state.step == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trainer, "count", count_and_interrupt)
    stopped = tool("train", volo, "--output", tmp_path / "cut")
    assert "stopped after step" in stopped.err
    monkeypatch.undo()
    assert tool("train", volo, "--output", tmp_path / "cut", "--resume", "auto").code == 0
    whole, pieces = (torch.load(tmp_path / name / "last.pt") for name in ("whole", "cut"))
    assert whole["step"] == pieces["step"] == 12
    for entry in ("state_dict", "state_dict_ema"):
        assert same(whole[entry], pieces[entry])


def test_two_processes_report_what_their_checkpoint_gives_alone(tool, start, volo, labels, tmp_path):
    """Each process has its own statistics of batch normalisation; one of them is evaluated and saved."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    process = start(launcher, "train", volo, "--output", tmp_path / "two", "--device", "cpu")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    outcome = tool("evaluate", volo, tmp_path / "two/last.pt", "--output", tmp_path / "eval")
    assert outcome.code == 0, outcome.err
    alone = json.loads((tmp_path / "eval/results.json").read_text())["metrics"]
    reported = json.loads((tmp_path / "two/summary.json").read_text())["last"]
    assert alone["loss"] == pytest.approx(reported["loss"], rel=1e-5)


def test_label_maps_mixing_and_ground_truth_each_change_the_run(tool, volo, labels, tmp_path):
    runs = {
        "all": [],
        "no labels": ["TOKENS.LABELS=''"],
        "no mixing": ["TOKENS.MIX=0"],
        "truth": ["TOKENS.GROUND_TRUTH=true"],
        "no tokens": ["TOKENS.ENABLED=false", "TOKENS.LABELS=''"],
    }
    losses = []
    for name, changes in runs.items():
        outcome = tool("train", volo, "--output", tmp_path / name, "--set", "TRAIN.EPOCHS=2", *changes)
        assert outcome.code == 0, outcome.err
        losses.append(json.loads((tmp_path / name / "summary.json").read_text())["last"]["train_loss"])
    assert len(set(losses)) == len(runs)


def test_fine_tuning_at_another_size_resizes_the_position_embedding(tool, volo, labels, tmp_path):
    assert tool("train", volo, "--output", tmp_path / "small").code == 0
    larger = ["DATA.IMG_SIZE=48", f"MODEL.PRETRAINED={tmp_path / 'small/best.safetensors'}", "TOKENS.GROUND_TRUTH=true"]
    outcome = tool("train", volo, "--output", tmp_path / "large", "--set", *larger)
    assert outcome.code == 0, outcome.err
    assert "resized: pos_embed 1×2×2×32 → 1×3×3×32" in outcome.err
    evaluated = tool(
        "evaluate", volo, tmp_path / "small/best.pt", "--output", tmp_path / "eval", "--set", "DATA.IMG_SIZE=48"
    )
    assert evaluated.code == 0, evaluated.err


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["DATA.IMG_SIZE=40"], ["IMG_SIZE 40", "multiple of the patch, 16 pixels"]),
        (["DATA.BATCH=9"], ["mix-token pairs", "9"]),
        (["MODEL.NAME=elsa_volo_d6", "MODEL.KWARGS={}"], ["'elsa_volo_d6'", "did you mean elsa_volo_d"]),
        (["MODEL.KWARGS.atention=outlook"], ["atention", "did you mean attention?"]),
        (["MODEL.KWARGS.attention=outlok"], ["'outlok'", "'outlook'"]),
        (["MODEL.NAME=resnet18", "MODEL.KWARGS={}"], ["TOKENS.ENABLED needs a model with token logits", "resnet18"]),
        (["TOKENS.LABELS=/nowhere"], ["/nowhere does not exist", "make_token_labels.py"]),
        (["AUG.MIXUP=0.8"], ["AUG.MIXUP and AUG.CUTMIX must be 0"]),
    ],
    ids=lambda value: value[0] if "=" in value[0] else None,
)
def test_training_refuses(tool, refused, volo, labels, tmp_path, overrides, parts):
    outcome = tool("train", volo, "--output", tmp_path / "run", "--set", *overrides)
    refused(outcome, *parts)
    assert not (tmp_path / "run").exists()


def test_training_refuses_images_without_a_map_before_any_work(tool, refused, volo, labels, tmp_path):
    (labels / "class0/1.pt").unlink()
    refused(tool("train", volo, "--output", tmp_path / "run"), "1 of 48 images have no label map", "class0/1.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_class_beyond_the_count_stops_training_in_one_line(tool, refused, volo, labels, tmp_path, workers):
    path = labels / "class0/1.pt"
    torch.save(torch.load(path) + 2, path)
    refused(
        tool("train", volo, "--output", tmp_path / "run", "--set", f"DATA.WORKERS={workers}"),
        "class0/1.pt names classes",
        "the classes are 0 … 3",
    )
