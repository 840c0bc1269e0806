"""Parameter groups and schedules against the published recipe."""

from __future__ import annotations

import pytest
import timm

import elsa.models  # noqa: F401  (registers the names)
from elsa.engine import ConfigError, build_optimizer, build_schedule, freeze, load_config


@pytest.fixture(scope="module")
def tiny():
    return timm.create_model("elsa_swin_tiny")


@pytest.fixture
def recipe(root):
    return lambda *overrides: load_config(root / "configs/classification/elsa_swin_tiny.yaml", overrides)


def groups_by_decay(model, optimizer) -> dict[float, list[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups: dict[float, list[str]] = {}
    for group in optimizer.param_groups:
        groups.setdefault(group["weight_decay"], []).extend(names[parameter] for parameter in group["params"])
    return {decay: sorted(members) for decay, members in groups.items()}


def test_weight_decay_is_applied_to_the_published_parameters(golden, tiny, recipe):
    published = golden.json("classification_recipe")
    optimizer = build_optimizer(tiny, recipe())
    assert groups_by_decay(tiny, optimizer) == {0.0: sorted(published["no_decay"]), 0.05: sorted(published["decay"])}
    for group in optimizer.param_groups:
        assert list(group["betas"]) == published["betas"]
        assert group["eps"] == published["eps"]


def test_learning_rate_of_every_published_epoch(golden, tiny, recipe):
    published = golden.json("classification_recipe")
    optimizer = build_optimizer(tiny, recipe())
    schedule, epochs = build_schedule(optimizer, recipe(), steps_per_epoch=1251)
    assert epochs == published["epochs_run"]
    rates = []
    for epoch in range(epochs):
        schedule.set(epoch * 1251)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(published["lr_by_epoch"], rel=1e-12)


def test_further_parameters_can_be_exempt_from_decay(tiny, recipe):
    groups = groups_by_decay(tiny, build_optimizer(tiny, recipe("TRAIN.NO_DECAY=['*.rb', '*.ghost_head']")))
    assert not any(name.endswith((".rb", "ghost_head")) for name in groups[0.05])
    assert any(name.endswith(".rb") for name in groups[0.0])


def test_a_no_decay_pattern_that_matches_nothing_is_refused(tiny, recipe):
    with pytest.raises(ConfigError, match=r"relative_position_bias_table.*matches no parameter of elsa_swin_tiny"):
        build_optimizer(tiny, recipe("TRAIN.NO_DECAY=['*relative_position_bias_table*']"))


@pytest.mark.parametrize("decay", ["TRAIN.LAYER_DECAY=null", "TRAIN.LAYER_DECAY=0.5"])
def test_what_is_frozen_is_in_no_group(recipe, decay):
    model = timm.create_model("elsa_swin_nano")
    config = recipe("TRAIN.FREEZE=['patch_embed.*', 'layers.[01].*', '*.bias']", decay)
    freeze(model, config)
    learning = {name for members in groups_by_decay(model, build_optimizer(model, config)).values() for name in members}
    frozen = ("patch_embed.", "layers.0.", "layers.1.")
    assert learning == {name for name, _ in model.named_parameters()
                        if not name.startswith(frozen) and not name.endswith(".bias")}  # fmt: skip
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == learning


def test_patterns_of_frozen_parameters_must_bite(recipe):
    model = timm.create_model("elsa_swin_nano")
    refusal = r"pattern 'stages\.\*' matches no .* that learns; their names begin with patch_embed, .*layers.*head"
    with pytest.raises(ConfigError, match=rf"TRAIN\.FREEZE: {refusal}"):
        freeze(model, recipe("TRAIN.FREEZE=['head.*', 'stages.*']"))
    with pytest.raises(ConfigError, match=r"matches all \d+ parameters: nothing would learn"):
        freeze(model, recipe("TRAIN.FREEZE=['head.*', '*']"))
    assert all(parameter.requires_grad for parameter in model.parameters())
    config = recipe("TRAIN.FREEZE=['*.rb']", "TRAIN.NO_DECAY=['*.rb']")
    freeze(model, config)
    with pytest.raises(ConfigError, match=r"TRAIN\.NO_DECAY: pattern '\*\.rb' matches no parameter"):
        build_optimizer(model, config)


def test_unknown_optimizer_suggests(tiny, recipe):
    with pytest.raises(ConfigError, match="did you mean adamw"):
        build_optimizer(tiny, recipe("TRAIN.OPTIMIZER=adamww"))


def test_layer_decay_lowers_the_rate_towards_the_stem(tiny, recipe):
    optimizer = build_optimizer(tiny, recipe("TRAIN.LAYER_DECAY=0.5"))
    scale = {parameter: group["lr_scale"] for group in optimizer.param_groups for parameter in group["params"]}
    parameters = dict(tiny.named_parameters())
    order = ["patch_embed.proj.weight", "layers.0.blocks.0.mlp.fc1.weight", "layers.0.blocks.1.mlp.fc1.weight",
             "layers.0.downsample.reduction.weight", "layers.1.blocks.0.mlp.fc1.weight", "head.weight"]  # fmt: skip
    scales = [scale[parameters[name]] for name in order]
    assert scales == sorted(scales)
    assert scales[-1] == 1.0
    assert len(set(scales)) == len(scales) - 1  # patch merging goes with the block before it


@pytest.mark.parametrize(("shape", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_schedules_end_where_they_should(tiny, recipe, shape, middle):
    config = recipe(
        f"TRAIN.SCHEDULE={shape}", "TRAIN.WARMUP_EPOCHS=0", "TRAIN.MIN_LR=0.0", "TRAIN.EPOCHS=10", "TRAIN.LR=1.0"
    )
    optimizer = build_optimizer(tiny, config)
    schedule, epochs = build_schedule(optimizer, config, steps_per_epoch=1)
    assert epochs == 20
    rates = []
    for epoch in (0, 5, 15):
        schedule.set(epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1.0, middle, 1.0 if shape == "constant" else 0.0], abs=1e-9)


def test_the_rate_can_change_every_step(tiny, recipe):
    config = recipe("TRAIN.LR_EVERY=step", "TRAIN.EPOCHS=2", "TRAIN.WARMUP_EPOCHS=1")
    optimizer = build_optimizer(tiny, config)
    schedule, _ = build_schedule(optimizer, config, steps_per_epoch=10)
    rates = []
    for step in range(20):
        schedule.set(step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert len(set(rates)) == 20
