"""A user's mistake with a detector: one clear line, exit code 2, nothing left half-written."""

from __future__ import annotations

import json
import shutil

import pytest
import safetensors.torch
import torch

from elsa.core import ConfigError
from elsa.tools.tasks.mm.recipe import read_recipe


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["train_cfg.max_epoch=3"], ["train_cfg.max_epoch is no key", "did you mean max_epochs?"]),
        (["train_cfgs.max_epochs=3"], ["train_cfgs", "did you mean train_cfg?"]),
        (["train_cfg.max_epochs=many"], ["must be an integer", "'many'"]),
        (["optim_wrapper.optimizer.lr=fast"], ["must be a number", "'fast'"]),
        (["optim_wrapper.type=ApexOptimWrapper"],
         ["optim_wrapper.type ApexOptimWrapper needs a GPU (the device is cpu) and NVIDIA's apex (not installed)"]),
        (["optim_wrapper.type=ApexOptimWrapper", "run.compile=True"], ["works without run.compile True only"]),
        (["optim_wrapper.optimizer={'type': 'TimmOptimizer', 'opt': 'apex_fused_lamb', 'lr': 1, 'weight_decay': 0}"],
         ["optim_wrapper.optimizer.opt apex_fused_lamb needs a GPU (the device is cpu) and NVIDIA's apex"]),
        (["train_cfg=3"], ["is a section", "max_epochs"]),
        (["param_scheduler.7.end=3"], ["list of 2 entries"]),
        (["global_batch"], ["KEY=VALUE"]),
        (["global_batch=3", "optim_wrapper.accumulative_counts=2"],
         ["global_batch 3", "1 processes × optim_wrapper.accumulative_counts 2"]),
        (["global_batch=64"], ["8 training images", "batch of 64"]),
        (["model.backbone.variant=elsa_swin_nanoo"], ["'elsa_swin_nanoo'", "did you mean elsa_swin_nano"]),
        (["model.backbone.model_args.elsa_kernal=3"], ["'elsa_kernal'", "did you mean elsa_kernel"]),
        (["model.backbone.pretrained=absent.pt"], ["absent.pt does not exist"]),
        (["model.roi_head.bbox_head.num_classes=80"], ["bbox_head.num_classes is 80", "10 classes"]),
        (["data_root=/nowhere/at/all"], ["/nowhere/at/all/ does not exist", "--set data_root"]),
        (["train_dataloader.dataset.dataset.ann_file=annotations/instances_train.json"],
         ["instances_train.json missing", "instances_train2017.json"]),
        (["train_dataloader.dataset.dataset.data_prefix.img=train2016/"], ["8 of 8", "absent", "train2016/001.jpg"]),
    ],
    ids=lambda value: value[0][:45] if isinstance(value, list) else None,
)  # fmt: skip
def test_training_refuses_a_bad_value(refused, tool, detector, tmp_path, overrides, parts):
    refused(tool("train", detector, "--output", tmp_path / "run", "--set", *overrides), *parts)
    assert not (tmp_path / "run").exists()


# An override → what its refusal says beside the key.
WITHOUT_EFFECT = {
    "optim_wrapper.optimizer.lr=0": ["lr must be between 0 and 100, got 0", "0 excluded"],
    "optim_wrapper.optimizer.lr=1e999": ["got inf"],
    "optim_wrapper.optimizer.betas=(0.9, 1.0)": ["betas.1 must be between 0 and 1, got 1.0; 1 excluded"],
    "optim_wrapper.optimizer.weight_decay=-1.0": ["between 0 and 10, got -1.0"],
    "optim_wrapper.clip_grad={'max_norm': 0}": ["max_norm must be at least 1e-06, got 0", "clip_grad=None for none"],
    "optim_wrapper.clip_grad={'max_norm': '5'}": ["max_norm must be the number 5.0, got '5'"],
    "optim_wrapper.clip_grad=5": ["optim_wrapper.clip_grad must be a dict of max_norm, got 5"],
    "optim_wrapper.clip_grad={}": ["dict(max_norm=…), or None for none"],
    "optim_wrapper.paramwise_cfg.custom_keys.norm.decay_mult=-1.0": ["between 0 and 1000, got -1.0"],
    "run.ema_decay=1": ["between 0.5 and 1, got 1", "1 excluded", "None for none"],
    "run.ema_decay=0.0001": ["0.9999 is usual", "momentum of 0.0001"],
    "run.ema_decay=x": ["must be a number, got 'x'"],
    "run.log_every=0": ["between 1 and"],
    "randomness.seed=-1": ["between 0 and 2147483647, got -1"],
    "train_dataloader.num_workers=-1": ["between 0 and 1024, got -1"],
    "val_dataloader.batch_size=0": ["between 1 and", "got 0"],
    "global_batch=0": ["between 1 and", "got 0"],
    "param_scheduler.0.start_factor=0.0": ["between 0 and 1, got 0.0; 0 excluded"],
    "param_scheduler.1.gamma=0.0": ["between 0 and 10, got 0.0; 0 excluded"],
    "model.data_preprocessor.std=[0.35, 0.35, 0.35]": ["between 1 and 255, got 0.35", "multiplied by 255"],
    "model.backbone.drop_path_rate=1.0": ["between 0 and 0.9, got 1.0"],
}


