"""Training, evaluating and predicting with a segmentor; released segmentors; a user's mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmengine.utils import import_modules_from_strings
from mmseg.datasets import ADE20KDataset
from mmseg.structures import SegDataSample
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
CLASSES, PALETTE = ADE20KDataset.METAINFO["classes"], ADE20KDataset.METAINFO["palette"]
# As published, in millions, rounded; the Swin rows from the paper's comparison.
PARAMETERS = {"elsa_swin_tiny": 61, "elsa_swin_small": 85, "swin_tiny": 60, "swin_small": 81}
CONFIGS = [*PARAMETERS, *(f"elsa_volo_d{size}" for size in (1, 2, 3))]


def read(path):
    return json.loads(path.read_text())


def tensors(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("segmentor") / "run"


@pytest.fixture
def trained(tool, segmentor, run_folder):
    """The folder of an uninterrupted run, the same for all tests: read only."""
    if not run_folder.exists():
        outcome = tool("train", segmentor, "--output", run_folder)
        assert outcome.code == 0, outcome.err
    return run_folder


def test_train_evaluate_predict(tool, segmentor, trained, ade, tmp_path):
    log = [json.loads(line) for line in (trained / "log.jsonl").open()]
    evaluated = [record for record in log if record["kind"] == "eval"]
    assert [record["step"] for record in evaluated] == [4, 6]
    assert read(trained / "summary.json")["iterations"] == 6

    options = ["--pictures", "2", "--per-class", "--output", tmp_path / "eval"]
    outcome = tool("evaluate", segmentor, trained / "last.pt", *options)
    assert outcome.code == 0, outcome.err
    metrics = read(tmp_path / "eval" / "results.json")["metrics"]
    assert metrics["single_scale/mIoU"] == evaluated[-1]["single_scale/mIoU"]
    for scales in ("single_scale", "multi_scale"):
        per_class = [metrics[f"{scales}/IoU/{name}"] for name in (*"0123456789", "texture")]
        known = [value for value in per_class if value is not None]
        assert np.mean(known) == pytest.approx(metrics[f"{scales}/mIoU"], abs=0.02)
        assert {f"{scales}/aAcc", f"{scales}/mAcc"} <= set(metrics)
    assert np.asarray(Image.open(tmp_path / "eval" / "predictions.png").convert("L")).std() > 10

    image = next((ade / "images" / "validation").glob("*.jpg"))
    outcome = tool("predict", segmentor, trained / "last.safetensors", image, "--output", tmp_path / "said")
    assert outcome.code == 0, outcome.err
    said = read(tmp_path / "said" / "predictions.json")["images"][0]
    labels = np.asarray(Image.open(tmp_path / "said" / said["labels"]))
    assert labels.shape == (said["height"], said["width"])
    assert 1 <= labels.min() <= labels.max() <= 11
    assert sum(said["shares"].values()) == pytest.approx(1, abs=0.01)


def test_predictions_have_the_colours_of_the_configuration(tool, segmentor, trained, tmp_path):
    """An image in which all is said to be a 1: the overlay is 0.4 of the image and 0.6 of the colour of a 1."""
    Image.fromarray(np.full((64, 64, 3), 100, np.uint8)).save(tmp_path / "flat.png")
    state = tensors(trained / "last.pt")
    state["state_dict"]["decode_head.conv_seg.bias"][1] = 1e4
    torch.save(state, tmp_path / "ones.pt")
    outcome = tool("predict", segmentor, tmp_path / "ones.pt", tmp_path / "flat.png", "--output", tmp_path / "said")
    assert outcome.code == 0, outcome.err
    colours = [
        colour for _, colour in Image.open(tmp_path / "said" / "00001_flat.png").convert("RGB").getcolors(1 << 20)
    ]
    assert (193, 116, 48) in colours, "0.4 · 100 + 0.6 · (255, 127, 14)"


def test_miou_is_the_definition(tool, segmentor, trained, ade, tmp_path):
    """From the predicted label maps: intersection over union per class over all images, unlabelled pixels left out."""
    options = ["--scales", "single", "--output", tmp_path / "eval"]
    outcome = tool("evaluate", segmentor, trained / "last.pt", *options)
    metrics = read(tmp_path / "eval" / "results.json")["metrics"]
    assert not [name for name in metrics if name.startswith("multi")]
    images = ade / "images" / "validation"
    assert tool("predict", segmentor, trained / "last.pt", images, "--output", tmp_path / "said").code == 0
    both, either = np.zeros(12), np.zeros(12)
    for said in read(tmp_path / "said" / "predictions.json")["images"]:
        ours = np.asarray(Image.open(tmp_path / "said" / said["labels"]))
        truth = np.asarray(Image.open(ade / "annotations" / "validation" / f"{Path(said['file_name']).stem}.png"))
        for label in range(1, 12):
            both[label] += ((ours == label) & (truth == label)).sum()
            either[label] += (((ours == label) | (truth == label)) & (truth > 0)).sum()
    shares = both[1:][either[1:] > 0] / either[1:][either[1:] > 0]
    assert outcome.code == 0
    assert metrics["single_scale/mIoU"] == pytest.approx(100 * shares.mean(), abs=0.01)


def test_sliding_windows_larger_and_smaller_than_the_image(tool, segmentor, trained, tmp_path):
    found = {}
    for crop in ((96, 96), (640, 640)):
        output = tmp_path / f"slide{crop[0]}"
        options = ["model.test_cfg.mode=slide", f"model.test_cfg.crop_size={crop}", "model.test_cfg.stride=(64, 64)"]
        arguments = [segmentor, trained / "last.pt", "--scales", "single", "--output", output]
        outcome = tool("evaluate", *arguments, "--set", *options)
        assert outcome.code == 0, outcome.err
        found[crop] = read(output / "results.json")["metrics"]["single_scale/mIoU"]
    tool("evaluate", segmentor, trained / "last.pt", "--scales", "single", "--output", tmp_path / "whole")
    whole = read(tmp_path / "whole" / "results.json")["metrics"]["single_scale/mIoU"]
    assert found[640, 640] == pytest.approx(whole, abs=0.01), "one window that holds the image is the whole image"


def test_a_training_crop_larger_than_the_image_is_padded(tool, segmentor, tmp_path):
    options = [
        "model.data_preprocessor.size=(320, 320)",
        "train_dataloader.dataset.dataset.pipeline.3.crop_size=(320, 320)",
    ]
    outcome = tool("train", segmentor, "--output", tmp_path / "run", "--set", *options, "train_cfg.max_iters=1")
    assert outcome.code == 0, outcome.err


def load(name: str) -> Config:
    config = Config.fromfile(ROOT / "configs/segmentation" / f"upernet_{name}.py")
    import_modules_from_strings(**config.custom_imports)
    init_default_scope(config.default_scope)
    return config


def test_all_configurations_are_there():
    found = {path.stem.removeprefix("upernet_") for path in (ROOT / "configs/segmentation").glob("upernet_*.py")}
    assert found == {*CONFIGS, "elsa_swin_nano", "elsa_swin_nano_digits", "elsa_swin_pico_digits"}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_builds_learns_and_predicts(name, plain_norms):
    config = load(name)
    assert len((ROOT / "configs/segmentation" / f"upernet_{name}.py").read_text().splitlines()) <= 15
    model = MODELS.build(plain_norms(config.model))
    millions = round(sum(parameter.numel() for parameter in model.parameters()) / 1e6)
    assert millions == PARAMETERS.get(name, millions)
    sample = SegDataSample(metainfo=dict(img_shape=(64, 96), ori_shape=(64, 96)))
    sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 64, 96)))
    images = [torch.randint(0, 255, (3, 64, 96), dtype=torch.uint8)] * 2
    model.data_preprocessor.size = (64, 96)
    batch = model.data_preprocessor(dict(inputs=images, data_samples=[sample, sample.clone()]), training=True)
    losses = model.train()(**batch, mode="loss")
    total = sum(value for key, value in losses.items() if "loss" in key)
    total.backward()
    assert torch.isfinite(total)
    assert not [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    with torch.no_grad():
        found = model.eval().test_step(dict(inputs=images[:1], data_samples=[sample]))[0]
    assert found.pred_sem_seg.data.shape == (1, 64, 96)


def test_the_recipe_is_the_published_one():
    config = load("elsa_swin_tiny")
    assert (config.train_cfg.max_iters, config.global_batch) == (160000, 16)
    assert config.optim_wrapper.optimizer == dict(type="AdamW", lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)
    warm_up, decay = config.param_scheduler
    assert (warm_up.start_factor, warm_up.end, decay.type, decay.power, decay.eta_min) == (
        1e-6,
        1500,
        "PolyLR",
        1.0,
        0.0,
    )
    assert config.model.backbone.drop_path_rate == 0.3
    head, auxiliary = config.model.decode_head, config.model.auxiliary_head
    assert (head.channels, head.pool_scales, head.num_classes) == (512, (1, 2, 3, 6), 150)
    assert (auxiliary.channels, auxiliary.in_index, auxiliary.loss_decode.loss_weight) == (256, 2, 0.4)
    assert head.norm_cfg.type == auxiliary.norm_cfg.type == "SyncBN"
    resize, crop = config.train_pipeline[2], config.train_pipeline[3]
    assert (resize.scale, resize.ratio_range) == ((2048, 512), (0.5, 2.0))
    assert (crop.crop_size, crop.cat_max_ratio) == ((512, 512), 0.75)
    scales = [step.scale for step in config.tta_pipeline[1].transforms[0]]
    assert [short for _, short in scales] == [256, 384, 512, 640, 768, 896]
    assert [step.prob for step in config.tta_pipeline[1].transforms[1]] == [0.0, 1.0]


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_a_released_segmentor_is_evaluated(tool, golden, ade, tmp_path, size):
    """A file as mmseg 0.11 wrote it: its names and shapes, ``meta`` with classes and palette."""
    shapes = golden.json("released_dense_state_dicts")[f"upernet_elsa_swin_{size}"]
    torch.manual_seed(0)
    state = {
        name: torch.zeros(shape, dtype=torch.int64) if name.endswith(("num_batches_tracked", "relative_id"))
        else torch.rand(shape) * 0.1
        for name, shape in shapes.items()
    }  # fmt: skip
    meta = dict(mmseg_version="0.11.0+unknown", iter=160000, CLASSES=CLASSES, PALETTE=PALETTE, env_info="Python: 3.7")
    torch.save(dict(meta=meta, state_dict=state, optimizer={}), tmp_path / "released.pth")
    outcome = tool(
        "evaluate", ROOT / f"configs/segmentation/upernet_elsa_swin_{size}.py", tmp_path / "released.pth",
        "--output", tmp_path / "eval", "--scales", "single", "--set", f"data_root={ade}",
        "test_dataloader.dataset.pipeline.1.scale=(96, 96)", "test_dataloader.num_workers=0",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert f"loaded {len(shapes)} of {len(shapes)} tensors" in outcome.err
    results = read(tmp_path / "eval" / "results.json")
    assert results["checkpoint"]["meta"]["mmseg_version"] == "0.11.0+unknown"
    assert 0 <= results["metrics"]["single_scale/mIoU"] <= 100


def lose_map(root):
    next((root / "annotations" / "training").glob("*.png")).unlink()


def lose_image(root):
    next((root / "images" / "training").glob("*.jpg")).unlink()


def change_map(change):
    def call(root):
        for path in (root / "annotations" / "training").glob("*.png"):
            change(Image.open(path)).save(path)

    return call


def coloured(labels):
    return Image.merge("RGB", [labels, labels, labels.point(lambda value: 255 - value)])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lose_map, ["1 with no label map"]),
        (lose_image, ["1 with a label map but no image"]),
        (
            change_map(coloured),
            ["has 3 channels", "no colours"],
        ),
        (change_map(lambda labels: labels.resize((50, 60))), ["is 50×60, its image"]),
        (change_map(lambda labels: labels.point(lambda value: value + 9)), ["has label", "1 … 11"]),
    ],
    ids=["no map", "no image", "RGB", "size", "labels"],
)
def test_training_refuses_damaged_data(refused, tool, segmentor, ade, tmp_path, damage, parts, workers):
    shutil.copytree(ade, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    options = [f"data_root={tmp_path / 'damaged'}", f"train_dataloader.num_workers={workers}"]
    refused(tool("train", segmentor, "--output", tmp_path / "run", "--set", *options), *parts)


def test_a_checkpoint_of_another_class_count(refused, tool, segmentor, trained, tmp_path):
    state = tensors(trained / "last.pt")
    del state["classes"]
    state["state_dict"]["decode_head.conv_seg.weight"] = torch.zeros(150, 16, 1, 1)
    torch.save(state, tmp_path / "ade.pth")
    outcome = tool("evaluate", segmentor, tmp_path / "ade.pth", "--output", tmp_path / "eval")
    refused(outcome, "conv_seg.weight is (150, 16, 1, 1), the model has (11, 16, 1, 1)")
    outcome = tool("train", segmentor, "--output", tmp_path / "new", "--set", "model.decode_head.num_classes=150")
    refused(outcome, "decode_head.num_classes is 150", "11 classes")


def test_one_image_at_a_time_is_no_batch_to_normalise_over(refused, tool, segmentor, tmp_path):
    options = ["--set", "optim_wrapper.accumulative_counts=2"]
    outcome = tool("train", segmentor, "--output", tmp_path / "run", *options)
    refused(outcome, "decode_head.psp_modules.0 normalises a map of 1×1", "global_batch is too small")
    assert not (tmp_path / "run").exists()
    norm = "model.decode_head.norm_cfg={'type': 'GN', 'num_groups': 4, 'requires_grad': True}"
    assert tool("train", segmentor, "--output", tmp_path / "run", *options, norm, "train_cfg.max_iters=1").code == 0


def test_class_weights_for_another_number_of_classes(refused, tool, segmentor, tmp_path):
    weights = "model.decode_head.loss_decode.class_weight=[1, 2]"
    outcome = tool("train", segmentor, "--output", tmp_path / "run", "--set", weights)
    refused(outcome, "the length of model.decode_head.loss_decode.class_weight is 2", "11 classes")
    assert not (tmp_path / "run").exists()


def binary(segmentor, root, names, replaced=None):
    """The segmentor on masks: of the digits' maps, all that is no texture and labelled is 255."""
    for path in (root / "annotations").rglob("*.png"):
        labels = np.asarray(Image.open(path))
        Image.fromarray(np.where((labels > 0) & (labels != 11), 255, 0).astype(np.uint8)).save(path)
    segmentor.write_text(
        segmentor.read_text()
        + f"""
data_root = "{root}/"
_loss = dict(_delete_=True, type="ClassWeightedLoss")
model = dict(
    backbone=dict(pretrained=None), decode_head=dict(channels=16, num_classes={len(names)}, loss_decode=_loss),
    auxiliary_head=dict(num_classes={len(names)}, loss_decode=_loss),
)
_names = dict(_delete_=True, classes={names!r}, label_map={replaced!r})
_mine = dict(data_root=data_root, metainfo=_names, reduce_zero_label={not replaced})
train_dataloader = dict(dataset=dict(dataset=_mine))
val_dataloader = dict(dataset=_mine)
test_dataloader = val_dataloader
"""
    )
    return segmentor


