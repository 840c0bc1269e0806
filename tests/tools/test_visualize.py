"""What tools/visualize.py shows of a classifier: the attention is the module's own, fields and evidence are where they
must be, samples are what a training gets; and a user's mistakes."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from elsa.data import Batch, TokenLabels
from elsa.engine import load_recipe
from elsa.kernels.reference import elsa_attention_reference
from elsa.models import ELSA
from elsa.tools.tasks.visualize.attention import choose, elsa_layers, hadamard_attention, watched, with_ghost_head
from elsa.tools.tasks.visualize.classifier import Explained
from elsa.tools.tasks.visualize.evidence import grad_cam
from elsa.tools.tasks.visualize.field import receptive_fields, stage_maps
from elsa.tools.tasks.visualize.look import Picture
from elsa.tools.tasks.visualize.sheet import Samples, TokenSamples

SMALL = dict(embed_dim=8, num_heads=[1, 1, 2, 2], elsa_kernel=3, window_size=3)
PICTURES = ("attention.html", "attention.png", "ghost_head.png", "receptive_field.png", "gradcam.png")


@pytest.fixture
def needs_grad_cam():
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed (requirements/visualize.txt)")


@pytest.fixture
def weights(tmp_path):
    """Those of the small classifier, as initialised."""
    torch.manual_seed(0)
    model = timm.create_model("elsa_swin_nano", num_classes=4, **SMALL)
    save_file(model.state_dict(), tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


# ---- attention


@pytest.mark.parametrize(
    "settings",
    [
        dict(lam=0, gamma=1),
        dict(lam=1, gamma=1, dilation=2),
        dict(lam=2, gamma=0, kernel_size=5),
        dict(lam=0, gamma=0, groups=2),
        dict(lam=1, gamma=0.5, qkv_bias=True, qk_scale=1.0),
    ],
)
def test_the_attention_shown_is_what_the_module_weighs_by(settings):
    torch.manual_seed(0)
    module = ELSA(16, 2, **{"kernel_size": 3, "group_width": 4, **settings}).eval()
    side, dilation = module.kernel_size, module.dilation
    if module.ghost_head is not None:
        nn.init.normal_(module.ghost_head)
    x, weighed = torch.randn(2, 5, 8, 16), []
    module.post_proj.register_forward_pre_hook(lambda _, inputs: weighed.append(inputs[0]))
    with torch.no_grad():
        attention, value = hadamard_attention(module, x)
        whole = module(x)
        assert attention.shape == (2, 5, 8, 2, side**2)
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 5, 8, 2))

        by_reference = elsa_attention_reference(
            value, attention.log().flatten(-2), *module.ghost_maps(), 2, side, dilation
        )
        torch.testing.assert_close(F.linear(by_reference, module.post_proj.weight, module.post_proj.bias), whole)

        reach = dilation * (side // 2)
        around = F.unfold(value.permute(0, 3, 1, 2), side, dilation, reach).reshape(2, 16, side**2, 5, 8)
        of_channels = with_ghost_head(module, attention)
        aggregated = torch.einsum("bhwct,bcthw->bhwc", of_channels, around)
        torch.testing.assert_close(F.linear(aggregated, module.post_proj.weight, module.post_proj.bias), whole)


def test_every_layer_is_watched_and_left_as_it_was():
    torch.manual_seed(0)
    network = timm.create_model("elsa_swin_nano", num_classes=4, **SMALL).eval()
    layers, seen = elsa_layers(network), []
    image = torch.randn(1, 3, 40, 56)
    with torch.no_grad():
        before = network(image)
        with watched(layers, lambda layer, attention: seen.append((layer, attention))):
            assert torch.equal(network(image), before)
        network(image)
    assert [layer for layer, _ in seen] == layers
    for layer, attention in seen:
        assert network.get_submodule(layer.name) is layer.module
        assert attention.shape == (1, *layer.grid(40, 56), layer.module.num_heads, 9)
    assert {layer.stage for layer in layers} == {1, 2, 3}
    volo = timm.create_model("elsa_volo_nano", num_classes=4)
    assert {(layer.stage, layer.stride) for layer in elsa_layers(volo)} == {(1, 8)}
    assert elsa_layers(timm.create_model("resnet18")) == []


@pytest.mark.parametrize("x, y", [(0, 0), (55, 3), (17, 39), (33, 20)])
def test_a_pixel_of_a_picture_that_is_no_square_belongs_to_its_cell(x, y):
    """Changing the pixel changes the map that a stage gets in that cell, and there alone."""
    torch.manual_seed(0)
    network = timm.create_model("elsa_swin_nano", num_classes=4, **SMALL).eval()
    image = torch.randn(1, 3, 40, 56)
    other = image.clone()
    other[..., y, x] += 1
    with torch.no_grad():
        maps = [network.embed(one) for one in (image, other)]
        for stage in (1, 2, 3):
            layer, _ = choose(elsa_layers(network), stage, 1, 1)
            changed = (maps[0] != maps[1]).any(-1)[0].nonzero().tolist()
            assert changed == [list(layer.cell(x, y))]
            maps = [network.layers[stage - 1].downsample(one) for one in maps]


# ---- receptive fields


class Layers(nn.Module):
    """A backbone of convolutions, the map of each a stage."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        maps = []
        for layer in self.layers:
            maps.append(x := layer(x))
        return maps


