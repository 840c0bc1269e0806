"""ELSA-VOLO: VOLO where it is VOLO, ELSA where it is ELSA, any input size, and what token labeling needs."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import group_parameters
from timm.models.volo import VOLO, Outlooker
from torch import nn

from elsa.models import VARIANTS, ELSABlock, load_pretrained

# Millions of parameters: VOLO, ELSA-VOLO.
MILLIONS = {1: (26.63, 26.67), 2: (58.68, 58.72), 3: (86.33, 86.38), 4: (192.96, 192.72), 5: (295.46, 295.10)}
NANO = "elsa_volo_nano"


def build(name=NANO, **changes):
    return timm.create_model(name, **changes)


def nano(**changes):
    return build(num_classes=7, img_size=64, **changes).eval()


def on_meta(name, **changes):
    with torch.device("meta"):
        return build(name, **changes)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


# ---- VOLO


@pytest.mark.parametrize("number", MILLIONS)
def test_parameter_counts(number):
    models = on_meta(f"elsa_volo_d{number}", attention="outlook"), on_meta(f"elsa_volo_d{number}")
    counts = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert tuple(round(count / 1e6, 2) for count in counts) == MILLIONS[number]


@pytest.mark.parametrize("number", MILLIONS)
def test_names_and_shapes_are_those_of_volo_but_for_the_attention_of_the_first_stage(number):
    volo = shapes(on_meta(f"volo_d{number}_224"))
    assert shapes(on_meta(f"elsa_volo_d{number}", attention="outlook")) == volo
    ours = shapes(on_meta(f"elsa_volo_d{number}"))
    assert {key: shape for key, shape in ours.items() if not key.startswith("network.0.") or ".attn." not in key} == {
        key: shape for key, shape in volo.items() if not key.startswith("network.0.") or ".attn." not in key
    }
    dim = VARIANTS[f"elsa_volo_d{number}"].embed_dims[0]
    assert ours["network.0.0.attn.ghost_head"] == (2, 1, dim, 5, 5)
    assert "network.0.0.attn.pre_proj.bias" not in ours


@pytest.mark.parametrize(("theirs", "size"), [("volo_d1_224", 224), ("volo_d1_384", 384)])
def test_with_outlook_attention_it_is_timms_volo(theirs, size):
    volo = timm.create_model(theirs).eval()
    ours = build("elsa_volo_d1", attention="outlook", img_size=size).eval()
    ours.load_state_dict(volo.state_dict())
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), volo(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("number", [4, 5])
def test_the_large_variants_are_timms_volo_too(number):
    """With one block per stage: other head widths, mlp ratio and stem."""
    spec = VARIANTS[f"elsa_volo_d{number}"]
    few = dict(layers=(1, 1, 1, 1), num_classes=10, img_size=64)
    ours = build(f"elsa_volo_d{number}", attention="outlook", **few).eval()
    dims, heads = ((pair[0], *[pair[1]] * 3) for pair in (spec.embed_dims, spec.num_heads))
    volo = VOLO(embed_dims=dims, num_heads=heads, mlp_ratio=spec.mlp_ratio, stem_hidden_dim=spec.stem_hidden_dim, **few)
    ours.load_state_dict(volo.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), volo.eval()(x), atol=1e-5, rtol=1e-5)


def test_elsa_only_in_the_first_stage_with_the_block_s_published_defaults():
    model = build("elsa_volo_d1", layers=(2, 1, 1, 1))
    blocks = list(model.network[0])
    assert [type(block) for block in blocks] == [ELSABlock] * 2
    assert sum(isinstance(module, ELSABlock) for module in model.modules()) == 2
    attention = blocks[0].attn
    assert (attention.kernel_size, attention.lam, attention.gamma, attention.scale) == (5, 1, 1, 1)
    assert attention.attn[0].weight.shape[1] == 8
    assert {type(block) for block in build(attention="outlook").network[0]} == {Outlooker}
    changed = nano(elsa_kernel=3, lam=0, gamma=0.5, group_width=4, qk_scale=0.25).network[0][0].attn
    assert (changed.kernel_size, changed.lam, changed.gamma, changed.scale) == (3, 0, 0.5, 0.25)


@pytest.mark.parametrize("attention", ["elsa", "outlook"])
def test_stochastic_depth_spares_the_first_stage(attention):
    model = build(attention=attention, layers=(2, 2, 2, 1), drop_path_rate=0.6)
    rates = [
        max((module.drop_prob for module in block.modules() if isinstance(module, DropPath)), default=0)
        for stage in model.feature_info
        for block in model.get_submodule(stage["module"])
    ]
    assert rates == pytest.approx([0, 0, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_linear_layers_of_the_first_stage_are_initialised_as_the_others():
    for module in build().network[0].modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)
            assert not module.bias.any()


def test_position_embedding_and_class_token_are_not_decayed():
    assert build().no_weight_decay() == {"pos_embed", "cls_token"}


def test_layer_groups_rise_from_stem_to_heads():
    """For layer-wise learning-rate decay."""
    model = build()
    depth = group_parameters(model, model.group_matcher(), reverse=True)
    assert set(depth) == {key for key, _ in model.named_parameters()}
    stages = [
        f"{info['module']}.{index}"
        for info in model.feature_info
        for index in range(len(model.get_submodule(info["module"])))
    ]
    order = ["patch_embed", *stages, "post_network.0", "post_network.1", "head"]
    first = [min(value for key, value in depth.items() if key.startswith(f"{name}.")) for name in order]
    assert first == sorted(set(first))
    assert first[0] == 0
    assert depth["aux_head.weight"] == depth["head.weight"] == max(depth.values())


# ---- sizes


@pytest.mark.parametrize("attention", ["elsa", "outlook"])
@pytest.mark.parametrize("size", [(64, 64), (72, 100), (17, 40), (8, 8)], ids=str)
def test_any_input_size(attention, size):
    model = nano(attention=attention)
    with torch.no_grad():
        logits, tokens = model(torch.randn(2, 3, *size), token_logits=True)
        first, last = model.forward_intermediates(torch.randn(2, 3, *size), indices=[0, 3], intermediates_only=True)
    assert logits.shape == (2, 7)
    assert tokens.shape == (2, -(-size[0] // 16) * -(-size[1] // 16), 7)
    assert first.shape == (2, 64, -(-size[0] // 8), -(-size[1] // 8))
    assert last.shape == (2, 128, -(-size[0] // 16), -(-size[1] // 16))


def test_the_position_embedding_follows_the_input_size():
    model = nano()
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        before = model(x)
        model.pos_embed.zero_()
        assert not torch.allclose(model(x), before)
    model = nano()
    with torch.no_grad():
        before = model(x)
        model.set_input_size((96, 128))
        assert model.pos_embed.shape == (1, 6, 8, 128)
        torch.testing.assert_close(model(x), before, atol=1e-5, rtol=1e-4)
    assert model.pos_embed.requires_grad


def test_weights_of_another_input_size_are_loaded_and_the_report_says_so(tmp_path):
    small, path = nano(), tmp_path / "small.pth"
    torch.save(small.state_dict(), path)
    large = build(num_classes=7, img_size=(96, 128)).eval()
    report = load_pretrained(large, path)
    assert str(report).endswith("resized: pos_embed 1×4×4×128 → 1×6×8×128")
    x = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(large(x), small(x), atol=1e-5, rtol=1e-4)
    by_timm = build(num_classes=7, img_size=(96, 128), pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    assert torch.equal(by_timm.pos_embed, large.pos_embed)
    assert "resized" not in str(load_pretrained(nano(), path))


@pytest.mark.parametrize("size", [100, 0, (64, 72)])
def test_a_nominal_size_that_is_no_multiple_of_the_patch_is_refused(size):
    with pytest.raises(ValueError, match="multiple of the patch, 16 pixels"):
        build(img_size=size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(attention="outlok"), "'outlok'"),
        (dict(layers=(1, 1, 1)), "four stages"),
        (dict(embed_dims=(32, 64, 64, 64)), "two widths"),
        (dict(global_pool="max"), "'max'"),
        (dict(lam=0.5), "non-negative integer"),
    ],
)
def test_arguments_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(**arguments)


# ---- token labeling


def test_logits_are_the_class_token_s_plus_half_the_largest_of_the_patch_tokens():
    model, x = nano(), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        of_class, of_patches = model(x, token_logits=True)
        torch.testing.assert_close(model(x), of_class + 0.5 * of_patches.amax(1))


def test_mix_token_swaps_the_box_of_mirrored_images_and_puts_the_token_logits_back():
    model, x, box = nano(), torch.randn(4, 3, 64, 96), torch.tensor([1, 2, 4, 5])  # top, left, bottom, right
    inside = torch.zeros(4, 6, dtype=torch.bool)
    inside[1:4, 2:5] = True
    seen = {}
    model.network[0].register_forward_pre_hook(lambda _, inputs: seen.update(embedded=inputs[0]))
    model.aux_head.register_forward_hook(lambda _, __, out: seen.update(raw=out))
    with torch.no_grad():
        own = model.embed(x)
        _, of_patches = model(x, mix_box=box, token_logits=True)
    fine = inside.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(seen["embedded"][:, fine], own.flip(0)[:, fine])
    assert torch.equal(seen["embedded"][:, ~fine], own[:, ~fine])
    raw, back = seen["raw"].unflatten(1, (4, 6)), of_patches.unflatten(1, (4, 6))
    assert torch.equal(back[:, inside], raw.flip(0)[:, inside])
    assert torch.equal(back[:, ~inside], raw[:, ~inside])


@pytest.mark.parametrize(("box", "swapped"), [((0, 0, 0, 0), False), ((0, 0, 4, 4), True)])
def test_a_box_of_nothing_mixes_nothing_and_one_of_everything_swaps_images(box, swapped):
    model, x = nano(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain, patches = model(x, token_logits=True)
        mixed, put_back = model(x, mix_box=torch.tensor(box), token_logits=True)
    torch.testing.assert_close(mixed, plain.flip(0) if swapped else plain)
    torch.testing.assert_close(put_back, patches)


def test_another_box_is_no_reason_to_compile_again():
    model, x, graphs = nano(), torch.randn(2, 3, 64, 64), []
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    with torch.no_grad():
        for box in ((0, 0, 0, 0), (1, 0, 3, 4), (0, 1, 1, 2), (0, 0, 4, 4)):
            arguments = dict(mix_box=torch.tensor(box), token_logits=True)
            for one, other in zip(compiled(x, **arguments), model(x, **arguments), strict=True):
                torch.testing.assert_close(one, other)
    assert len(graphs) == 1


def test_mix_token_needs_an_even_batch_and_token_logits_a_head():
    with pytest.raises(ValueError, match="got 3 images"):
        nano()(torch.randn(3, 3, 64, 64), mix_box=torch.tensor([0, 0, 1, 1]))
    with pytest.raises(ValueError, match="auxiliary head"):
        build(num_classes=0)(torch.randn(2, 3, 64, 64), token_logits=True)


def test_every_parameter_learns_from_the_token_logits():
    model = nano().train()
    of_class, of_patches = model(torch.randn(2, 3, 64, 64), mix_box=torch.tensor([0, 1, 2, 3]), token_logits=True)
    (of_class.sum() + of_patches.square().sum()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


SHARDED = """
import torch, timm, torch.distributed as dist, elsa.models
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
mesh = dist.init_device_mesh("cpu", (2,))
torch.manual_seed(0)
whole = timm.create_model("elsa_volo_nano", num_classes=5, img_size=64).eval()
sharded = timm.create_model("elsa_volo_nano", num_classes=5, img_size=64).eval()
sharded.load_state_dict(whole.state_dict())
sharded.set_grad_checkpointing()
blocks = [block for stage in sharded.feature_info for block in sharded.get_submodule(stage["module"])]
for module in (*blocks, *sharded.post_network, sharded):
    fully_shard(module, mesh=mesh)
images, box = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 4])
for model, share in ((whole, images), (sharded, images)):
    outputs = model(share, mix_box=box, token_logits=True)
    sum(out.square().mean() for out in outputs).backward()
for (name, one), other in zip(whole.named_parameters(), sharded.parameters(), strict=True):
    assert 0 < other.to_local().numel() < one.numel() or one.shape[0] < 2 or not dist.get_rank(), name
    torch.testing.assert_close(other.grad.full_tensor(), one.grad, atol=1e-5, rtol=1e-4, msg=name)
dist.destroy_process_group()
print("equal")
"""


def test_sharded_parameters_give_the_same_gradients(tmp_path):
    """FSDP of two processes, with activation checkpointing and mix-token."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("equal") == 2, done.stderr