def test_masks_of_0_and_255(refused, tool, segmentor, ade, tmp_path):
    """Refused with a cure; with the cure, every verb works, and predictions are numbered as the labels are."""
    root = shutil.copytree(ade, tmp_path / "masks")
    text = segmentor.read_text()
    outcome = tool("train", binary(segmentor, root, ("digit",)), "--output", tmp_path / "run")
    refused(outcome, "not one pixel has a label: the maps hold 0, 255", "reduce_zero_label=False", "label_map={255: 1}")
    assert not (tmp_path / "run").exists()
    segmentor.write_text(text)
    names = ("background", "digit")
    binary(segmentor, root, names, {255: 1})
    outcome = tool("train", segmentor, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open()]
    losses = [record["loss"] for record in log if record["kind"] == "train"]
    assert losses
    assert all(loss > 0.1 for loss in losses)
    options = ["--pictures", "1", "--per-class", "--output", tmp_path / "eval"]
    outcome = tool("evaluate", segmentor, tmp_path / "run" / "last.pt", *options)
    assert outcome.code == 0, outcome.err
    metrics = read(tmp_path / "eval" / "results.json")["metrics"]
    assert {f"single_scale/IoU/{name}" for name in names} <= metrics.keys()
    assert outcome.err.count("never occur") == 0
    arguments = [segmentor, tmp_path / "run" / "last.pt", root / "images" / "validation"]
    assert tool("predict", *arguments, "--output", tmp_path / "said").code == 0
    said = read(tmp_path / "said" / "predictions.json")
    assert said["numbers"] == {"0": "background", "1": "digit"}
    assert not said["skipped"]
    found = [np.asarray(Image.open(tmp_path / "said" / image["labels"])) for image in said["images"]]
    assert set(np.unique(np.concatenate([labels.ravel() for labels in found]))) <= {0, 1}


