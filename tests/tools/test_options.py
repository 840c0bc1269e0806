"""Options and keys that would have no effect are refused, in every task."""

from __future__ import annotations

import pytest

RUNNER_ONLY = {
    "custom_hooks": ('[dict(type="EMAHook")]', ["custom_hooks (EMAHook)", "run.ema_decay"]),
    "default_hooks": ('dict(checkpoint=dict(type="CheckpointHook"))', ["train_cfg.save_steps"]),
    "vis_backends": ('[dict(type="TensorboardVisBackend")]', ["TensorboardVisBackend", "run's folder"]),
    "env_cfg": ("dict(cudnn_benchmark=True)", ["--device"]),
    "log_processor": ("dict(by_epoch=False)", ["run.log_every"]),
    "log_level": ('"INFO"', ["train.log"]),
    "load_from": ('"x.pth"', ["model.backbone.pretrained", "--resume"]),
    "resume": ("True", ["--resume"]),
    "auto_scale_lr": ("dict(base_batch_size=16)", ["global_batch"]),
    "val_cfg": ('dict(type="ValLoop")', ["train_cfg.val_interval"]),
}


@pytest.mark.parametrize("name", RUNNER_ONLY)
def test_keys_that_only_the_runner_reads(refused, tool, detector, tmp_path, name):
    value, parts = RUNNER_ONLY[name]
    detector.write_text(detector.read_text() + f"{name} = {value}\n")
    outcome = tool("train", detector, "--output", tmp_path / "run")
    refused(outcome, name, "mmengine's Runner alone", *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("train_dataloader = dict(batch_size=8)", ["train_dataloader.batch_size has no effect", "global_batch"]),
        ("train_dataloader = dict(sampler=dict(type='DefaultSampler'))", ["train_dataloader.sampler", "seed alone"]),
        ("train_cfg = dict(dynamic_intervals=[(1, 2)])", ["train_cfg.dynamic_intervals", "val_interval"]),
        ("train_cfg = dict(type='IterBasedTrainLoop')", ["IterBasedTrainLoop", "one trainer"]),
        ("run = dict(metrik='coco/bbox_mAP')", ["run.metrik has no effect", "did you mean metric?"]),
        ("run = dict(metric='coco/bbox_mAPP')", ["'coco/bbox_mAPP'", "did you mean coco/bbox_mAP?"]),
        ("train_dataloader['aspect_group'] = 3", ["global_batch 2", "aspect_group 3"]),
        ("optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(relative_position_bias_table=dict(decay_mult=0))))",
         ["'relative_position_bias_table' is part of no parameter's name"]),
    ],
)  # fmt: skip
def test_keys_without_effect(refused, tool, detector, tmp_path, line, parts):
    detector.write_text(detector.read_text() + line + "\n")
    refused(tool("train", detector, "--output", tmp_path / "run"), *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("backbone.drop_path_rate=0.5", "backbone is a helper variable"),
        ("train_pipeline.0.type=X", "set train_dataloader.dataset.dataset.pipeline"),
        ("test_pipeline.1.scale=(8, 8)", "set val_dataloader.dataset.pipeline"),
        ("normalize.mean=[1, 1, 1]", "normalize is a helper variable"),
        ("digits.classes=('a',)", "set train_dataloader.dataset.dataset.metainfo"),
    ],
)
def test_helper_variables_of_a_recipe(refused, tool, root, tmp_path, override, part):
    recipe = root / "configs/detection/mask_rcnn_elsa_swin_nano_digits.py"
    outcome = tool("train", recipe, "--output", tmp_path / "run", "--set", override)
    refused(outcome, f"--set {override.split('=')[0]} would have no effect", part)


def test_every_helper_variable_of_every_recipe_is_refused(root):
    """Their values were copied when the file was read: an override would be lost."""
    from mmengine.config import Config

    from elsa.core import ConfigError
    from elsa.tools.tasks.mm.keys import READ
    from elsa.tools.tasks.mm.overrides import apply_overrides

    recipes = [*(root / "configs/detection").glob("*_tiny_1x.py"), *(root / "configs").glob("*/*digits.py"),
               root / "configs/segmentation/upernet_elsa_swin_tiny.py"]  # fmt: skip
    tried = set()
    for path in recipes:
        config = Config.fromfile(path)
        for name in set(config) - set(READ):
            value = config[name]
            below = next(iter(value)) if isinstance(value, dict) and value else 0
            with pytest.raises(ConfigError, match=f"{name} is a helper variable"):
                apply_overrides(config, [f"{name}.{below}=1"], READ)
            tried.add(name)
    assert len(tried) >= 12


@pytest.mark.parametrize(
    ("verb", "which", "option", "parts"),
    [
        ("evaluate", "config", ["--per-class"], ["--per-class is an option of detection and segmentation"]),
        ("evaluate", "config", ["--scales", "single"], ["--scales is an option of segmentation"]),
        ("evaluate", "detector", ["--scales", "single"], ["--scales is an option of segmentation"]),
        ("evaluate", "detector", ["--tta", "flip"], ["--tta is an option of classification"]),
        ("predict", "detector", ["--top", "3"], ["--top is an option of classification"]),
        ("predict", "config", ["--threshold", "0.5"], ["--threshold is an option of detection"]),
        ("predict", "segmentor", ["--threshold", "0.5"], ["--threshold is an option of detection"]),
        ("train", "segmentor", ["--per-class"], ["unknown argument '--per-class'"]),
        ("train", "config", ["--outptu", "x"], ["unknown argument '--outptu'", "did you mean --output?"]),
    ],
)
def test_options_of_another_task(refused, tool, request, tmp_path, verb, which, option, parts):
    recipe = request.getfixturevalue(which)
    needed = {"train": [], "evaluate": ["x.pt"], "predict": ["x.pt", tmp_path]}[verb]
    refused(tool(verb, recipe, *needed, "--output", tmp_path / "out", *option), *parts)
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_found_by_its_name(refused, tool):
    assert "elsa_swin_tiny" in tool("train", "elsa_swin_tiny", "--print-config").out
    assert "MaskRCNN" in tool("train", "mask_rcnn_elsa_swin_tiny_1x", "--print-config").out
    refused(tool("train", "elsa_swin_tinny", "--output", "x"), "neither a file nor a shipped recipe", "elsa_swin_tiny?")


def test_help_lists_the_options_of_every_task(tool):
    outcome = tool("evaluate", "--help")
    assert outcome.code == 0
    assert "segmentation alone" in outcome.out
    assert "--scales" in outcome.out
