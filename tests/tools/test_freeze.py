"""TRAIN.FREEZE in runs: what is frozen stays as it was begun, whole or divided, interrupted or not."""

from __future__ import annotations

import re
import signal

import pytest
import torch
from guarantees import assert_same_run, content, saved

from elsa.engine import load_config
from elsa.tools.tasks.networks import create_network

FROZEN = ("patch_embed.", "layers.0.", "layers.1.")
FREEZE = "TRAIN.FREEZE=['patch_embed.*', 'layers.[01].*']"


def assert_only_the_rest_learned(folder, config):
    """Both the weights and their average."""
    begun = dict(create_network(load_config(config)).named_parameters())
    for name, tensor in saved(folder).items():
        if name in begun:
            assert torch.equal(tensor, begun[name]) == name.startswith(FROZEN), name


def test_a_run_stopped_and_resumed_leaves_what_is_frozen(config, tool, tmp_path, signal_at):
    arguments = ("train", config, "--resume", "auto", "--set", FREEZE, "LOG.SAVE_STEPS=2")
    outcome = tool(*arguments, "--output", tmp_path / "whole")
    assert outcome.code == 0, outcome.err
    assert_only_the_rest_learned(tmp_path / "whole", config)
    parameters = dict(create_network(load_config(config)).named_parameters())
    learn = sum(tensor.numel() for name, tensor in parameters.items() if not name.startswith(FROZEN))
    assert re.search(rf"elsa_swin_nano: 0\.\d+ M parameters, of which {learn:,} learn, float32 on cpu", outcome.err)
    state = content(tmp_path / "whole/last.pt")["optimizer"]["state"]
    assert len(state) == sum(not name.startswith(FROZEN) for name in parameters)
    signal_at(8, signal.SIGTERM)
    assert tool(*arguments, "--output", tmp_path / "run").code == 0
    signal_at()
    assert tool(*arguments, "--output", tmp_path / "run").code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_two_processes_leave_what_is_frozen(config, launch, tmp_path, how):
    sets = [FREEZE, f"TRAIN.PARALLEL={how}", "TRAIN.EPOCHS=2"]
    both = launch("none", "train", config, "--output", tmp_path / how, "--set", *sets, processes=2)
    assert both.wait(300) == [0, 0], both.said() + both.said(1)
    assert_only_the_rest_learned(tmp_path / how, config)
