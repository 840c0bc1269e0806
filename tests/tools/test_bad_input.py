"""A user's mistake: one clear line, exit code 2, nothing left half-written."""

from __future__ import annotations

import subprocess
import sys

import pytest
import safetensors.torch
import torch


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["TRAIN.LR=-1"], ["TRAIN.LR", "-1", "between 0 and 100"]),
        (["TRAIN.EPOCHS=many"], ["TRAIN.EPOCHS must be an integer", "'many'"]),
        (["TRAIN.EPOCS=3"], ["did you mean TRAIN.EPOCHS?"]),
        (["MODEL.NAME=elsa_swin_tinny"], ["'elsa_swin_tinny'", "did you mean elsa_swin_tiny?"]),
        (["MODEL.KWARGS.elsa_kernal=3"], ["elsa_kernal", "did you mean elsa_kernel?"]),
        (["MODEL.KWARGS.elsa_kernel=4"], ["kernel_size must be odd", "4"]),
        (["MODEL.KWARGS.lam=1.5"], ["non-negative integer", "1.5"]),
        (["MODEL.NAME=vit_tiny_patch16_224", "MODEL.KWARGS={}", "DATA.IMG_SIZE=12"], ["IMG_SIZE 12"]),
        (["MODEL.NUM_CLASSES=5"], ["4 classes", "MODEL.NUM_CLASSES is 5"]),
        (["DATA.ROOT=/nowhere/at/all"], ["/nowhere/at/all does not exist"]),
        (["DATA.TRAIN_SPLIT=trian"], ["has no folder (nor .tar file) trian", "train"]),
        (["DATA.DATASET=wsd/x"], ["'wsd/x'", "wds/NAME"]),
        (["DATA.BATCH=1000"], ["48 images", "DATA.BATCH is 1000"]),
        (["DATA.BATCH=7"], ["mixup", "7"]),
        (["TRAIN.OPTIMIZER=adamm"], ["did you mean"]),
        (["TRAIN.NO_DECAY=['*.nothing']"], ["'*.nothing'", "matches no parameter"]),
        (["MODEL.PRETRAINED=absent.pt"], ["absent.pt does not exist"]),
        (
            ["AMP.ENABLED=true", "AMP.BACKEND=apex"],
            ["AMP.BACKEND apex needs a GPU (the device is cpu) and NVIDIA's apex (not installed)", "@24.04.01"],
        ),
        (["AMP.ENABLED=false", "AMP.BACKEND=apex"], ["AMP.BACKEND apex has no effect unless AMP.ENABLED is true"]),
        (
            ["AMP.ENABLED=true", "AMP.BACKEND=apex", "TRAIN.COMPILE=true"],
            ["apex works without TRAIN.COMPILE true only"],
        ),
        (
            ["TRAIN.OPTIMIZER=apex_fused_adam"],
            [
                "TRAIN.OPTIMIZER apex_fused_adam needs a GPU (the device is cpu) and NVIDIA's apex (not installed)",
                "pip install -v --no-build-isolation git+https://github.com/NVIDIA/apex",
            ],
        ),
        (["TRAIN.OPTIMIZER=fusedlamb"], ["TRAIN.OPTIMIZER fusedlamb needs a GPU", "apex (not installed)"]),
        (["TRAIN.OPTIMIZER=apex_fused_adamm"], ["did you mean apex_fused_adam?"]),
    ],
    ids=lambda value: "-".join(value)[:50] if isinstance(value, list) else None,
)
def test_training_refuses_a_bad_value(refused, tool, config, tmp_path, overrides, parts):
    refused(tool("train", config, "--output", tmp_path / "run", "--device", "cpu", "--set", *overrides), *parts)
    assert not (tmp_path / "run").exists()


def test_a_missing_config(refused, tool, tmp_path, config):
    refused(tool("train", tmp_path / "smal.yaml", "--output", tmp_path / "run"), "did you mean small.yaml?")


def test_output_is_needed(refused, tool, config):
    refused(tool("train", config), "--output DIR is needed")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99"])
def test_a_device_that_is_not_there(refused, tool, config, tmp_path, device):
    refused(tool("train", config, "--output", tmp_path / "run", "--device", device), "--device", device)