@pytest.mark.parametrize(("override", "parts"), WITHOUT_EFFECT.items())
def test_numbers_with_which_nothing_would_be_learned_are_refused(root, override, parts):
    with pytest.raises(ConfigError) as caught:
        read_recipe(root / "configs/detection/mask_rcnn_elsa_swin_nano_digits.py", [override])
    for part in (override.partition("=")[0], *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "parts"),
    [
        ("optim_wrapper = dict(optimizer=dict(_delete_=True, type='AdamW'))", ["optimizer.lr", "is missing"]),
        ("param_scheduler = [dict(type='PolyLR', eta_min=0.5)]", ["eta_min 0.5 of PolyLR", "optimizer.lr 0.001"]),
        ("model = dict(rpn_head=dict(loss_cls=dict(loss_weight=float('nan'))))", ["loss_cls.loss_weight is no number"]),
        ("run = 3", ["run must be a dict"]),
        ("run = dict(max_bad=2.0)", ["run.max_bad must be the number 2, got 2.0"]),
    ],
)
def test_a_recipe_with_which_nothing_would_be_learned_is_refused(detector, lines, parts):
    detector.write_text(f"{detector.read_text()}\n{lines}\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(detector, [])
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        *("optim_wrapper.clip_grad=none", "optim_wrapper.clip_grad={'max_norm': 35}", "run.ema_decay=0.9998"),
        *("optim_wrapper.optimizer.betas=None", "optim_wrapper.paramwise_cfg.custom_keys.norm.decay_mult=0.0"),
        *("model.roi_head.mask_head.loss_mask.loss_weight=0.0", "model.data_preprocessor.std=[1, 1, 1]"),
        *("train_cfg.save_steps=0", "run.max_bad=0", "train_dataloader.num_workers=0", "param_scheduler.1.gamma=0.1"),
    ],
)
def test_numbers_beside_them_stay_allowed(root, override):
    read_recipe(root / "configs/detection/mask_rcnn_elsa_swin_nano_digits.py", [override])


@pytest.fixture
def damaged(coco, tmp_path):
    """``damaged(change)``: a copy of the data set whose training annotations were changed."""

    def call(change):
        root = tmp_path / "damaged"
        shutil.copytree(coco, root)
        path = root / "annotations" / "instances_train2017.json"
        changed = change(json.loads(path.read_text()))
        path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
        return root

    return call


def without(key):
    return lambda content: {name: value for name, value in content.items() if name != key}


def unknown_category(content):
    content["annotations"][0]["category_id"] = 99
    return content


def renamed(content):
    content["categories"][3]["name"] = "three"
    return content


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda content: json.dumps(content)[:300], ["instances_train2017.json is not JSON", "column"]),
        (without("categories"), ["no list categories"]),
        (without("annotations"), ["no list annotations"]),
        (unknown_category, ["annotation 1, image 1, category_id: annotation of an unknown category (category 99)"]),
        (renamed, ["lacks 1 of 10 classes", "'3'"]),
    ],
)
def test_training_refuses_damaged_annotations(refused, tool, detector, tmp_path, damaged, change, parts):
    refused(tool("train", detector, "--output", tmp_path / "run", "--set", f"data_root={damaged(change)}"), *parts)
    assert not (tmp_path / "run").exists()


def test_a_missing_or_misspelt_config(refused, tool, detector, tmp_path):
    refused(tool("train", tmp_path / "detektor.py", "--output", tmp_path / "run"), "did you mean detector.py?")
    detector.write_text(detector.read_text() + "train_cgf = dict(max_epochs=3)\n")
    refused(tool("train", detector, "--output", tmp_path / "run"), "'train_cgf'", "did you mean train_cfg?")
    detector.write_text("model = dict(\n")
    refused(tool("train", detector, "--output", tmp_path / "run"), "no mmengine configuration")


