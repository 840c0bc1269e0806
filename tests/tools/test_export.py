"""Classifiers for other runtimes: the same numbers as PyTorch's, and what a user needs beside them."""

from __future__ import annotations

import argparse
import json

import pytest
import safetensors
import timm
import torch

import elsa.models  # noqa: F401  (registers the networks)
from elsa.core import ConfigError, TrainingError
from elsa.engine import load_recipe
from elsa.tools.tasks import exporting

CLASSES = ["ant", "bee", "cat"]
SMALL = """
MODEL: {NAME: elsa_swin_nano, NUM_CLASSES: 3, KWARGS: {elsa_kernel: 3, window_size: 7}}
DATA: {DATASET: folder, ROOT: nowhere, IMG_SIZE: 28, BATCH: 8}
AUG: {MIXUP: 0.0, CUTMIX: 0.0}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(recipe, checkpoint, network) of a classifier."""
    folder = tmp_path_factory.mktemp("trained")
    recipe, checkpoint = folder / "small.yaml", folder / "best.pt"
    recipe.write_text(SMALL)
    torch.manual_seed(0)
    model = timm.create_model("elsa_swin_nano", num_classes=3, img_size=28, window_size=7, elsa_kernel=3).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"state_dict": model.state_dict(), "classes": CLASSES}, checkpoint)
    return recipe, checkpoint, model


@pytest.fixture
def export(trained, tool, tmp_path):
    def call(name, *options):
        recipe, checkpoint, _ = trained
        return tool("export", recipe, checkpoint, "--output", tmp_path / name, *options)

    return call


@pytest.fixture
def arguments(trained, tmp_path):
    """(recipe, arguments) for the verb's function, of a program of torch.export."""
    given = dict(output=tmp_path / "net.pt2", format="torch", overwrite=False, device="auto")
    args = argparse.Namespace(checkpoint=trained[1], trust_checkpoint=False, **given)
    return load_recipe(trained[0], []), args


def images(count):
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(count))


def test_onnx(trained, export, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements/export.txt)")
    outcome = export("net.onnx")
    assert outcome.code == 0, outcome.err
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    for count in (1, 5):
        found = torch.from_numpy(session.run(["logits"], {"images": images(count).numpy()})[0])
        torch.testing.assert_close(found, trained[2](images(count)).detach(), atol=1e-4, rtol=1e-4)
    about = json.loads((tmp_path / "net.onnx.json").read_text())
    assert json.loads(session.get_modelmeta().custom_metadata_map["elsa"]) == about
    assert about["classes"] == CLASSES
    assert about["input"]["shape"] == ["batch", 3, 28, 28]
    assert about["input"]["mean"] == [0.485, 0.456, 0.406]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]


def test_program(trained, export, tmp_path):
    outcome = export("net.pt2")
    assert outcome.code == 0, outcome.err
    extra = {exporting.ENTRY: ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    with torch.no_grad():
        torch.testing.assert_close(program(images(5)), trained[2](images(5)), atol=1e-4, rtol=1e-4)
    assert json.loads(extra[exporting.ENTRY])["classes"] == CLASSES
    assert "differs from PyTorch by" in outcome.err + outcome.out


def test_weights(trained, export, tmp_path):
    outcome = export("net.safetensors")
    assert outcome.code == 0, outcome.err
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as stream:
        assert json.loads(stream.metadata()["elsa"])["classes"] == CLASSES
        for name, tensor in trained[2].state_dict().items():
            assert torch.equal(stream.get_tensor(name), tensor)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("net.onx", [], "must end in .onnx, .pt2, .safetensors"),
        ("net.onnx", ["--format", "aoti"], "must end in .pt2"),
        (
            "net.pt2",
            ["--device", "cuda"],
            "--device cuda: networks are exported, and compared with PyTorch, on the CPU",
        ),
    ],
)
def test_mistakes(export, tmp_path, name, options, said):
    outcome = export(name, *options)
    assert outcome.code == 2 and said in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(export, tmp_path):
    (tmp_path / "net.safetensors").write_text("mine")
    outcome = export("net.safetensors")
    assert outcome.code == 2 and "exists; --overwrite replaces it" in outcome.err
    assert (tmp_path / "net.safetensors").read_text() == "mine"


def test_what_computes_something_else_is_not_kept(trained, arguments, tmp_path, monkeypatch):
    model = trained[2]
    monkeypatch.setitem(exporting.WRITERS, "torch", lambda *_: lambda x: model(x) * 1.001)
    with pytest.raises(TrainingError, match=r"differs from PyTorch by 1\.0e-03 of the largest logit"):
        exporting.export_classifier(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_named(arguments, tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("Dynamic control flow is not supported\nmore")

    monkeypatch.setitem(exporting.WRITERS, "torch", fails)
    with pytest.raises(ConfigError, match="elsa_swin_nano cannot be exported as torch: Dynamic control flow"):
        exporting.export_classifier(*arguments)
    assert list(tmp_path.iterdir()) == []
