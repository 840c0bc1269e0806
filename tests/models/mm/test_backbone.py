"""DenseBackbone: built by name, the authors' numbers, and what it starts from."""

from __future__ import annotations

import pytest
import timm
import torch
from mmengine.registry import MODELS
from torch import nn

from elsa.models import CheckpointError, ELSASwinMaps
from elsa.models.mm import DenseBackbone
from elsa.models.pretrained import load_backbone


def test_the_registry_builds_it_and_it_meets_the_authors_maps(golden):
    case, stored = golden.json("dense_backbone")["elsa_swin_tiny"], golden.npz("dense_backbone")
    backbone = MODELS.build(dict(type="DenseBackbone", variant="elsa_swin_tiny", drop_path_rate=0.2)).eval()
    assert {name: list(value.shape) for name, value in backbone.state_dict().items()} == case["state"]
    golden.fill_(backbone)
    with torch.no_grad():
        maps = backbone(golden.tensor("image(1, 3, 200, 300)", *case["input"]))
    assert [list(level.shape) for level in maps] == case["shapes"]
    for index, level in enumerate(maps):
        expected = torch.from_numpy(stored[f"elsa_swin_tiny/level{index}_mean"]).float()
        torch.testing.assert_close(level.mean((2, 3)).squeeze(), expected.squeeze(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (dict(variant="elsa_swin_tinny"), ["'elsa_swin_tinny'", "did you mean elsa_swin_tiny"]),
        (dict(variant="resnet"), ["known are", "swin_small"]),
        (dict(variant="elsa_swin_nano", model_args={"apee": True}), ["'apee'", "did you mean ape"]),
        (dict(variant="elsa_swin_nano", out_indices=(0, 4)), ["out_indices", "4"]),
        (dict(variant="elsa_swin_nano", init_cfg=dict(type="Kaiming")), ["init_cfg", "Pretrained"]),
    ],
)
def test_bad_arguments_are_named(arguments, parts):
    with pytest.raises(ValueError) as caught:
        DenseBackbone(**arguments)
    assert all(part in str(caught.value) for part in parts)


def test_options_reach_the_network():
    backbone = DenseBackbone(
        "elsa_swin_nano", out_indices=(1, 3), frozen_stages=1, with_cp=True, model_args={"ape": True}
    )
    backbone.train()
    image = torch.randn(1, 3, 70, 90)
    maps = backbone(image)
    assert [tuple(level.shape[1:]) for level in maps] == [(64, 9, 12), (256, 3, 3)]
    sum(level.sum() for level in maps).backward()
    assert backbone.layers[0].blocks[0].mlp.fc1.weight.grad is None
    assert backbone.layers[1].blocks[0].mlp.fc1.weight.grad is not None
    assert all(stage.grad_checkpointing for stage in backbone.layers)


def classifier(path, **changes):
    torch.manual_seed(1)
    model = timm.create_model("elsa_swin_nano", num_classes=7, **changes).eval()
    torch.save({"state_dict": model.state_dict()}, path)
    return model


