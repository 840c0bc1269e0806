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
from elsa.tools.tasks.benchmark.peak import peak_rate
from elsa.tools.tasks.outcome import run as as_a_verb

CPU = torch.device("cpu")
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


def test_the_hadamard_convolution_beside_pytorch(tmp_path, compiled_cpu, run):
    passes = ("--passes", "forward,backward,gradients", "--batch", "1,2", "--threads", "1", "--output", tmp_path)
    code, _, errors = run("op", "--shapes", "hadamard_volo_224", "--dtypes", "fp32", "--seconds", "0.01", *passes)
    assert code == 0, errors
    rows = json.loads((tmp_path / "operator.json").read_text())["rows"]
    assert [(row["batch"], row["pass"]) for row in rows] == [
        (batch, which) for batch in (1, 2) for which in ("forward", "forward+backward", "backward")
    ]
    for row in rows:
        times, sums = row["milliseconds"], {"forward": 1, "forward+backward": 3, "backward": 2}[row["pass"]]
        best = min(times["pytorch contiguous_format"], times["pytorch channels_last"])
        assert row["faster_than_pytorch"] == pytest.approx(best / times["elsa"])
        multiply_adds = row["batch"] * 28 * 28 * 128 * 8 * 25 * sums
        assert row["gflops"] == pytest.approx(2e-6 * multiply_adds / times["elsa"])
        assert row["share_of_peak"] == pytest.approx(1e9 * row["gflops"] / 2 / peak_rate(CPU, "float32").rate)
        numbers = row["batch"] * 28 * 28 * (3 * 128 * (sums != 2) + (6 * 128 + 2 * 192) * (sums > 1))
        assert row["gigabytes_per_second"] == pytest.approx(4e-6 * numbers / times["elsa"])
    assert (tmp_path / "operator.png").stat().st_size > 1000


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
        assert row["faster_than_pytorch"] is None
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


@pytest.mark.parametrize("variant", ["tiny", "small", "base"])
def test_the_hadamard_shapes_are_those_of_the_networks(variant):
    """Channels of queries and keys as ELSA rounds them."""
    import timm

    from elsa.models import ELSA

    with torch.device("meta"):
        network = timm.create_model(f"elsa_swin_{variant}")
    shapes = [(s.channels, s.group_width, s.rest, s.kernel) for s in GROUPS[f"hadamard_{variant[0]}_224"]]
    blocks = [next(module for module in stage.modules() if isinstance(module, ELSA)) for stage in network.layers[:3]]
    convolutions = [block.attn[0] for block in blocks]
    assert shapes == [
        (one.out_channels, one.weight.shape[1], block.dim_v, one.kernel_size[0])
        for one, block in zip(convolutions, blocks, strict=True)
    ]