def test_an_output_that_is_a_file(refused, tool, config, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(tool("train", config, "--output", tmp_path / "file" / "run"), "is a file")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_output_that_cannot_be_made(refused, tool, config):
    """/proc takes no new folder, from root neither."""
    refused(tool("train", config, "--output", "/proc/elsa/run"), "--output /proc/elsa/run")


def test_a_folder_without_images(refused, tool, config, tmp_path):
    for split in ("train", "val"):
        for label in range(4):
            (tmp_path / "empty" / split / f"class{label}").mkdir(parents=True)
    outcome = tool("train", config, "--output", tmp_path / "run", "--set", f"DATA.ROOT={tmp_path / 'empty'}")
    refused(outcome, "train has no images")


def test_a_batch_that_does_not_divide_among_processes(refused, config, tmp_path, tool):
    refused(tool("train", config, "--output", tmp_path / "run", "--set", "TRAIN.ACCUM=3", "DATA.BATCH=8"), "ACCUM 3")


@pytest.fixture
def run(tool, config, tmp_path):
    assert tool("train", config, "--output", tmp_path / "run", "--set", "TRAIN.EPOCHS=2").code == 0
    return tmp_path / "run"


def test_a_folder_that_holds_a_run_is_not_overwritten_by_accident(refused, tool, config, run):
    before = (run / "last.pt").read_bytes()
    refused(tool("train", config, "--output", run), "--resume auto", "--overwrite")
    assert (run / "last.pt").read_bytes() == before
    assert tool("train", config, "--output", run, "--overwrite", "--set", "TRAIN.EPOCHS=2").code == 0


def test_resuming_with_another_configuration_names_the_keys(refused, tool, config, run):
    options = ["--resume", "auto", "--set", "TRAIN.EPOCHS=2", "TRAIN.LR=0.5", "AUG.ERASE=0"]
    outcome = tool("train", config, "--output", run, *options)
    refused(outcome, "TRAIN.LR: 0.003 in the checkpoint, 0.5 now", "AUG.ERASE: 0.25 in the checkpoint, 0.0 now")


def test_resuming_from_weights_only(refused, tool, config, run, tmp_path):
    weights = run / "last.safetensors"
    refused(tool("train", config, "--output", tmp_path / "new", "--resume", weights), "weights only", "PRETRAINED")


def evaluated(tool, config, path, *options):
    return tool("evaluate", config, path, "--output", path.parent / "eval", *options)


def test_a_checkpoint_that_does_not_exist(refused, tool, config, run):
    refused(evaluated(tool, config, run / "lost.pt"), "lost.pt does not exist", "last.pt")


@pytest.mark.parametrize("file", ["last.pt", "last.safetensors"])
def test_a_truncated_checkpoint(refused, tool, config, run, tmp_path, file):
    cut = tmp_path / file
    cut.write_bytes((run / file).read_bytes()[:5000])
    refused(evaluated(tool, config, cut), file, "truncated")
    assert not (tmp_path / "eval").exists()


def test_a_pickle_that_runs_code_is_not_executed(refused, exploit, tool, config, run, tmp_path):
    torch.save({"state_dict": {}, "surprise": exploit(tmp_path / "executed")}, tmp_path / "evil.pt")
    refused(evaluated(tool, config, tmp_path / "evil.pt"), "not executed", "--trust-checkpoint")
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_model(refused, tool, config, tmp_path):
    safetensors.torch.save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.safetensors")
    refused(
        evaluated(tool, config, tmp_path / "resnet.safetensors"), "missing: patch_embed.proj.weight", "conv1.weight"
    )


def test_a_checkpoint_of_another_class_count(refused, tool, config, run, tmp_path):
    state = {name: tensor.clone() for name, tensor in torch.load(run / "last.pt")["state_dict"].items()}
    state["head.weight"], state["head.bias"] = torch.zeros(7, state["head.weight"].shape[1]), torch.zeros(7)
    torch.save(state, tmp_path / "seven.pt")
    refused(evaluated(tool, config, tmp_path / "seven.pt"), "head.weight is (7, 64), the model has (4, 64)")


def test_the_exit_code_reaches_the_shell(root, tmp_path):
    command = [sys.executable, str(root / "tools/train.py"), str(tmp_path / "none.yaml"), "--output", "x"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "options", "message"),
    [
        ("absent", [], "absent does not exist"),
        (".", [], "has no images"),
        (".", ["--top", "9"], "--top must be between"),
    ],
)
def test_nothing_to_predict(refused, tool, config, run, tmp_path, place, options, message):
    (tmp_path / "bare").mkdir()
    refused(tool("predict", config, run / "last.pt", tmp_path / "bare" / place, *options), message)
