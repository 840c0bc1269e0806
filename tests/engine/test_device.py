"""What --device names, and what computes there."""

from __future__ import annotations

import pytest
import torch

from elsa.core import ConfigError
from elsa.engine.distributed import distributed
from elsa.engine.precision import fit_precision


@pytest.fixture
def on_a_mac(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def refused(device: str) -> str:
    with pytest.raises(ConfigError) as caught, distributed(device):
        pass
    return str(caught.value)


def test_a_kind_that_does_not_exist_is_refused():
    assert refused("tpu") == "--device must be auto, cpu, cuda, cuda:N or mps, got 'tpu'"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="torch sees Apple's GPU")
def test_apples_gpu_is_refused_where_there_is_none():
    assert refused("mps") == "--device mps asks for Apple's GPU; torch sees none: --device cpu computes without"


def test_apples_gpu_is_taken_where_there_is_one_and_computes_in_float32(on_a_mac):
    with distributed("mps") as runtime:
        assert runtime.device == torch.device("mps")
        assert fit_precision("auto", runtime.device).dtype is None
        assert fit_precision("float16", runtime.device).dtype is torch.float16


def test_apples_gpu_is_for_one_process(on_a_mac, monkeypatch):
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("LOCAL_RANK", 0), ("MASTER_ADDR", "localhost"),
                        ("MASTER_PORT", 29_500)):  # fmt: skip
        monkeypatch.setenv(name, str(value))
    said = refused("mps")
    assert said.startswith("--device mps is for one process, not for 2, which cannot exchange gradients there")
    assert said.endswith("start it without torchrun, or with --device cpu")
