"""Networks in other runtimes: graphs of plain operators, for batches and images of any size."""

from __future__ import annotations

import io

import pytest
import timm
import torch

import elsa.models
from elsa.kernels.portable import gathered_attention, portable_program
from elsa.kernels.reference import elsa_attention_reference
from elsa.models.layers import WindowBlock

SMALL = {
    "elsa_swin_nano": dict(embed_dim=8, num_heads=(1, 2), attention=("elsa", "window"), depths=(1, 2), ape=True,
                           img_size=64),
    "elsa_volo_nano": dict(embed_dims=(16, 32), num_heads=(1, 2), stem_hidden_dim=8, layers=(1, 1, 1, 1), img_size=64),
}  # fmt: skip
SHAPES = ((1, 64, 64), (3, 64, 64), (2, 45, 131), (1, 160, 33), (1, 32, 32))


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, elsa_kernel=3, **SMALL[name]).eval().requires_grad_(False)


def images(count: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(height))


def any_size() -> dict[int, torch.export.Dim]:
    sides = {place: torch.export.Dim(name, min=32, max=2048) for place, name in ((2, "height"), (3, "width"))}
    return {0: torch.export.Dim("batch", min=1, max=64), **sides}


def read_again(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """As a file holds it."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


def operators(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("name", SMALL)
def test_a_portable_program_has_no_operator_of_ours_and_takes_any_size(name):
    model = build(name)
    program = portable_program(model, (images(2, 608, 736),), {"x": any_size()})
    foreign = [named for named in operators(program) if "elsa" in named or "scaled_dot" in named or "mkldnn" in named]
    assert foreign == []
    module = read_again(program)
    for shape in SHAPES:
        torch.testing.assert_close(module(images(*shape)), model(images(*shape)), atol=1e-5, rtol=1e-4)


def test_outside_the_compiled_operators_stay():
    model = build("elsa_swin_nano")
    program = torch.export.export(model, (images(2),))
    assert any("elsa.attention_forward" in named for named in operators(program))


@pytest.mark.parametrize("name", SMALL)
def test_onnx_gives_the_same_numbers_at_any_size(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (requirements/export.txt)")
    model, path = build(name), tmp_path / "model.onnx"
    shapes = {"x": any_size()}
    torch.onnx.export(model, (images(2, 608, 736),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = onnxruntime.InferenceSession(path)
    for shape in SHAPES:
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images(*shape).numpy()})[0])
        torch.testing.assert_close(found, model(images(*shape)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("ghosts", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(1, 1), (3, 1), (3, 2), (7, 1)])
def test_the_formula_of_graphs_is_the_specification(kernel_size, dilation, ghosts, dtype):
    generator = torch.Generator().manual_seed(0)
    heads, channels, taps = 3, 12, kernel_size**2

    def numbers(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    value, logits = numbers(2, 5, 4, channels + 2)[..., 2:], numbers(2, 5, 4, heads * taps)
    mul, add = (numbers(channels, taps) if wanted else None for wanted in ghosts)
    arguments = (value, logits, mul, add, heads, kernel_size, dilation)
    expected = elsa_attention_reference(*arguments)
    found = gathered_attention(*arguments)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)


def test_a_layer_takes_few_nodes():
    """Of the specification it would be some seven for each of the 49 taps."""
    layer = elsa.models.ELSA(12, 3, kernel_size=7, group_width=4).eval().requires_grad_(False)
    sizes = dict(zip((0, 1, 2), (torch.export.Dim(name, min=1, max=512) for name in "bhw"), strict=True))
    program = portable_program(layer, (torch.zeros(2, 8, 9, 12),), {"x": sizes})
    assert len(program.graph.nodes) < 120


def test_windows_of_small_maps_are_not_shifted_where_the_size_is_open():
    """The rule depends on the size of the map, which a graph for any size does not know."""
    torch.manual_seed(0)
    block = WindowBlock(8, 2, window_size=4, shifted=True, shift_small_maps=False, mlp_ratio=2).eval()
    sizes = dict(zip((0, 1, 2), (torch.export.Dim(name, min=1, max=512) for name in "bhw"), strict=True))
    program = read_again(portable_program(block, (torch.zeros(2, 19, 23, 8),), {"x": sizes}))
    with torch.no_grad():
        for shape in ((1, 4, 4, 8), (2, 4, 12, 8), (1, 5, 5, 8), (2, 8, 13, 8)):
            x = torch.randn(shape)
            torch.testing.assert_close(program(x), block(x), atol=1e-5, rtol=1e-4)
