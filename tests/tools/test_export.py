"""Classifiers for other runtimes: the same numbers as PyTorch's, and what a user needs beside them."""

from __future__ import annotations

import json
import logging

import pytest
import safetensors
import timm
import torch
from exports import arguments, export, small

import elsa.models  # noqa: F401  (registers the networks)
from elsa.core import ConfigError, TrainingError
from elsa.models import load_pretrained
from elsa.tools.tasks.exporting import formats
from elsa.tools.tasks.exporting.pooling import pool_by_products
from elsa.tools.tasks.exporting.writing import export_network

CLASSES = ["ant", "bee", "cat"]
SIZES = dict(embed_dim=8, num_heads=(1, 2), depths=(1, 2), attention=("elsa", "window"), elsa_kernel=3)
SMALL = """
MODEL: {NAME: elsa_swin_nano, NUM_CLASSES: 3, KWARGS: {embed_dim: 8, num_heads: [1, 2], depths: [1, 2],
        attention: [elsa, window], elsa_kernel: 3}}
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
    model = timm.create_model("elsa_swin_nano", num_classes=3, img_size=28, **SIZES).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save({"state_dict": model.state_dict(), "classes": CLASSES}, checkpoint)
    return recipe, checkpoint, model.requires_grad_(False)


@pytest.fixture
def verb(trained, tool, tmp_path):
    def call(name, *options):
        recipe, checkpoint, _ = trained
        return tool("export", recipe, checkpoint, "--output", tmp_path / name, *options)

    return call


def images(count, height=28, width=28):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(count))


def onnxruntime():
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements/export.txt)")


def test_onnx(trained, verb, tmp_path):
    runtime = onnxruntime()
    outcome = verb("net.onnx")
    assert outcome.code == 0, outcome.err
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    for shape in ((1,), (5,), (2, 45, 61), (1, 96, 33)):
        found = torch.from_numpy(session.run(["logits"], {"images": images(*shape).numpy()})[0])
        torch.testing.assert_close(found, trained[2](images(*shape)), atol=1e-4, rtol=1e-4)
    about = json.loads((tmp_path / "net.onnx.json").read_text())
    measured = about.pop("measured")
    assert json.loads(session.get_modelmeta().custom_metadata_map["elsa"]) == about
    assert about["classes"] == CLASSES
    assert about["input"]["shape"] == ["batch", 3, "height", "width"] and about["input"]["trained_with"] == [28, 28]
    assert about["input"]["mean"] == [0.485, 0.456, 0.406]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.json"]
    assert measured["difference"] <= 1e-4
    assert {name: list(times) for name, times in measured["milliseconds"].items()} == {
        name: ["1×28×28", "3×28×28"] for name in ("PyTorch", "onnx")
    }
    lines = outcome.err.splitlines()
    assert any("1×28×28" in line and "3×28×28" in line for line in lines)
    assert any(line.split()[-5:-4] == ["onnx"] and line.endswith("ms") for line in lines)


def test_program(trained, tmp_path):
    export(*trained[:2], tmp_path / "net.pt2")
    extra = {formats.ENTRY: ""}
    program = torch.export.load(tmp_path / "net.pt2", extra_files=extra).module()
    for shape in ((1,), (5,), (2, 45, 61), (1, 96, 33)):
        torch.testing.assert_close(program(images(*shape)), trained[2](images(*shape)), atol=1e-4, rtol=1e-4)
    assert json.loads(extra[formats.ENTRY])["classes"] == CLASSES
    assert (tmp_path / "net.pt2").stat().st_size < 2e6  # not with the images that it was traced with


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (8, 13)])
@pytest.mark.parametrize("parts", [2, (3, 4), 6])
def test_adaptive_pooling_by_products(size, parts):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(parts))
    x = torch.randn(2, 3, *size)
    assert pool_by_products(network)[0].__class__.__name__ == "ProductPool"
    torch.testing.assert_close(pool_by_products(network)(x), network(x))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights(trained, tmp_path, dtype):
    path = export(*trained[:2], tmp_path / "net.safetensors", dtype=dtype)
    with safetensors.safe_open(path, "pt") as stream:
        assert json.loads(stream.metadata()["elsa"])["classes"] == CLASSES
        for name, tensor in trained[2].state_dict().items():
            wanted = tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
            assert torch.equal(stream.get_tensor(name), wanted)
    difference = json.loads(path.with_name("net.safetensors.json").read_text())["measured"]["difference"]
    assert difference == 0 if dtype == "float32" else 1e-4 < difference < 0.1
    model = timm.create_model("elsa_swin_nano", num_classes=3, img_size=28, **SIZES)
    report = load_pretrained(model, path)
    assert report.cast == (() if dtype == "float32" else ("bfloat16",))


def test_accuracy_of_what_was_written(config, tmp_path):
    torch.manual_seed(0)
    sizes = dict(embed_dim=8, num_heads=(1, 1, 2, 2), elsa_kernel=3, window_size=3)
    model = timm.create_model("elsa_swin_nano", num_classes=4, img_size=32, **sizes)
    torch.save(
        {"state_dict": model.state_dict(), "classes": [f"class{label}" for label in range(4)]}, tmp_path / "a.pt"
    )
    path = export(config, tmp_path / "a.pt", tmp_path / "net.safetensors", accuracy=True)
    top1 = json.loads(path.with_name("net.safetensors.json").read_text())["measured"]["top1"]
    assert top1["PyTorch"] == top1["safetensors"] and top1["PyTorch"] % 5 == 0 and 0 <= top1["PyTorch"] <= 100


# ---- sizes, types, integers


@pytest.mark.parametrize("size", ["auto", "any", "fixed"])
def test_sizes_of_a_network_that_takes_any(size, tmp_path):
    export_network(small(), arguments(tmp_path / "net.pt2", size=size), "torch")
    program = torch.export.load(tmp_path / "net.pt2").module()
    shape = json.loads((tmp_path / "net.pt2.json").read_text())["input"]["shape"]
    if size == "fixed":
        assert shape == ["batch", 3, 16, 16]
        with pytest.raises(AssertionError, match=r"Guard failed"):
            program(images(1, 32, 32))
    else:
        assert shape == ["batch", 3, "height", "width"]
        assert torch.allclose(program(images(1, 32, 20)), small().call(images(1, 32, 20))[0], atol=1e-5)


def test_a_network_of_one_size_says_so(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "elsa"):
        export_network(small(16), arguments(tmp_path / "net.pt2"), "torch")
    assert "images of 16×16 alone: small takes no others: the width must be 16, got 33" in caplog.text
    assert json.loads((tmp_path / "net.pt2.json").read_text())["input"]["shape"] == ["batch", 3, 16, 16]
    with pytest.raises(ConfigError, match="--size any: small takes images of one size: the width must be 16"):
        export_network(small(16), arguments(tmp_path / "other.pt2", size="any"), "torch")


def test_int8(tmp_path):
    runtime = onnxruntime()
    export_network(small(), arguments(tmp_path / "float.onnx"), "onnx")
    export_network(small(), arguments(tmp_path / "int8.onnx", quantize="int8"), "onnx")
    measured = json.loads((tmp_path / "int8.onnx.json").read_text())["measured"]
    assert 1e-5 < measured["difference"] < 0.1
    session, x = runtime.InferenceSession(tmp_path / "int8.onnx"), images(2, 24, 20)
    (found,) = session.run(["logits"], {"images": x.numpy()})
    expected = small().call(x)[0]
    assert 0 < float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max()) < 0.1
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (requirements/export.txt)")
    integers = [node for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "MatMulInteger"]
    assert len(integers) == 2


def test_bfloat16(tmp_path):
    export_network(small(), arguments(tmp_path / "net.pt2", dtype="bfloat16"), "torch")
    program, x = torch.export.load(tmp_path / "net.pt2"), images(2, 24, 20)
    assert {value.dtype for value in program.state_dict.values()} == {torch.bfloat16}
    found, expected = program.module()(x), small().call(x)[0]
    (found,) = found
    assert found.dtype == torch.float32
    assert 0 < float((found - expected).abs().max() / expected.abs().max()) < 0.1


# ---- refusals


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("net.onx", [], "must end in .onnx, .pt2, .safetensors, or --format hub"),
        ("net.onnx", ["--format", "aoti"], "must end in .pt2"),
        (
            "net.pt2",
            ["--device", "cuda"],
            "--device cuda: networks are exported, and compared with PyTorch, on the CPU",
        ),
        ("net.safetensors", ["--size", "any"], "--size any has no effect on safetensors"),
        ("net.pt2", ["--quantize", "int8"], "--quantize int8 is of ONNX files, and this is torch"),
        ("net.onnx", ["--dtype", "bfloat16"], "no convolution in bfloat16"),
        ("net", ["--format", "hub", "--dtype", "bfloat16"], "--dtype bfloat16 has no effect on hub"),
    ],
)
def test_mistakes(verb, tmp_path, name, options, said):
    outcome = verb(name, *options)
    assert outcome.code == 2 and said in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(verb, tmp_path):
    (tmp_path / "net.safetensors").write_text("mine")
    outcome = verb("net.safetensors")
    assert outcome.code == 2 and "exists; --overwrite replaces it" in outcome.err
    assert (tmp_path / "net.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("changed", "options", "said"),
    [
        (lambda x: x * 1.001, {}, r"differs from PyTorch by 1\.0e-03 of the largest number of logits"),
        (lambda x: x * torch.nan, {"quantize": "int8"}, r"differs from PyTorch by nan"),
        (lambda x: x[:, :2], {}, r"gives logits of \(1, 2\) for \(1, 5\)"),
    ],
)
def test_what_computes_something_else_is_not_kept(tmp_path, monkeypatch, changed, options, said):
    subject = small()
    monkeypatch.setitem(formats.WRITERS, "onnx", lambda *_: lambda x: (changed(subject.call(x)[0]),))
    with pytest.raises(TrainingError, match=said):
        export_network(subject, arguments(tmp_path / "net.onnx", **options), "onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_named(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("Dynamic control flow is not supported\nmore")

    monkeypatch.setitem(formats.WRITERS, "torch", fails)
    with pytest.raises(ConfigError, match="small cannot be exported as torch: Dynamic control flow"):
        export_network(small(), arguments(tmp_path / "net.pt2"), "torch")
    assert list(tmp_path.iterdir()) == []
