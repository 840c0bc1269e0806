"""tools/benchmark.py op: a small run from end to end, a GPU's clock, and its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elsa.tools import benchmark
from elsa.tools.tasks.benchmark import DEFAULT_GROUPS, GROUPS
from elsa.tools.tasks.benchmark.measure import BURST, gpu_seconds
from elsa.tools.tasks.outcome import run as as_a_verb

TOOL = Path(__file__).resolve().parents[2] / "tools/benchmark.py"
SMALL = ("op", "--shapes", "plain", "--dtypes", "fp32", "--batch", "1", "--seconds", "0.01")


@pytest.fixture
def run(monkeypatch, capsys):
    """``run(*arguments)``: exit code, output and errors of the verb."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *map(str, arguments)])
        threads, code = torch.get_num_threads(), 0
        try:
            as_a_verb(benchmark.main)
        except SystemExit as leaving:
            code = leaving.code
        finally:
            torch.set_num_threads(threads)
        return code, *capsys.readouterr()

    return call


def check_rows(folder):
    rows = json.loads((folder / "operator.json").read_text())["rows"]
    assert [row["pass"] for row in rows] == ["forward", "forward+backward"]
    for row in rows:
        times, backward = row["milliseconds"], row["pass"] != "forward"
        assert set(times) == {
            "elsa",
            "unfold",
            "depthwise contiguous_format",
            "depthwise channels_last",
            "gemm",
            "copy",
        }
        assert row["faster_than_unfold"] == pytest.approx(times["unfold"] / times["elsa"])
        multiply_adds = 56 * 56 * 96 * 49 * (3 if backward else 1)
        assert row["gflops"] == pytest.approx(2e-6 * multiply_adds / times["elsa"])
        values, weights = 4 * 56 * 56 * 96, 4 * 56 * 56 * 3 * 49
        moved = 5 * values + 3 * weights if backward else 2 * values + weights
        assert row["gigabytes_per_second"] == pytest.approx(1e-6 * moved / times["elsa"])
    assert (folder / "operator.png").stat().st_size > 1000
    return rows


def test_small_run(tmp_path, compiled_cpu):
    command = [sys.executable, TOOL, *SMALL, "--threads", "1", "--output", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert [row["threads"] for row in check_rows(tmp_path)] == [1, 1]
    assert len([line for line in result.stdout.splitlines() if "no ghost" in line]) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU: the benchmark was not run on one")
def test_small_run_on_a_gpu(tmp_path, run):
    code, _, errors = run(*SMALL, "--device", "cuda", "--output", tmp_path)
    assert code == 0, errors
    for row in check_rows(tmp_path):
        assert row["threads"] is None
        assert row["share_of_copy"] < 1.5


def test_a_gpus_clock_is_per_call(monkeypatch):
    """Events tell the milliseconds of a whole burst, once the second one has happened."""
    happened, calls = [], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            happened.append(len(calls))

        def synchronize(self):
            happened.append("waited")

        def elapsed_time(self, end):
            assert happened == [0, BURST, "waited"]
            return 3.0 * BURST

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert gpu_seconds(lambda: calls.append(1)) == pytest.approx(0.003)


def test_what_needs_too_much_memory_is_left_out(tmp_path, compiled_cpu, run):
    arguments = ("--threads", "1", "--passes", "forward", "--contestants", "unfold", "--memory", "0")
    _, output, _ = run(*SMALL, *arguments, "--output", tmp_path)
    assert "unfold left out: about 0.2 GiB (--memory 0)" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: verb"),
        (("op", "--shapes", "swin"), "'swin' is not one of swin_t_224"),
        (("op", "--shapes", "swin_t_244"), "did you mean swin_t_224?"),
        (("op", "--shapes", ""), "name at least one of"),
        (("op", "--dtypes", "int8"), "'int8' is not one of fp32, bf16"),
        (("op", "--threads", "0"), "must be at least 1, got 0"),
        (("op", "--threads", "many"), "'many' is not a number"),
        (("op", "--seconds", "-1"), "must be at least 0.0, got -1"),
        (("op", "--no-such"), "unrecognized arguments: --no-such"),
        (("op", "--device", "gpu"), "'gpu' is not one of cpu, cuda, cuda:N"),
        (("op", "--device", "cuda:99"), "cuda:99: "),
        (("op", "--backend", "cuda"), "--backend cuda cannot run on --device cpu"),
        (("op", "--output", "/dev/null/x"), "/dev/null is a file"),
    ],
)
def test_bad_options_are_one_line(arguments, message, run):
    code, _, errors = run(*arguments)
    assert code == 2
    assert message in errors and len(errors.splitlines()) == 1


def test_without_a_gpu(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, _, errors = run("op", "--device", "cuda")
    assert code == 2
    assert "sees no CUDA GPU" in errors and len(errors.splitlines()) == 1


def test_what_has_no_effect_on_a_gpu_is_refused(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    code, _, errors = run("op", "--device", "cuda", "--threads", "2")
    assert (code, errors) == (2, "error: --threads has no effect on --device cuda\n")


def test_volo_s_first_stages_are_among_the_shapes():
    """K = 5 with both ghosts, at 224 pixels, for every ELSA-VOLO."""
    from elsa.models import VARIANTS

    assert "volo_224" in DEFAULT_GROUPS
    shapes = {(s.height, s.width, s.channels, s.heads, s.kernel, s.mul, s.add) for s in GROUPS["volo_224"]}
    specs = [spec for name, spec in VARIANTS.items() if name.startswith("elsa_volo_d")]
    assert shapes == {(28, 28, spec.embed_dims[0], spec.num_heads[0], 5, True, True) for spec in specs}
