"""tools/benchmark.py op: a small run from end to end, and its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools/benchmark.py"


def run(*arguments):
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_small_run(tmp_path, compiled_cpu):
    small = ("--shapes", "plain", "--dtypes", "fp32", "--threads", "1", "--batch", "1", "--seconds", "0.01")
    result = run("op", *small, "--contestants", "unfold,depthwise", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads((tmp_path / "operator.json").read_text())["rows"]
    assert [row["pass"] for row in rows] == ["forward", "forward+backward"]
    for row in rows:
        times = row["milliseconds"]
        assert set(times) == {"elsa", "unfold", "depthwise contiguous_format", "depthwise channels_last", "gemm"}
        assert row["faster_than_unfold"] == pytest.approx(times["unfold"] / times["elsa"])
        multiply_adds = 56 * 56 * 96 * 49 * (1 if row["pass"] == "forward" else 3)
        assert row["gflops"] == pytest.approx(2e-6 * multiply_adds / times["elsa"])
    assert (tmp_path / "operator.png").stat().st_size > 1000
    assert len([line for line in result.stdout.splitlines() if "no ghost" in line]) == 2


def test_what_needs_too_much_memory_is_left_out(tmp_path, compiled_cpu):
    small = ("--shapes", "plain", "--dtypes", "fp32", "--threads", "1", "--passes", "forward", "--seconds", "0.01")
    result = run("op", *small, "--contestants", "unfold", "--memory", "0", "--output", tmp_path)
    assert "unfold left out: about 0.4 GiB (--memory 0)" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: verb"),
        (("op", "--shapes", "swin"), "'swin' is not one of swin_t_224"),
        (("op", "--shapes", ""), "name at least one of"),
        (("op", "--dtypes", "int8"), "'int8' is not one of fp32, bf16"),
        (("op", "--threads", "0"), "must be at least 1, got 0"),
        (("op", "--threads", "many"), "'many' is not a number"),
        (("op", "--seconds", "-1"), "must be at least 0.0, got -1"),
        (("op", "--no-such"), "unrecognized arguments: --no-such"),
    ],
)
def test_bad_options_are_one_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr and len(result.stderr.splitlines()) == 1


def test_volo_s_first_stages_are_among_the_shapes(monkeypatch):
    """K = 5 with both ghosts, at 224 pixels, for every ELSA-VOLO."""
    from elsa.models import VARIANTS

    monkeypatch.syspath_prepend(str(TOOL.parent))
    from _contestants import DEFAULT_GROUPS, GROUPS

    assert "volo_224" in DEFAULT_GROUPS
    shapes = {(s.height, s.width, s.channels, s.heads, s.kernel, s.mul, s.add) for s in GROUPS["volo_224"]}
    specs = [spec for name, spec in VARIANTS.items() if name.startswith("elsa_volo_d")]
    assert shapes == {(28, 28, spec.embed_dims[0], spec.num_heads[0], 5, True, True) for spec in specs}