def test_it_starts_from_a_classifier_and_says_what_it_used(tmp_path):
    model = classifier(tmp_path / "classifier.pt")
    backbone = DenseBackbone("elsa_swin_nano", drop_path_rate=0.0, pretrained=str(tmp_path / "classifier.pt"))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    assert not torch.equal(before["layers.0.blocks.0.mlp.fc1.weight"], model.layers[0].blocks[0].mlp.fc1.weight)
    backbone.init_weights()
    total = len(backbone.state_dict())
    assert str(backbone.load_report).startswith(f"loaded {total - 8} of {total} tensors from entry 'state_dict'")
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = backbone.eval()(image), model.forward_intermediates(image, intermediates_only=True)
    for index in range(3):  # norm0…norm3 are fresh; in stage 4 dense networks shift small maps and classifiers do not
        norm = backbone.get_submodule(f"norm{index}")
        torch.testing.assert_close(ours[index], norm(theirs[index].permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def test_a_missing_tensor_of_the_backbone_is_an_error(tmp_path):
    model = classifier(tmp_path / "whole.pt")
    state = model.state_dict()
    del state["layers.2.blocks.1.attn.ghost_head"]
    torch.save(state, tmp_path / "part.pt")
    backbone = DenseBackbone("elsa_swin_nano")
    with pytest.raises(CheckpointError, match=r"part\.pt.*1 missing: layers\.2\.blocks\.1\.attn\.ghost_head"):
        load_backbone(backbone, tmp_path / "part.pt")


def test_a_position_embedding_is_brought_to_the_dense_layout(tmp_path):
    model = classifier(tmp_path / "ape.pt", ape=True, img_size=64)
    backbone = DenseBackbone("elsa_swin_nano", model_args={"ape": True})
    load_backbone(backbone, tmp_path / "ape.pt")
    expected = model.absolute_pos_embed.transpose(1, 2).unflatten(2, (16, 16))
    resized = nn.functional.interpolate(expected, (56, 56), mode="bicubic", align_corners=False)
    torch.testing.assert_close(backbone.absolute_pos_embed, resized)


def test_a_detector_lends_its_backbone(tmp_path):
    source = ELSASwinMaps(embed_dim=32, depths=(1, 1, 2, 1), num_heads=(1, 2, 4, 8), window_size=4)
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    torch.save({"meta": {}, "state_dict": {**state, "neck.conv": torch.zeros(1)}}, tmp_path / "detector.pth")
    backbone = DenseBackbone("elsa_swin_nano")
    report = load_backbone(backbone, tmp_path / "detector.pth")
    assert report.loaded == report.total == len(state)
    torch.testing.assert_close(backbone.norm2.weight, source.norm2.weight)


@pytest.mark.parametrize("authors_layout", [False, True])
def test_plain_swin_starts_from_swin_transformers_weights(tmp_path, authors_layout):
    """timm's Swin and ours, from one file, give the same maps; the authors' file merges patches a stage earlier."""
    torch.manual_seed(0)
    theirs = timm.create_model("swin_tiny_patch4_window7_224", num_classes=3).eval()
    for parameter in theirs.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.05)
    state = theirs.state_dict()
    if authors_layout:
        state = {
            name.replace(f"layers.{name[7]}.", f"layers.{int(name[7]) - 1}.") if ".downsample." in name else name: value
            for name, value in state.items()
        }
        state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    torch.save({"model": state}, tmp_path / "swin.pth")
    backbone = DenseBackbone("swin_tiny", drop_path_rate=0.0, model_args={"shift_small_maps": False}).eval()
    load_backbone(backbone, tmp_path / "swin.pth")
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for ours, level in zip(
            backbone(image), theirs.forward_intermediates(image, intermediates_only=True), strict=True
        ):
            normalised = nn.functional.layer_norm(level.permute(0, 2, 3, 1), level.shape[1:2]).permute(0, 3, 1, 2)
            torch.testing.assert_close(ours, normalised, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(64, 96), (70, 90), (33, 47)])
def test_volo_gives_a_pyramid_of_four_levels(size):
    backbone = DenseBackbone("elsa_volo_nano").eval()
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, *size))
    expected = [
        (2, width, *(-(-side // stride) for side in size)) for width, stride in ((64, 4), (64, 8), (128, 16), (128, 32))
    ]
    assert [tuple(level.shape) for level in maps] == expected


def test_volo_starts_from_a_classifier(tmp_path):
    """Levels 1 and 2 are the classifier's own maps but for the norms; the position embedding of another size fits."""
    torch.manual_seed(0)
    model = timm.create_model("elsa_volo_nano", num_classes=5, img_size=96).eval()
    torch.save(model.state_dict(), tmp_path / "volo.pt")
    backbone = DenseBackbone("elsa_volo_nano", drop_path_rate=0.0).eval()
    report = load_backbone(backbone, tmp_path / "volo.pt")
    assert {name.split(".")[0] for name in report.ignored} == {"norm0", "norm1", "norm2", "norm3", "upsample"}
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        _, middle, last, _ = backbone(image)
        theirs = model.set_input_size(224) or model.forward_intermediates(image, intermediates_only=True)
    for ours, level, norm in ((middle, theirs[0], backbone.norm1), (last, theirs[-1], backbone.norm2)):
        torch.testing.assert_close(ours, norm(level.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), atol=1e-5, rtol=1e-4)
    state = model.state_dict()
    del state["network.0.0.attn.ghost_head"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(CheckpointError, match=r"1 missing: network\.0\.0\.attn\.ghost_head"):
        load_backbone(backbone, tmp_path / "part.pt")


@pytest.mark.parametrize("arguments", [dict(out_indices=(0, 1)), dict(frozen_stages=2), dict(out_indices=(2,))])
def test_every_parameter_of_volo_that_learns_has_a_gradient(arguments):
    """Gradient reducers wait for all of them."""
    backbone = DenseBackbone("elsa_volo_nano", with_cp=True, **arguments).train()
    sum(level.square().mean() for level in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert not [key for key, value in backbone.named_parameters() if value.requires_grad and value.grad is None]
    frozen = arguments.get("frozen_stages", -1) >= 0
    assert backbone.patch_embed.proj.weight.requires_grad is not frozen
