"""What a log line tells: shares of the time, utilisation, learning rates, memory, and a word where data are slow."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from elsa.engine import Plan, Precision, Runtime, TrainState, TrainStep, logbook, monitor
from elsa.engine.logbook import Logbook
from elsa.engine.monitor import Monitor
from elsa.engine.utilisation import Peak, count_flops, data_sheet

ALONE = Runtime(0, 1, torch.device("cpu"))
FLOAT32 = Precision("cpu", None)
PLAN = Plan(seed=0, device="cpu", precision="float32", processes=1, global_batch=8, accumulate=1, micro_batch=8, lr=0.1,
            train_images=800, val_images=8, steps_per_epoch=100, total_steps=200, evaluate_every=100, save_every=0,
            log_every=4)  # fmt: skip


class Clock:
    now = 100.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when the test says so, and a device of 1 GFLOP/s."""
    clock = Clock()
    monkeypatch.setattr(monitor, "time", clock)
    monkeypatch.setattr(logbook, "time", clock)
    monkeypatch.setattr(monitor, "peak", lambda device, precision: Peak(1e9, "a data sheet"))
    return clock


def problem(*groups: float):
    """A step of a model of 256 FLOP an image and forward pass, with a learning rate for each of its two layers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 4, bias=False))
    rates = groups or (0.1, 0.1)
    parts = (model[1:3], model[3])
    optimizer = torch.optim.SGD(
        [{"params": list(part.parameters()), "lr": rate} for part, rate in zip(parts, rates, strict=True)], lr=0.1
    )
    step = TrainStep(model, optimizer, nn.CrossEntropyLoss(), FLOAT32, source=model)
    batch = SimpleNamespace(images=torch.randn(8, 3, 2, 2), targets=torch.randint(0, 4, (8,)))
    return step, batch, TrainState(model, optimizer, step.scaler)


def run(clock, folder, step, batch, state, steps=4, wait=1.0, exchange=0.5, compute=2.5, lines=1, **recipe):
    """A monitor that has watched ``lines`` times so many steps, and the records that it wrote."""
    book = Logbook(folder, ALONE, total_steps=200, tensorboard=False)
    watch = Monitor(PLAN, ALONE, state, book, recipe)
    for _ in range(lines):
        for _ in range(steps):
            with watch.waiting():
                clock.now += wait
            watch.look(step, [batch])
            record = step([batch])
            clock.now += compute
            with watch.exchanging():
                clock.now += exchange
            state.step += 1
            watch.count(record)
        watch.write(record, state.step)
    book.close()
    return watch, [json.loads(line) for line in (folder / "log.jsonl").open()]


def test_a_line_tells_where_the_time_went_and_what_was_made_of_it(clock, tmp_path):
    _, (line,) = run(clock, tmp_path, *problem())
    assert line["data_wait"] == pytest.approx(0.25)
    assert line["communication"] == pytest.approx(0.125)
    assert line["compute"] == pytest.approx(0.625)
    assert line["images_per_s"] == line["images_per_s_per_gpu"] == pytest.approx(2.0)
    assert line["tflops_per_gpu"] == pytest.approx(3 * 256 * 2.0 / 1e12)
    assert line["mfu"] == pytest.approx(3 * 256 * 2.0 / 1e9)
    assert line["elapsed_s"] == pytest.approx(16.0)
    assert (line["step"], line["epoch"], line["skipped"]) == (4, 0.04, 0)
    assert line["grad_norm"] > 0 and line["memory_gb"] > 0
    assert "lr_groups" not in line


def test_skipped_steps_and_the_loss_scale_are_told(clock, tmp_path, caplog):
    step, batch, state = problem()
    step.loss_scale, state.skipped = lambda: 1024.0, 2
    with caplog.at_level(logging.INFO):
        _, (line,) = run(clock, tmp_path, step, batch, state)
    assert (line["skipped"], line["loss_scale"]) == (2, 1024.0)
    assert " skipped 2 " in caplog.records[-1].getMessage()


def test_time_goes_on_where_an_earlier_launch_ended(clock, tmp_path):
    run(clock, tmp_path, *problem())
    clock.now += 1000
    resumed = Logbook(tmp_path, ALONE, total_steps=200, from_step=4, tensorboard=False)
    clock.now += 5
    resumed.write("train", 5, "")
    resumed.close()
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["elapsed_s"] == pytest.approx(21.0)


def test_learning_rates_that_differ_are_told_by_name(clock, tmp_path):
    _, (line,) = run(clock, tmp_path, *problem(0.1, 0.02))
    assert line["lr"] == 0.1
    assert line["lr_groups"] == {"1.weight": 0.1, "3.weight": 0.02}


@pytest.mark.parametrize(("wait", "warnings"), [(0.5, 1), (0.2, 0)])
def test_slow_data_are_told_once_with_the_cure(clock, tmp_path, caplog, wait, warnings):
    with caplog.at_level(logging.WARNING):
        run(clock, tmp_path, *problem(), lines=8, wait=wait, compute=2.0, **{"DATA.WORKERS": 3})
    told = [record.getMessage() for record in caplog.records if "waiting for data" in record.getMessage()]
    assert len(told) == warnings
    assert all("17%" in text and "raise DATA.WORKERS (3 now)" in text and "benchmark.py data" in text for text in told)


def test_loader_processes_that_start_are_no_slow_data(clock, tmp_path, caplog):
    """The first steps of a launch, and those after an evaluation."""
    step, batch, state = problem()
    book = Logbook(tmp_path, ALONE, total_steps=200, tensorboard=False)
    watch = Monitor(PLAN, ALONE, state, book, {})
    with caplog.at_level(logging.WARNING):
        for index in range(60):
            if index % 6 == 0:
                watch.restart()
            with watch.waiting():
                clock.now += 20.0 if index % 6 < 2 else 0.0
            watch.look(step, [batch])
            record = step([batch])
            clock.now += 1.0
            watch.count(record)
            watch.write(record, 1)
    assert not caplog.records


def test_counting_operations_leaves_the_training_alone():
    step, batch, _ = problem()
    before = {name: tensor.clone() for name, tensor in step.source.state_dict().items()}
    assert count_flops(step, batch) == 3 * 256
    assert all(torch.equal(tensor, before[name]) for name, tensor in step.source.state_dict().items())
    assert step.source.training and all(parameter.grad is None for parameter in step.source.parameters())


def test_operations_that_cannot_be_counted_are_left_out_with_the_reason(clock, tmp_path, caplog, monkeypatch):
    def fail(step, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand more")

    monkeypatch.setattr(monitor, "count_flops", fail)
    with caplog.at_level(logging.WARNING):
        _, (line,) = run(clock, tmp_path, *problem())
    assert "mfu" not in line and line["images_per_s"] == pytest.approx(2.0)
    assert [record.getMessage() for record in caplog.records] == [
        "log lines have no MFU, as operations cannot be counted: CUDA out of memory. Tried to allocate 2 GiB"
    ]


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "float32", 19.5),
        ("NVIDIA A100-SXM4-40GB", "tf32", 156),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.5),
        ("NVIDIA H100 PCIe", "float16", 756),
        ("NVIDIA H200", "bfloat16", 989.5),
        ("Tesla V100-SXM2-32GB", "float16", 125),
        ("Tesla V100-SXM2-32GB", "bfloat16", 0),
        ("Tesla T4", "float16", 65),
        ("NVIDIA L4", "bfloat16", 121),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA A10", "bfloat16", 125),
        ("NVIDIA RTX A6000", "bfloat16", 154.8),
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", 0),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", 0),
        ("NVIDIA A10G", "bfloat16", 0),
        ("NVIDIA A100X", "bfloat16", 0),
        ("NVIDIA B300", "bfloat16", 0),
    ],
)
def test_peaks_are_those_of_that_very_gpu(name, kind, expected):
    assert data_sheet(name, kind) == expected