def test_one_logit_of_a_softmax(refused, tool, segmentor, ade, tmp_path):
    root = shutil.copytree(ade, tmp_path / "masks")
    binary(segmentor, root, ("background", "digit"), {255: 1})
    outcome = tool("train", segmentor, "--output", tmp_path / "run", "--set", "train_cfg.max_iters=1")
    assert outcome.code == 0, outcome.err
    segmentor.write_text(segmentor.read_text() + 'model["decode_head"]["out_channels"] = 1\n')
    refused(tool("train", segmentor, "--output", tmp_path / "one"), "model.decode_head has one logit", "num_classes=2")
    assert not (tmp_path / "one").exists()


def test_other_classes_in_the_checkpoint_than_in_the_recipe(refused, tool, segmentor, trained, ade, tmp_path):
    """In predict, too."""
    state = tensors(trained / "last.pt")
    state["classes"] = state["classes"][::-1]
    torch.save(state, tmp_path / "turned.pt")
    for verb, rest in (("evaluate", []), ("predict", [ade / "images" / "validation"])):
        outcome = tool(verb, segmentor, tmp_path / "turned.pt", *rest, "--output", tmp_path / "said")
        refused(outcome, "turned.pt has 11 classes, the data 11", "the file's: texture, 9, 8", "the data's: 0, 1, 2")
        assert not (tmp_path / "said").exists()


def test_nothing_that_can_be_predicted(refused, tool, segmentor, trained, tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "photos" / name).write_bytes(b"nothing")
    outcome = tool("predict", segmentor, trained / "last.pt", tmp_path / "photos", "--output", tmp_path / "said")
    refused(outcome, f"none of the images of {tmp_path / 'photos'} can be predicted")
    assert not (tmp_path / "said").exists()
