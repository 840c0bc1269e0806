"""TRAIN.COMPILE of classification and dense tasks: a run that goes on compiled is the run that it would have been."""

import functools
import signal

import pytest
from guarantees import assert_same_run

from elsa.engine.compiling import compile_parts
from elsa.tools.tasks import training


@pytest.fixture
def whole_runs(tmp_path, monkeypatch):
    """Linear layers are PyTorch's, in these runs and in those that go on: graphs know their weights, not their rows, so
    that one too small for oneDNN's product without a compiler may be large enough within a graph."""
    monkeypatch.setenv("ELSA_LINEAR", "torch")
    return tmp_path / "whole"


@pytest.mark.parametrize("task", ["classification", "detection"], indirect=True)  # segmentation has no part of its own
def test_a_run_goes_on_compiled(task, whole, tmp_path, tool, signal_at, monkeypatch):
    """Every graph without a break, training and evaluation; its operations computed as without a compiler, since those
    that it writes itself round otherwise."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(training, "compile_parts", functools.partial(compile_parts, backend=backend))
    folder = tmp_path / "run"
    signal_at(2, signal.SIGTERM)
    assert tool("train", task.recipe, "--output", folder, *task.set(save=2)).code == 0
    signal_at()
    assert not graphs
    key = "TRAIN.COMPILE" if task.task == "classification" else "run.compile"
    resumed = tool("train", task.recipe, "--output", folder, "--resume", "auto", *task.set(save=2), f"{key}=True")
    assert resumed.code == 0, resumed.err
    assert graphs
    assert_same_run(whole, folder)


def test_a_compiler_that_is_not_there_is_told(config, tmp_path, tool, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    refused = tool("train", config, "--output", tmp_path / "run", "--set", "TRAIN.COMPILE=true")
    assert refused.code == 2 and "needs a C++ compiler" in refused.err and "Traceback" not in refused.err
    assert not (tmp_path / "run").exists()
