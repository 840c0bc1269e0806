"""tools/benchmark.py model, parts and scaling: small runs from end to end, what their numbers mean, and refusals."""

import json
import os
import statistics
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from elsa.core import ConfigError, TrainingError
from elsa.kernels import backend_info
from elsa.tools.tasks.benchmark import anatomy, rivals, subjects, whole
from elsa.tools.tasks.benchmark.crew import Case, crew
from elsa.tools.tasks.benchmark.peak import _loop, peak_rate

SMALL = ("elsa_swin_nano", "--batch", "2", "--rounds", "2")
CPU = torch.device("cpu")


def median(numbers):
    return pytest.approx(statistics.median(numbers))


# ---- model


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run of both passes, ours and the counterpart in two of its settings."""
    folder = tmp_path_factory.mktemp("model")
    settings = whole.WholeSettings(
        device=CPU, names=("elsa_swin_nano",), against=None, settings=("plain", "linear"),
        passes=("inference", "train"), modes=("eager",), dtypes=("float32",), task="classifier", size=(64, 96), batch=2,
        threads=(1,), rounds=3, output=folder,
    )  # fmt: skip
    whole.benchmark_model(settings)
    return folder, json.loads((folder / "model.json").read_text())


def test_every_contestant_has_a_row_for_each_pass(measured):
    folder, result = measured
    labels = ["elsa_swin_nano", "swin_nano, as it comes", "swin_nano, the same with our linear layers"]
    assert [(row["which"], row["label"]) for row in result["rows"]] == [
        (which, label) for which in ("inference", "train") for label in labels
    ]
    assert (folder / "model.png").stat().st_size > 10_000
    assert set(result) == {"device", "torch", "kernels", "cpus", "peak", "rounds", "rows"}


def test_times_are_medians_and_ratios_are_of_one_round(measured):
    _, result = measured
    ours = None
    for row in result["rows"]:
        ours = row if row["ours"] else ours
        for clock in ("wall", "cpu"):
            assert len(row["rounds"][clock]) == 3
            assert row[clock]["median"] == median(row["rounds"][clock])
            assert row[clock]["low"] <= row[clock]["median"] <= row[clock]["high"]
        assert row["images_per_s"] == pytest.approx(2 / row["wall"]["median"])
        assert 0 < row["p50"] <= row["p95"]
        assert row["clock"] == "cpu"
        if row["ours"]:
            assert row["ratios"] == {}
            continue
        for clock in ("wall", "cpu"):
            pairs = zip(ours["rounds"][clock], row["rounds"][clock], strict=True)
            assert row["ratios"]["ours"][clock]["median"] == median([one / other for one, other in pairs])
        assert row["ratios"]["bytes"] == pytest.approx(ours["bytes"] / row["bytes"])


def test_shares_of_the_peak_are_of_operations_counted(measured):
    _, result = measured
    peak = result["peak"]["float32"]["rate"]
    for row in result["rows"]:
        network = subjects.build(row["model"], "classifier", (64, 96))
        flops = subjects.count_forward(network, subjects.random_batch(1, (64, 96), CPU))
        work = flops * (3 if row["which"] == "train" else 1)
        assert row["gflops_per_image"] == pytest.approx(1e-9 * work)
        assert row["share_of_peak"] == pytest.approx(2 * work / 2 / row["cpu"]["median"] / peak)
        assert row["parameters"] == sum(parameter.numel() for parameter in network.parameters())
        assert row["bytes"] > 4 * row["parameters"] * (4 if row["which"] == "train" else 1)


def test_rows_for_a_document_come_from_json_alone(measured, tool):
    folder, result = measured
    outcome = tool("benchmark", "model", "--markdown", folder / "model.json", folder / "model.json")
    assert outcome.code == 0, outcome.err
    heading, rule, *rows = outcome.out.splitlines()
    assert len(rows) == 4 and rows[:2] == rows[2:]  # one for each pass of each file
    assert {line.count("|") for line in (heading, rule, *rows)} == {heading.count("|")}
    ratio = result["rows"][1]["ratios"]["ours"]["cpu"]["median"]
    assert f"| {ratio:.3f} [" in rows[0]


def test_a_backbone_without_a_counterpart(tmp_path, tool):
    outcome = tool("benchmark", "model", *SMALL, "--size", "64x96", "--task", "backbone", "--against", "none",
                   "--output", tmp_path)  # fmt: skip
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "model.json").read_text())["rows"]
    assert [(row["which"], row["task"], row["size"]) for row in rows] == [
        ("inference", "backbone", [64, 96]), ("train", "backbone", [64, 96]),
    ]  # fmt: skip


# ---- contestants


def test_each_setting_of_the_counterpart_is_an_environment_of_its_own(monkeypatch):
    for name in ("TIMM_FUSED_ATTN", "THP_MEM_ALLOC_ENABLE", "ELSA_LINEAR"):
        monkeypatch.setenv(name, "mine")
    every = rivals.contestants("elsa_swin_tiny", None, ("plain", "best", "linear"))
    assert {one.model for one in every[1:]} == {"swin_tiny_patch4_window7_224"}
    assert [one.our_linear for one in every] == [False, False, False, True]
    found = []
    for one in every:
        environment = rivals.environment_of(one, 1, False)
        names = ("TIMM_FUSED_ATTN", "THP_MEM_ALLOC_ENABLE", "ELSA_LINEAR")
        found.append(tuple(environment.get(name) for name in names))
        assert environment["PATH"] == os.environ["PATH"] and environment["OMP_NUM_THREADS"] == "1"
    assert found == [(None, "1", "mine"), (None, None, "torch"), ("2", "1", "torch"), ("2", "1", "mine")]


@pytest.mark.parametrize(
    ("name", "other"), [*rivals.COUNTERPARTS.items(), ("swin_tiny", "swin_tiny_patch4_window7_224")]
)
def test_every_counterpart_can_be_built(name, other):
    assert rivals.counterpart(name) == other
    rivals.check_name(other, "--against")


@pytest.mark.parametrize("name", ["elsa_swin_nano", "swin_nano", "volo_nano", "deit_tiny_patch16_224"])
def test_with_our_linear_layers_a_network_computes_the_same(name):
    torch.manual_seed(0)
    network = subjects.build(name, "classifier", (64, 64)).eval()
    images = subjects.random_batch(2, (64, 64), CPU).images
    before = network(images)
    plain = type(network) if name == "deit_tiny_patch16_224" else None
    subjects.use_our_linear(network)
    torch.testing.assert_close(network(images), before, rtol=1e-4, atol=1e-5)
    if plain is not None:  # whose layers are timm's
        changed = [part for part in network.modules() if "forward" in vars(part)]
        assert changed and all(type(part) is nn.Linear for part in changed)


def test_a_counterpart_without_a_size_or_stochastic_depth_is_built_without():
    network = subjects.build("resnet18", "classifier", (64, 64), drop_path=0.1)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, subjects.CLASSES)


def test_what_a_process_stumbles_over_is_one_line_and_so_is_its_loss():
    def case(side):
        return Case("classifier", (side, side), 1, "inference", "eager", "float32", "cpu")

    lost = pytest.raises(TrainingError, match="elsa_volo_nano: its process was ended by SIGKILL: too little memory")
    with lost, crew(rivals.contestants("elsa_volo_nano", "none", ()), [0], 1) as one:
        with pytest.raises(ConfigError, match="elsa_volo_nano as a classifier for images of 40x40: img_size must be a"):
            one.prepare(case(40), 1)
        one.prepare(case(64), 1)
        worker = one.teams[0][0]
        worker.process.kill()
        one.race(1, (1,), lambda: None)
    assert worker.process.poll() is not None and not one._file("").exists()


def test_the_peak_is_at_least_that_of_a_product():
    found = peak_rate(CPU, "float32")
    assert found.rate >= (_loop("float32") or 0)
    assert found.origin in ("a loop of multiply-adds in registers", "the fastest of oneDNN's matrix products")


def test_a_gpus_peak_is_its_data_sheets(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    found = peak_rate(torch.device("cuda"), "bfloat16")
    assert found.rate == 156e12 and "data sheet" in found.origin


# ---- parts


@pytest.mark.skipif(backend_info()["cpu"] != "available", reason=f"the CPU kernels: {backend_info()['cpu']}")
def test_parts_add_up(tmp_path, tool):
    outcome = tool("benchmark", "parts", *SMALL, "--size", "64", "--output", tmp_path)
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "parts.json").read_text())["rows"]
    assert [row["which"] for row in rows] == ["inference", "train"]
    of_elsa = {"norms", *anatomy.ELSA_PARTS, "MLP"}
    for row in rows:
        assert sum(one["seconds"] for one in row["parts"]) == pytest.approx(row["seconds"])
        assert sum(one["share"] for one in row["parts"]) == pytest.approx(1)
        assert 0 <= row["unassigned"] < 1 and row["seconds_of_a_call"] > 0
        for stage in ("stage 1", "stage 2", "stage 3", "stage 4"):
            here = {one["part"]: one for one in row["parts"] if one["stage"] == stage}
            assert set(here) - {"residuals"} == (of_elsa if stage != "stage 4" else {"norms", "attention", "MLP"})
            assert sum(one["share_of_stage"] for one in here.values()) == pytest.approx(1)
            assert all(one["seconds"] > 0 for one in here.values())
        outside = {one["part"] for one in row["parts"] if not one["stage"]}
        update = {"optimizer and average", "clipping", "gradients kept"} if row["which"] == "train" else set()
        assert outside == {"patch embedding", "patch merging", "head and loss", "unassigned"} | update
    assert (tmp_path / "parts.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "operators",
    [
        "layer_norm:norms linear:projection mul:H conv2d:H gelu:H linear:logits attention:aggregation "
        "linear:output+projection bernoulli_:residuals mul:residuals add:residuals layer_norm:norms linear:MLP "
        "gelu:MLP linear:MLP add:residuals",
        "layer_norm:norms Linear:projection hadamard:H Linear:logits attention:aggregation Linear:output+projection "
        "layer_norm:norms MLP:MLP",
        "layer_norm:norms Linear:projection hadamard:H Linear:logits attention:aggregation Linear:output+projection "
        "add:residuals layer_norm:norms mul:MLP Linear:MLP",
    ],
    ids=["plain", "fused", "half"],
)
def test_parts_of_a_block_follow_from_the_order_of_its_operators(operators):
    ours = {"hadamard": "elsa::hadamard_forward", "attention": "elsa::attention_forward"}
    pairs = [pair.split(":") for pair in operators.split()]
    names = [ours.get(name, f"aten::{name}") for name, _ in pairs]
    expected = [{"H": "Hadamard convolution"}.get(part, part.replace("+", " ")) for _, part in pairs]
    assert anatomy.parts_of_block(names, is_elsa=True) == expected


def event(name, start, microseconds, *children, number=-1):
    made = SimpleNamespace(name=name, cpu_time_total=microseconds, device_time_total=microseconds / 2,
                           sequence_nr=number, cpu_children=list(children), cpu_parent=None,
                           time_range=SimpleNamespace(start=start))  # fmt: skip
    for child in children:
        child.cpu_parent = made
    return made


@pytest.mark.parametrize("gpu", [False, True])
def test_a_node_of_the_graph_belongs_to_the_operator_that_made_it(gpu):
    block = [event("aten::layer_norm", 1, 3, number=5), event("aten::linear", 2, 10, number=6),
             event("elsa::hadamard_forward", 3, 20, number=9)]  # fmt: skip
    forward = event("forward", 0, 50, event(f"{anatomy.MARK}block|stage 1|ELSA", 1, 40, *block))
    nodes = [
        event(f"{anatomy.NODE}HadamardBackward", 61, 40, number=9),
        event(f"{anatomy.NODE}ViewBackward0", 62, 2, number=8),  # of the linear layer
        event(f"{anatomy.NODE}AddmmBackward0", 63, 21, event("aten::add_", 63, 1), number=6),
        event(f"{anatomy.NODE}torch::autograd::AccumulateGrad", 64, 1),
    ]
    call = event("whole", 0, 200, forward, event("backward", 60, 100, *nodes), event("update", 170, 15))
    found = anatomy.assign([call, forward], gpu)
    expected = {
        ("stage 1", "norms"): 3, ("stage 1", "projection"): 10 + 2 + 20, ("stage 1", "Hadamard convolution"): 60,
        ("stage 1", "residuals"): 1, ("", "gradients kept"): 1, ("", "optimizer and average"): 15,
        ("", "unassigned"): 88,
    }  # fmt: skip
    found = {key: seconds for key, seconds in found.items() if seconds}
    assert found == pytest.approx({key: 1e-6 * value / (2 if gpu else 1) for key, value in expected.items()})


# ---- scaling


def test_scaling_goes_over_each_of_its_series(tmp_path, tool):
    outcome = tool("benchmark", "scaling", "elsa_swin_nano", "--against", "none", "--passes", "train",
                   "--sizes", "32,64", "--batches", "1,2", "--threads", "1", "--processes", "2", "--batch", "2",
                   "--rounds", "1", "--output", tmp_path)  # fmt: skip
    if len(os.sched_getaffinity(0)) < 2:
        assert outcome.code == 2 and "--processes 2: this process may use 1 cores" in outcome.err
        return
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "scaling.json").read_text())["rows"]
    places = {"size": [32, 64], "batch": [1, 2], "threads": [1], "processes": [2]}
    for series, at in places.items():
        assert [row["at"] for row in rows if row["series"] == series] == at
    assert rows[-1]["images_per_s"] == pytest.approx(2 * 2 / rows[-1]["wall"]["median"])
    assert rows[-1]["clock"] == "wall"
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


# ---- refusals


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model",), "name at least one network of ours: elsa_swin_nano"),
        (("model", "elsa_swin_tyni"), "NAME 'elsa_swin_tyni' is no model; did you mean elsa_swin_tiny?"),
        (("model", "resnet18"), "NAME 'resnet18' is timm's; name one of ours"),
        (("model", *SMALL, "--against", "resnet81"), "--against 'resnet81' is no model"),
        (("model", *SMALL, "--settings", "bset"), "'bset' is not one of plain, best, linear; did you mean best?"),
        (("model", *SMALL, "--passes", "eval"), "'eval' is not one of inference, train"),
        (("model", *SMALL, "--mode", "compile"), "'compile' is not one of eager, compiled, frozen; did you mean compi"),
        (("model", *SMALL, "--mode", "frozen"), "--mode frozen makes constants of the weights, which cannot train"),
        (("model", *SMALL, "--dtype", "float16"), "'float16' is not one of float32, bfloat16"),
        (("model", *SMALL, "--size", "8"), "must be at least 32, got 8"),
        (("model", *SMALL, "--size", "64x64x3"), "'64x64x3' is neither N nor HEIGHTxWIDTH"),
        (("model", *SMALL, "--size", "wide"), "'wide' is not a number"),
        (("model", *SMALL, "--threads", "512"), "--threads 512: this process may use"),
        (("model", *SMALL, "--rounds", "0"), "must be at least 1, got 0"),
        (("model", *SMALL, "--task", "detector"), "invalid choice: 'detector'"),
        (("model", *SMALL, "--device", "tpu"), "'tpu' is not one of cpu, cuda, cuda:N"),
        (("model", *SMALL, "--output", "/dev/null/x"), "/dev/null is a file"),
        (("model", "--markdown", "/no/such.json"), "--markdown /no/such.json: No such file"),
        (("model", "--markdown", __file__), "is no model.json of this tool"),
        (("parts", "swin_nino"), "NAME 'swin_nino' is no model; did you mean swin_nano?"),
        (("parts", "elsa_swin_nano", "--threads", "512"), "--threads 512: this process may use"),
        (("scaling", "elsa_swin_nano", "--sizes", "224,16"), "must be at least 32, got 16"),
        (("scaling", "elsa_swin_nano", "--processes", "512"), "--processes 512: this process may use"),
        (("scaling", "elsa_swin_nano", "--threads", "512"), "--threads 512: this process may use"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments, message, tool, tmp_path):
    output = () if "--output" in arguments else ("--output", tmp_path / "new")
    outcome = tool("benchmark", *arguments, *output)
    assert outcome.code == 2, outcome.err
    assert message in outcome.err and len(outcome.err.splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_threads_and_processes_say_nothing_on_a_gpu():
    with pytest.raises(ConfigError, match="--threads has no effect on --device cuda"):
        whole.check_threads((1,), torch.device("cuda"))
    whole.check_threads((0,), torch.device("cuda"))
