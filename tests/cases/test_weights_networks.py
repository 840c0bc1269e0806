"""Networks by name whatever arguments they know, and weights that a training starts from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from elsa.core import CheckpointError, ConfigError
from elsa.engine import load_config
from elsa.tools.tasks.networks import build_model, create_network, start_from_pretrained


@pytest.fixture
def config(root):
    def call(*more):
        base = ["MODEL.NUM_CLASSES=3", "DATA.IMG_SIZE=64", "MODEL.DROP_PATH=0"]
        return load_config(root / "configs/classification/digits_elsa_swin_nano.yaml", [*base, *more])

    return call


@pytest.mark.parametrize("name", ["densenet121", "vgg11", "hrnet_w18_small", "dla34", "ghostnet_100", "resnet18"])
def test_models_that_lack_usual_arguments(config, name):
    network = create_network(config(f"MODEL.NAME={name}"))
    assert network.get_classifier().weight.shape[0] == 3


def test_what_is_left_out_is_said(config, monkeypatch):
    said = []
    monkeypatch.setattr("elsa.tools.tasks.networks.logger.info", lambda form, *words: said.append(form % words))
    create_network(config("MODEL.NAME=densenet121"))
    create_network(config("MODEL.NAME=elsa_swin_nano"))
    assert said == [f"densenet121 has no argument {name}: left out" for name in ("img_size", "drop_path_rate")]


def test_a_value_that_the_model_cannot_take(config):
    with pytest.raises(ConfigError, match=r"densenet121 has no drop_path_rate: MODEL\.DROP_PATH must be 0"):
        create_network(config("MODEL.NAME=densenet121", "MODEL.DROP_PATH=0.1"))
    with pytest.raises(ConfigError, match="dorp"):
        create_network(config("MODEL.NAME=densenet121", "MODEL.KWARGS.dorp=1"))
    with pytest.raises(ConfigError, match="img_size"):
        create_network(config("MODEL.NAME=densenet121", "MODEL.KWARGS.img_size=32"))


def test_arguments_of_the_user_come_before_those_of_the_keys(config):
    network = create_network(config("MODEL.NAME=resnet18", "MODEL.KWARGS.drop_rate=0.3"))
    assert network.drop_rate == 0.3


SMALL = ("MODEL.KWARGS={embed_dim: 8, num_heads: [1, 1, 2, 2], elsa_kernel: 3, window_size: 2}", "DATA.IMG_SIZE=32")


@pytest.fixture
def start(config, tmp_path):
    """``start(entries of the file, KEY=VALUE …)`` starts a training of classes a, b, c from such a file."""

    def call(entries, *more, order_is_open=False):
        made = config(*SMALL)
        torch.manual_seed(1)
        source = build_model(made)
        with torch.no_grad():
            source.head.weight.fill_(7)
        torch.save({"state_dict": source.state_dict(), **entries}, tmp_path / "w.pt")
        made = config(*SMALL, f"MODEL.PRETRAINED={tmp_path / 'w.pt'}", *more)
        network = build_model(made)
        images = SimpleNamespace(classes=["a", "b", "c"], order_is_open=order_is_open)
        start_from_pretrained(network, made, images, False)
        return network

    return call


def test_a_head_of_the_same_classes_is_taken(start):
    for entries in ({"classes": ["a", "b", "c"]}, {}):
        assert (start(entries).head.weight == 7).all()


def test_a_head_of_as_many_other_classes_is_refused_unless_it_is_left_out(start):
    for classes in (["c", "b", "a"], ["x", "y", "z"]):
        with pytest.raises(ConfigError, match=r"MODEL\.PRETRAINED_IGNORE=\[head\.\*\]") as caught:
            start({"classes": classes})
        assert f"{classes[0]} in the file, a in the data" in str(caught.value)
        assert not (start({"classes": classes}, "MODEL.PRETRAINED_IGNORE=[head.*]").head.weight == 7).any()


def test_a_head_without_names_over_folders_of_two_orders(start):
    with pytest.raises(ConfigError, match=r"DATA\.CLASSES=natural"):
        start({}, order_is_open=True)
    start({}, "MODEL.PRETRAINED_IGNORE=[head.*]", order_is_open=True)


def test_weights_that_are_not_finite_start_nothing(config, tmp_path):
    made = config(*SMALL, f"MODEL.PRETRAINED={tmp_path / 'w.pt'}")
    network = build_model(made)
    state = network.state_dict()
    torch.save({"state_dict": {**state, "head.bias": state["head.bias"] / 0}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"1 that are not finite .*head\.bias"):
        start_from_pretrained(network, made, SimpleNamespace(), False)
