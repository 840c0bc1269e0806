"""tools/benchmark.py data: every stage of loading beside the model, and what is advised."""

from __future__ import annotations

import json

import pytest

from elsa.tools.tasks.benchmark.data import advise


@pytest.fixture
def measured(tool, tmp_path, root):
    """``measured(recipe, *options)``: the outcome, and what data.json holds."""

    def call(recipe, *options):
        quick = ["--device", "cpu", "--seconds", "0.1", "--workers", "0,1", "--output", tmp_path / "out"]
        outcome = tool("benchmark", "data", root / "configs" / recipe, *quick, *options)
        path = tmp_path / "out" / "data.json"
        return outcome, json.loads(path.read_text()) if path.exists() else None

    return call


DIGITS = "classification/digits_elsa_swin_nano.yaml"


def test_loading_is_measured_beside_the_model_and_timm_s_loader(measured, tmp_path):
    outcome, found = measured(DIGITS, "--set", f"DATA.ROOT={tmp_path / 'digits'}", "DATA.BATCH=8")
    assert outcome.code == 0, outcome.err
    assert set(found["milliseconds"]) == {"read", "decode", "augment", "collate", "transfer"}
    stages = sum(value for name, value in found["milliseconds"].items() if name != "transfer")
    assert found["images_per_s_per_core"] == pytest.approx(1e3 / stages)
    assert [row["workers"] for row in found["loading"]] == [0, 1]
    for row in found["loading"]:
        assert row["elsa"] > 1
        assert row["timm"] > 1
    assert set(found["decoding"]) == {"elsa", "timm"}
    assert found["model_images_per_s"] > 0
    for words in (
        "from a file to pixels",
        "1 loader processes",
        "timm's loader",
        "the model trains",
        "holds training up",
    ):
        assert words in outcome.out
    assert (tmp_path / "out/data.png").stat().st_size > 1000


@pytest.mark.parametrize("recipe", ["detector", "segmentor"])
def test_detection_and_segmentation_too(measured, request, recipe):
    outcome, found = measured(request.getfixturevalue(recipe))
    assert outcome.code == 0, outcome.err
    assert set(found["milliseconds"]) == {"decode", "augment", "collate", "transfer"}
    assert found["model_images_per_s"] > 0
    assert found["decoding"] is None
    assert all("timm" not in row for row in found["loading"])


def result(model, rates, **stages):
    stages = {"read": 1.0, "decode": 5.0, "augment": 3.0, "collate": 1.0, "transfer": 0.0, **stages}
    per_core = 1e3 / sum(value for name, value in stages.items() if name != "transfer")
    rows = [{"workers": workers, "elsa": rate} for workers, rate in rates.items()]
    facts = {"loading": rows, "milliseconds": stages, "images_per_s_per_core": per_core}
    return {"model_images_per_s": model, **facts}


@pytest.mark.parametrize(
    ("given", "cores", "workers", "bottleneck"),
    [
        (result(150, {0: 90, 1: 100, 2: 190, 4: 380}), 4, 2, "model"),
        (result(90, {0: 99.1, 1: 100}), 4, 0, "model"),
        (result(900, {0: 90, 4: 390}), 16, 10, "model"),  # not measured, but there are as many cores
        (result(900, {0: 90, 4: 390}), 4, 4, "decode"),
        (result(900, {0: 90, 4: 390}, read=9), 4, 4, "read"),
        (result(900, {0: 90, 4: 390}, augment=9), 4, 4, "augment"),
        (result(900, {0: 90, 4: 390}, transfer=2.0), 16, 10, "transfer"),
    ],
)
def test_what_is_advised(given, cores, workers, bottleneck):
    advice = advise(given, cores)
    assert (advice["workers"], advice["bottleneck"]) == (workers, bottleneck)
    if bottleneck == "read":
        assert "tools/make_shards.py" in advice["do"]
    if workers == cores:
        assert f"cores would be needed, there are {cores}; loading gives 43% of the images" in advice["do"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["elsa_swin_tny"], "did you mean elsa_swin_tiny?"),
        (["elsa_swin_tiny", "--workers", "1,x"], "'x' is not a number"),
        (["elsa_swin_tiny", "--set", "DATA.ROOT=/nowhere"], "DATA.ROOT /nowhere does not exist"),
        (["elsa_swin_tiny", "--output", "/dev/null/x"], "/dev/null is a file"),
    ],
)
def test_mistakes_are_one_line(tool, arguments, said):
    outcome = tool("benchmark", "data", *arguments, "--device", "cpu")
    assert outcome.code == 2
    assert said in outcome.err.splitlines()[-1]
