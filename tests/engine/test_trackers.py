"""Trackers get the numbers, go on with a run, and never end it; wandb and trackio are played by stand-ins."""

from __future__ import annotations

import json
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch

from elsa.engine import ConfigError, Runtime, read_options
from elsa.engine.logbook import Logbook
from elsa.engine.trackers import check_installed, open_trackers

ALONE = Runtime(0, 1, torch.device("cpu"))


def stand_in(monkeypatch, name: str, **content) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="stand-in")
    module.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, module)
    return module


@pytest.fixture
def said(monkeypatch) -> list[tuple]:
    """What the two packages were told."""
    told: list[tuple] = []

    class Run:
        def __init__(self) -> None:
            self.summary = SimpleNamespace(update=lambda numbers: told.append(("wandb summary", numbers)))

        def log(self, numbers, step):
            told.append(("wandb log", numbers, step))

        def finish(self):
            told.append(("wandb finish",))

    stand_in(monkeypatch, "wandb", Settings=lambda **given: given,
             init=lambda **given: told.append(("wandb init", given)) or Run())  # fmt: skip
    stand_in(monkeypatch, "trackio", init=lambda **given: told.append(("trackio init", given)),
             log=lambda numbers, step=None: told.append(("trackio log", numbers, step)),
             finish=lambda: told.append(("trackio finish",)))  # fmt: skip
    return told


def test_a_run_that_goes_on_is_the_same_run_there(said, tmp_path):
    folder = tmp_path / "project" / "one"
    folder.mkdir(parents=True)
    for fresh in (True, False, True):
        open_trackers(("wandb", "trackio"), folder, {"TRAIN.LR": 1.0}, fresh)
    inits = [entry[1] for entry in said]
    assert {given["project"] for given in inits} == {"project"}
    assert {given["resume"] for given in inits} == {"allow"}
    assert {given["config"]["TRAIN.LR"] for given in inits} == {1.0}
    wandb, trackio = inits[::2], inits[1::2]
    assert {given["name"] for given in wandb} == {"one"} and wandb[0]["dir"] == str(folder)
    assert wandb[0]["id"] == wandb[1]["id"] != wandb[2]["id"]
    assert trackio[0]["name"] == trackio[1]["name"] != trackio[2]["name"]
    assert json.loads((folder / "trackers.json").read_text())["wandb"] == wandb[2]["id"]


def test_they_get_the_numbers_of_the_log_and_the_summary(said, tmp_path):
    trackers = open_trackers(("wandb", "trackio"), tmp_path, {}, True)
    book = Logbook(tmp_path, ALONE, 10, tensorboard=False, trackers=trackers)
    book.write("train", 3, "", loss=1.5, lr_groups={"head.weight": 0.1})
    book.conclude({}, {"last": {"top1": 50.0}, "best": {"top1": 60.0, "iteration": 2}, "seconds": 1})
    book.close()
    numbers, final = {"train/loss": 1.5, "lr/head.weight": 0.1}, {"last/top1": 50.0, "best/top1": 60.0,
                                                                  "best/iteration": 2}  # fmt: skip
    assert said[2:4] == [("wandb log", numbers, 3), ("trackio log", numbers, 3)]
    assert ("wandb summary", final) in said
    assert ("trackio log", {f"summary/{name}": value for name, value in final.items()}, None) in said
    assert [entry[0] for entry in said].count("wandb finish") == [e[0] for e in said].count("trackio finish") == 1


def test_one_that_fails_is_one_warning_and_the_others_go_on(said, monkeypatch, tmp_path, caplog):
    trackers = open_trackers(("wandb", "trackio"), tmp_path, {}, True)

    def unreachable(*_, **__):
        raise ConnectionError("no route to the host\nand more")

    monkeypatch.setattr(trackers[0].tracker.run, "log", unreachable, raising=False)
    book = Logbook(tmp_path, ALONE, 10, tensorboard=False, trackers=trackers)
    with caplog.at_level(logging.WARNING):
        for step in (1, 2, 3):
            book.write("train", step, "", loss=1.0)
        book.close()
    told = [record.getMessage() for record in caplog.records]
    assert told == ["tracker wandb gets no more numbers: no route to the host"]
    assert [entry[2] for entry in said if entry[0] == "trackio log"] == [1, 2, 3]


def test_one_that_does_not_start_is_a_warning_too(said, monkeypatch, tmp_path, caplog):
    def refuse(**_):
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with caplog.at_level(logging.WARNING):
        (tracker,) = open_trackers(("wandb",), tmp_path, {}, True)
        tracker.log({"train/loss": 1.0}, 1)
        tracker.finish({})
    assert [record.getMessage() for record in caplog.records] == [
        "tracker wandb gets no more numbers: api_key not configured"
    ]


@pytest.mark.parametrize("found", [None, ModuleSpec("wandb", None)], ids=["nothing", "a folder of earlier runs"])
def test_a_missing_package_is_named_with_the_command(monkeypatch, found):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: found)
    with pytest.raises(ConfigError, match="tracker wandb: the package is not installed; pip install wandb"):
        check_installed(("wandb",))


def test_images_without_tensorboard_are_refused():
    given = {"images": 4, "tensorboard": False}
    with pytest.raises(ConfigError, match=r"run.images 4 has no effect unless run.tensorboard is true"):
        read_options(lambda name, key, default: given.get(name, default))