@pytest.fixture
def run(tool, detector, tmp_path):
    outcome = tool("train", detector, "--output", tmp_path / "run", "--set", "train_cfg.max_epochs=1")
    assert outcome.code == 0, outcome.err
    return tmp_path / "run"


def test_a_folder_that_holds_a_run(refused, tool, detector, run):
    before = (run / "last.pt").read_bytes()
    refused(tool("train", detector, "--output", run), "--resume auto", "--overwrite")
    changed = ["--resume", "auto", "--set", "train_cfg.max_epochs=1", "optim_wrapper.optimizer.lr=0.5"]
    refused(
        tool("train", detector, "--output", run, *changed),
        "another configuration",
        "lr: 0.001 in the checkpoint, 0.5 now",
    )
    refused(tool("train", detector, "--output", run, "--resume", run / "last.safetensors"), "weights only")
    assert (run / "last.pt").read_bytes() == before


def test_checkpoints_that_do_not_fit(refused, exploit, tool, detector, run, tmp_path):
    state = torch.load(run / "last.pt", weights_only=True)

    def evaluated(path):
        outcome = tool("evaluate", detector, path, "--output", tmp_path / "eval")
        assert not (tmp_path / "eval").exists()
        return outcome

    refused(evaluated(run / "lost.pt"), "lost.pt does not exist")
    (tmp_path / "cut.pt").write_bytes((run / "last.pt").read_bytes()[:5000])
    refused(evaluated(tmp_path / "cut.pt"), "cut.pt", "truncated")
    head = {"roi_head.bbox_head.fc_cls.weight": torch.zeros(81, 256), "roi_head.bbox_head.fc_cls.bias": torch.zeros(81)}
    torch.save({"state_dict": {**state["state_dict"], **head}}, tmp_path / "coco.pth")
    refused(evaluated(tmp_path / "coco.pth"), "fc_cls.weight is (81, 256), the model has (11, 256)")
    torch.save({**state, "classes": [*"012345678", "ten"]}, tmp_path / "names.pt")
    refused(evaluated(tmp_path / "names.pt"), "ten in the file, 9 in the data")
    safetensors.torch.save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    refused(evaluated(tmp_path / "resnet.safetensors"), "missing", "conv1.weight")
    torch.save({"meta": exploit(tmp_path / "executed"), "state_dict": state["state_dict"]}, tmp_path / "evil.pth")
    refused(evaluated(tmp_path / "evil.pth"), "not executed", "--trust-checkpoint")
    assert not (tmp_path / "executed").exists()


def test_the_dense_packages_are_named_where_they_are_missing(refused, tool, detector, tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mmdet" else found(name, *rest)
    )
    refused(tool("train", detector, "--output", tmp_path / "run"), "need mmdet", "scripts/setup.sh --dense")


@pytest.mark.parametrize(
    ("override", "part"),
    [("embedded.train=0", "train must be between 1"), ("embedded.type=digits-adee", "digits-coco or digits-ade")],
)
def test_embedded_data_that_cannot_be_written_are_refused(refused, tool, root, tmp_path, override, part):
    config = root / "configs/segmentation/upernet_elsa_swin_nano_digits.py"
    data = tmp_path / "scenes"
    there = [f"data_root={data}", f"embedded.root={data}"]
    refused(tool("train", config, "--output", tmp_path / "run", "--set", *there, override), part)
    assert not data.exists() and not (tmp_path / "run").exists()


def test_embedded_data_have_the_size_that_the_configuration_says(refused, tool, root, tmp_path):
    config = root / "configs/segmentation/upernet_elsa_swin_nano_digits.py"
    there = tmp_path / "scenes"
    options = [f"data_root={there}", f"embedded.root={there}", "embedded.train=4", "global_batch=64"]
    refused(tool("train", config, "--output", tmp_path / "run", "--set", *options), "4 training images")
    assert len(list((tmp_path / "scenes/images/training").glob("*.jpg"))) == 4


@pytest.mark.parametrize(
    ("optimizer", "parts"),
    [
        (dict(opt="moun"), ["optim_wrapper.optimizer.opt 'moun'", "did you mean muon?"]),
        (dict(opt="muon", nesterow=True), ["nesterow"]),
    ],
)
def test_an_optimizer_that_timm_does_not_know(refused, tool, detector, tmp_path, optimizer, parts):
    settings = dict(_delete_=True, type="TimmOptimizer", lr=1e-3, weight_decay=0.05, **optimizer)
    detector.write_text(detector.read_text() + f"optim_wrapper = dict(optimizer={settings})\n")
    refused(tool("train", detector, "--output", tmp_path / "run"), *parts)
