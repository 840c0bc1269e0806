"""The recipes that start from weights of ImageNet."""

from __future__ import annotations

import pytest
import torch

from elsa.engine import flatten, load_config
from elsa.tools.tasks.networks import create_network, start_from_pretrained

RECIPES = "configs/classification"
FIVE = ["MODEL.NUM_CLASSES=5"]
DROP_PATH = {"tiny": 0.1, "small": 0.3, "base": 0.5}


@pytest.mark.parametrize("size", DROP_PATH)
def test_at_384_pixels_it_is_imagenets_recipe_but_for_length_rates_and_windows(root, size):
    start = flatten(load_config(root / RECIPES / f"elsa_swin_{size}.yaml"))
    config = flatten(load_config(root / RECIPES / f"finetune_elsa_swin_{size}_384.yaml"))
    assert config["MODEL.DROP_PATH"] == DROP_PATH[size]
    changed = {key: value for key, value in config.items() if value != start[key]}
    changed.pop("TRAIN.EMA_DECAY", None)  # Base has one, of another length of training
    assert changed == {
        "MODEL.PRETRAINED": f"weights/elsa_swin_{size}.pth.tar",
        "MODEL.KWARGS": {"window_size": 12},
        "DATA.IMG_SIZE": 384,
        "DATA.BATCH": 512,
        "TRAIN.EPOCHS": 30,
        "TRAIN.COOLDOWN_EPOCHS": 0,
        "TRAIN.WARMUP_EPOCHS": 5,
        "TRAIN.LR": 2e-5,
        "TRAIN.WARMUP_LR": 2e-8,
        "TRAIN.MIN_LR": 2e-7,
        "TRAIN.LR_EVERY": "step",
        "TRAIN.WEIGHT_DECAY": 1e-8,
        "EVAL.CROP": 1.0,
    }


MODELS = [f"elsa_swin_{size}" for size in DROP_PATH] + [f"elsa_volo_d{depth}" for depth in range(1, 6)]


@pytest.mark.parametrize("model", MODELS)
def test_each_model_has_a_recipe_for_classes_of_ones_own(root, model):
    start = flatten(load_config(root / RECIPES / f"{model}.yaml"))
    config = flatten(load_config(root / RECIPES / f"finetune_{model}.yaml", FIVE))
    for key in ("MODEL.NAME", "MODEL.DROP_PATH", "DATA.IMG_SIZE"):
        assert config[key] == start[key]
    assert config["TOKENS.ENABLED"] is False and config["MODEL.NUM_CLASSES"] == 5
    assert config["MODEL.PRETRAINED"].endswith(f"{model}.pth.tar" if "swin" in model else f"{model}/best.safetensors")


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("elsa_swin_tiny", FIVE),
        ("elsa_swin_tiny_384", []),
        ("elsa_volo_d1", FIVE),
    ],
)
def test_it_starts_from_weights_at_224_pixels(root, tmp_path, name, overrides):
    """Every tensor but the head's where there are other classes."""
    model = name.removesuffix("_384")
    source = create_network(load_config(root / RECIPES / f"{model}.yaml", ["MODEL.NUM_CLASSES=1000"]))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "weights.pt")
    config = load_config(
        root / RECIPES / f"finetune_{name}.yaml", [f"MODEL.PRETRAINED={tmp_path / 'weights.pt'}", *overrides]
    )
    network = create_network(config)
    start_from_pretrained(network, config, None, False)
    theirs = source.state_dict()
    assert all(
        torch.equal(value, theirs[key])
        for key, value in network.state_dict().items()
        if value.shape == theirs[key].shape and "head" not in key
    )
    assert (network.head.weight.shape[0], network.head.weight.equal(source.head.weight)) == (
        (1000, True) if name.endswith("384") else (5, False)
    )
