"""Detectors and segmentors for other runtimes: the maps of backbone and neck, and the logits, of images of any size."""

from __future__ import annotations

import json

import pytest
import torch
from exports import export
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

SHAPES = ((1, 128, 128), (2, 75, 211))


def build(recipe, path, plain_norms, scope):
    """The model of a recipe, whose weights a checkpoint holds, with outputs that are not small."""
    init_default_scope(scope)
    torch.manual_seed(0)
    model = MODELS.build(plain_norms(Config.fromfile(recipe).model)).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save({"state_dict": model.state_dict()}, path)
    return model


def images(shape):
    return torch.randn(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(shape[1]))


def test_a_detector_gives_its_maps(detector, plain_norms, tmp_path):
    model = build(detector, tmp_path / "weights.pth", plain_norms, "mmdet")
    export(detector, tmp_path / "weights.pth", tmp_path / "maps.pt2")
    program = torch.export.load(tmp_path / "maps.pt2").module()
    for shape in SHAPES:
        for found, expected in zip(program(images(shape)), model.extract_feat(images(shape)), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    about = json.loads((tmp_path / "maps.pt2.json").read_text())
    assert [one["name"] for one in about["outputs"]] == ["map4", "map8", "map16", "map32", "map64"]
    assert about["input"]["shape"] == ["batch", 3, "height", "width"]
    assert about["input"]["pad"] == {"multiple": 32, "value": 0} and about["input"]["color"] == "RGB"
    assert about["input"]["mean"] == [76.5] * 3 and about["input"]["resize"]["scale"] == [256, 256]
    assert about["classes"] == list("0123456789") and about["task"] == "detection"
    assert about["measured"]["difference"] <= 1e-4


def test_a_segmentor_gives_its_logits(segmentor, plain_norms, tmp_path):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements/export.txt)")
    model = build(segmentor, tmp_path / "weights.pth", plain_norms, "mmseg")
    export(segmentor, tmp_path / "weights.pth", tmp_path / "net.onnx")
    session = runtime.InferenceSession(tmp_path / "net.onnx")
    for shape in SHAPES:
        x = images(shape)
        meta = dict(img_shape=shape[1:], pad_shape=shape[1:], ori_shape=shape[1:])
        expected = model.encode_decode(x, [meta] * shape[0])
        found = torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])
        assert float((found - expected).abs().max() / expected.abs().max()) <= 1e-4
    about = json.loads((tmp_path / "net.onnx.json").read_text())
    assert about["outputs"] == [{"name": "logits", "shape": ["batch", 11, "height", "width"], "stride": 1}]
    assert about["task"] == "segmentation" and len(about["classes"]) == 11