def test_the_field_of_convolutions_is_as_large_as_they_are():
    torch.manual_seed(0)
    network = Layers(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2), nn.Conv2d(8, 8, 3, 2, 1))
    images = [(torch.randn(1, 3, 20, 28), (20, 28)), (torch.randn(1, 3, 24, 24), (24, 24))]
    first, second, third = receptive_fields(stage_maps(network), images)
    for field, side in ((first, 3), (second, 7)):
        rows, columns = (field.values > 0).nonzero()
        assert field.side(1.0) == side
        assert (rows.min(), rows.max()) == (field.row - side // 2, field.row + side // 2)
        assert (columns.min(), columns.max()) == (field.column - side // 2, field.column + side // 2)
        assert field.values.max() == 1
    assert third.grid == (12, 12) and (third.values > 0).sum() == 9 * 9


def test_a_field_behind_a_layer_norm_does_not_vanish():
    torch.manual_seed(0)
    network = Layers(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(1, 8)))
    mean = nn.LayerNorm(8)

    def normed(x):
        return {1: mean(network.layers[0][0](x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)}

    [field] = receptive_fields(normed, [(torch.randn(1, 3, 9, 9), (9, 9))])
    assert (field.values > 1e-3).sum() == 9


# ---- evidence


def test_evidence_lies_where_the_score_comes_from(needs_grad_cam):
    """A score that is the mean of red over the picture, of a picture that is red in a corner."""
    red = nn.Conv2d(3, 2, 1, bias=False)
    red.weight.data = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])[..., None, None]

    class Score(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = red

        def forward(self, images):
            return self.maps(images)[:, 0].mean((1, 2))

    image = torch.zeros(1, 3, 16, 24)
    image[:, 2] = 1
    image[:, 0, :6, 16:] = 1
    model = Score()
    heat = grad_cam(model, [model.maps], image)
    assert heat.shape == (16, 24)
    assert heat[:6, 16:].min() > 0.9 and heat[8:].max() < 0.1 and heat[:, :14].max() < 0.1


@pytest.mark.parametrize("name", ["elsa_swin_nano", "elsa_volo_nano", "resnet18", "vit_tiny_patch16_224"])
def test_every_kind_of_network_is_explained(needs_grad_cam, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=4, img_size=64) if "res" not in name else timm.create_model(name)
    model.eval().requires_grad_(False)
    picture = Picture(None, np.zeros((64, 64, 3), np.uint8), torch.randn(1, 3, 64, 64))
    found = Explained(model, [f"class {number}" for number in range(1000)], 2)(picture)
    assert found.heat.shape == (64, 64) and found.heat.max() > 0.9 and found.heat.std() > 0
    assert found.text.startswith("Grad-CAM of class 2, asked for")


# ---- the verb


def test_the_commands_of_the_page_and_a_damaged_picture(needs_grad_cam, tool, root, config, images, tmp_path):
    outcome = tool("train", config, "--output", tmp_path / "run", "--set", "TRAIN.EPOCHS=1", "TRAIN.WARMUP_EPOCHS=0")
    assert outcome.code == 0, outcome.err
    (tmp_path / "folder").mkdir()
    shutil.copy(images / "val" / "class2" / "1.png", tmp_path / "folder")
    known = {"runs/quickstart/best.pt": tmp_path / "run" / "last.pt", "CONFIG": config, "FOLDER": tmp_path / "folder",
             "CHECKPOINT": tmp_path / "run" / "last.safetensors", "IMAGE": images / "val" / "class0" / "0.png",
             "runs/visualize": tmp_path / "first", "samples.png": tmp_path / "samples.png"}  # fmt: skip
    commands = re.findall(r"^python tools/visualize.py (.+)$", (root / "docs/visualize.md").read_text(), re.MULTILINE)
    assert len(commands) == 3
    for number, command in enumerate(commands):
        output = [] if "--output" in command else ["--output", tmp_path / str(number)]
        outcome = tool("visualize", *(known.get(word, word) for word in command.split()), *output)
        assert outcome.code == 0, outcome.err
    assert (tmp_path / "samples.png").exists()
    assert {path.name for path in (tmp_path / "first").iterdir()} == set(PICTURES)
    for name in PICTURES[1:]:
        assert np.asarray(Image.open(tmp_path / "first" / name).convert("L")).std() > 10

    (tmp_path / "bad.png").write_bytes(b"no picture")
    paths = [tmp_path / "bad.png", images / "val" / "class1" / "0.png"]
    outcome = tool("visualize", tmp_path / "run" / "last.pt", *paths, "--output", tmp_path / "seen", "--noise", "3")
    assert outcome.code == 0, outcome.err
    assert f"skipping {tmp_path / 'bad.png'} cannot be read" in outcome.err and "1 picture:" in outcome.err
    assert (tmp_path / "seen" / "attention.html").exists()


def test_a_network_without_elsa(needs_grad_cam, tool, refused, config, images, tmp_path):
    kwargs = {**SMALL, "attention": ["window"] * 4}
    save_file(timm.create_model("elsa_swin_nano", num_classes=4, **kwargs).state_dict(), tmp_path / "w.safetensors")
    path = images / "val" / "class0" / "0.png"
    common = [config, tmp_path / "w.safetensors", path, "--set", "MODEL.KWARGS.attention=[window,window,window,window]"]
    outcome = tool("visualize", *common, "--output", tmp_path / "seen")
    assert outcome.code == 0, outcome.err
    assert "elsa_swin_nano has no ELSA" in outcome.err
    assert {path.name for path in (tmp_path / "seen").iterdir()} == {"receptive_field.png", "gradcam.png"}
    refused(tool("visualize", *common, "--head", "1", "--output", tmp_path / "other"), "--head", "has no ELSA")


@pytest.mark.parametrize(
    "options, parts",
    [
        (["--stage", "4"], ["--stage 4 has no ELSA", "there are 1 … 3"]),
        (["--stage", "1", "--block", "9"], ["--block 9 of stage 1", "there is block 1 alone"]),
        (["--head", "3"], ["--head 3", "there are 1 … 2"]),
        (["--position", "32,4"], ["--position 32,4", "X is 0 … 31, Y is 0 … 31"]),
        (["--position", "middle"], ["--position must be X,Y", "middle"]),
        (["--target", "clas1"], ["--target clas1"]),
        (["--noise", "0"], ["--noise must be at least 1, got 0"]),
        (["--top", "3"], ["--top"]),
    ],
)
def test_mistakes(needs_grad_cam, tool, refused, config, weights, images, tmp_path, options, parts):
    path = images / "val" / "class0" / "0.png"
    refused(tool("visualize", config, weights, path, "--output", tmp_path / "seen", *options), *parts)
    assert not (tmp_path / "seen").exists()


def test_nothing_that_can_be_read(tool, refused, config, weights, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    outcome = tool("visualize", config, weights, tmp_path / "bad.png", "--output", tmp_path / "seen")
    refused(outcome, "none of the 1 images can be read")
    refused(tool("visualize", config, weights, tmp_path / "none.png"), "none.png does not exist")


# ---- samples


def batch_of(colours):
    """Images of one colour each, normalised as the recipe says, of classes 0, 1, …"""
    images = torch.tensor(colours)[:, :, None, None].expand(-1, -1, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return Batch((images - mean) / std, torch.arange(len(colours)), torch.arange(len(colours)))


@pytest.mark.parametrize("kind", ["MIXUP", "CUTMIX"])
def test_shares_that_are_told_are_those_of_the_pixels(config, kind):
    other = "CUTMIX" if kind == "MIXUP" else "MIXUP"
    recipe = load_recipe(config, [f"AUG.{kind}=1.0", f"AUG.{other}=0.0", "AUG.SMOOTHING=0.0"])
    samples = Samples(recipe.config, ["black", "red", "green", "white"])
    np.random.seed(3)
    samples.add(batch_of([[0.0, 0, 0], [1.0, 0, 0], [0.0, 1, 0], [1.0, 1, 1]]))
    picture, text = samples.cells[0]  # black, mixed with white
    black = int(re.search(r"black \((\d+)%\)", text)[1])
    assert 6 < black < 94 and f"white ({100 - black}%)" in text
    assert np.asarray(picture).mean() / 255 == pytest.approx(1 - black / 100, abs=0.02)


def test_token_labels_are_beside_what_they_are_of(config, tmp_path):
    """Four classes of a quarter of the map each, for every picture: nothing mixed, nothing cut, a mirrored one."""
    settings = ["MODEL.NAME=elsa_volo_nano", "MODEL.KWARGS={}", "TOKENS.ENABLED=true", "AUG.MIXUP=0.0",
                "AUG.CUTMIX=0.0", "TOKENS.MIX=0.0", "AUG.SMOOTHING=0.0"]  # fmt: skip
    samples = TokenSamples(load_recipe(config, settings).config, ["a", "b", "c", "d"])
    batch = batch_of([[0.0, 0, 0]] * 4)
    classes = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    maps = torch.stack([torch.full((1, 2, 2), 20.0), classes[None]]).expand(4, -1, -1, -1, -1)
    boxes, flips = torch.tensor([[0.0, 0, 1, 1]] * 4), torch.tensor([[False, False], [True, False]] * 2)
    batch.tokens = TokenLabels(maps, boxes, flips)
    samples.add(batch)
    assert samples.tokens[0][1].tolist() == [[0, 1], [2, 3]]
    assert samples.tokens[1][1].tolist() == [[1, 0], [3, 2]], "mirrored as its picture"
    assert samples.draw(4, "title").legends[0].get_texts()[0].get_text() in "abcd"


def test_the_sheet(tool, refused, config, tmp_path):
    outcome = tool("visualize", "data", config, "--output", tmp_path / "sheet.png", "--count", "7")
    assert outcome.code == 0, outcome.err
    assert "7 samples" in outcome.err
    assert np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).std() > 10
    refused(tool("visualize", "data", config, "--output", tmp_path / "a.jpg"), "--output must be a .png")
    refused(tool("visualize", "data", config, "--output", tmp_path / "a.png", "--count", "0"), "between 1 and 200")
    refused(tool("visualize", "data", "dta.yaml", "--output", tmp_path / "a.png"), "dta.yaml")
