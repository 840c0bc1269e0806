"""Networks in other runtimes: graphs of plain operators, in which the batch may be of any size."""

from __future__ import annotations

import pytest
import timm
import torch

import elsa.models  # noqa: F401  (registers the networks)
from elsa.kernels import portable

NETWORKS = {"elsa_swin_nano": dict(img_size=28, window_size=7), "elsa_volo_nano": dict(img_size=32)}


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, elsa_kernel=3, **NETWORKS[name]).eval()


def images(count: int, model: torch.nn.Module) -> torch.Tensor:
    size = model.patch_embed.img_size[0] if hasattr(model.patch_embed, "img_size") else 32
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_portable_program_has_no_operator_of_ours(name):
    model = build(name)
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    with torch.no_grad(), portable():
        program = torch.export.export(model, (images(2, model),), dynamic_shapes=shapes)
    foreign = [named for named in operators(program) if "elsa" in named or "scaled_dot" in named or "mkldnn" in named]
    assert foreign == []
    with torch.no_grad():
        for count in (1, 3):
            x = images(count, model)
            torch.testing.assert_close(program.module()(x), model(x), atol=1e-5, rtol=1e-4)


def test_outside_the_compiled_operators_stay():
    model = build("elsa_swin_nano")
    with torch.no_grad():
        program = torch.export.export(model, (images(2, model),))
    assert any("elsa.attention_forward" in named for named in operators(program))


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_the_same_numbers(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements/export.txt)")
    model, path = build(name), tmp_path / "model.onnx"
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    torch.onnx.export(model, (images(2, model),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for count in (1, 3):
        x = images(count, model)
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        torch.testing.assert_close(found, model(x).detach(), atol=1e-5, rtol=1e-4)
