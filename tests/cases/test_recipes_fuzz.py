"""Every key of the two digits recipes with every kind of wrong value: read, or refused in a line."""

from __future__ import annotations

import gc
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from torch import nn

from elsa.core import UserError
from elsa.data import write_digits_ade, write_digits_coco
from elsa.data.mm.loaders import eval_loader, train_loader
from elsa.engine import Runtime
from elsa.tools.tasks import detection, segmentation
from elsa.tools.tasks.mm import recipe as recipes
from elsa.tools.tasks.mm.evaluation import Metric, check_metric
from elsa.tools.tasks.mm.keys import READ
from elsa.tools.tasks.mm.optim import Schedules, build_optimizer
from elsa.tools.tasks.mm.prediction import known_classes
from elsa.tools.tasks.mm.session import build_model, check_classes, draw_embedded, mistakes_named, prepare

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "detection": ROOT / "configs/detection/mask_rcnn_elsa_swin_nano_digits.py",
    "segmentation": ROOT / "configs/segmentation/upernet_elsa_swin_nano_digits.py",
}
TASKS = {"detection": detection, "segmentation": segmentation}
RUNTIME = Runtime(0, 1, torch.device("cpu"))
WORDS = st.sampled_from(
    ["", " ", "None", "é", "数字", "a\0b", "\ud800", "x" * 5000, "../..", "{{fileDirname}}", "1e-3", "True"]
)
NUMBERS = st.sampled_from([0, -1, 1, 10**9, 10**30, -(10**30), 0.0, -0.5, 0.3, 1.5, 1e300, float("nan"), float("inf")])
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS)
VALUES = st.one_of(
    LEAVES,
    st.lists(LEAVES, max_size=3),
    st.lists(LEAVES, max_size=3).map(tuple),
    st.dictionaries(st.sampled_from(["type", "a", "é", "lr", 3]), LEAVES, max_size=2),
    st.just([]), st.just({}), st.just([[[]]]), st.just({"type": "NoSuch"}), st.just(object()), st.just(len),
)  # fmt: skip
CHANGES = st.sampled_from(["value", "value", "value", "value", "drop", "misspell", "nest"])


@cache
def fresh(task):
    return Config.fromfile(FILES[task])


def paths(node, above=()):
    """(key, …, key) of every entry of nested containers."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield (*above, key)
        if isinstance(value, (dict, list, tuple)):
            yield from paths(value, (*above, key))


@cache
def places(task):
    return [path for path in paths(fresh(task).to_dict()) if path[0] in READ]


def changed(task, path, change, value):
    """The recipe of a task with one entry changed, as a file could say it."""
    *parents, last = path
    root = node = fresh(task).to_dict()
    for part in parents:
        if isinstance(node[part], tuple):
            node[part] = list(node[part])
        node = node[part]
    if change == "drop":
        del node[last]
    elif change == "misspell" and isinstance(node, dict):
        node[last[:-1] + "z"] = node.pop(last)
    else:
        node[last] = [node[last]] if change == "nest" else value
    return Config(root, format_python_code=False)  # formatting takes most of the time


class Small(nn.Module):
    """Parameters with the names that the recipes' patterns are about."""

    def __init__(self):
        super().__init__()
        self.norm, self.patch_embed, self.conv_seg = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.layers = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))


def use(config, task):
    """What is cheap of all that a training, an evaluation and a prediction do with a recipe."""
    recipe = recipes._recipe(config, "fuzzed.py", [])
    stored = recipes.stored(recipe.config)
    assert recipe.differences(dict(recipe.values)) == [] or "nan" in repr(stored)
    try:
        compile(recipe.text, "config.py", "exec")
    except SyntaxError as error:  # the formatting that was left out refuses it
        raise UserError("no file can hold it") from error
    config = recipe.config
    prepare(config)
    draw_embedded(Config({**config.to_dict(), "embedded": None}), RUNTIME)
    check_classes(config, ["a"] * (10 + (task == "segmentation")))
    module, options = TASKS[task], SimpleNamespace(per_class=True, scales="both")
    check_metric(config.val_evaluator, config.run.metric, Metric((), module.known_numbers), known_classes(config))
    with mistakes_named("tta_pipeline"):
        (module.all_columns if task == "detection" else module.scales)(config, options)
    with mistakes_named("optim_wrapper"):
        optimizer = build_optimizer(Small(), config.optim_wrapper, "ddp")
    with mistakes_named("param_scheduler"):
        Schedules(optimizer, config.param_scheduler, 10)
    return config


EXAMPLES = settings(max_examples=1000, derandomize=True, deadline=None, database=None,
                    suppress_health_check=list(HealthCheck))  # fmt: skip


@pytest.mark.parametrize("task", FILES)
def test_every_key_with_every_value(task):
    outcomes = {"taken": 0, "refused": 0}

    @EXAMPLES
    @given(st.sampled_from(places(task)), CHANGES, VALUES)
    def fuzz(name, change, value):
        try:
            use(changed(task, name, change, value), task)
            outcomes["taken"] += 1
        except UserError as error:
            outcomes["refused"] += 1
            assert "\n" not in str(error) and len(str(error)) < 1000, str(error)

    fuzz()
    assert min(outcomes.values()) > 100, outcomes  # neither all refused nor all taken


# ---- what is built -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """{task: tiny data in its layout}"""
    folder = tmp_path_factory.mktemp("data")
    gc.freeze()  # mmengine collects garbage whenever it opens a data set, which takes most of the time
    yield {
        "detection": write_digits_coco(folder / "coco", 2, 1),
        "segmentation": write_digits_ade(folder / "ade", 2, 1),
    }
    gc.unfreeze()


@pytest.mark.parametrize("task", FILES)
def test_data_sets_of_any_values_are_built_or_refused(task, data):
    @settings(EXAMPLES, max_examples=250)
    @given(st.sampled_from([path for path in places(task) if "dataset" in path]), CHANGES, VALUES)
    def fuzz(path, change, value):
        config = changed(task, path, change, value)
        try:
            recipe = recipes._recipe(config, "fuzzed.py", [f"data_root={data[task]}"]).config
            prepare(recipe)
            with mistakes_named("train_dataloader"):
                train_loader(recipe.train_dataloader, (2, 1), 0, 0, 1, 0).loader.dataset[0, 0]
            with mistakes_named("val_dataloader"):
                next(iter(eval_loader(recipe.val_dataloader, 0, 1).dataset))
        except UserError as error:
            assert "\n" not in str(error), str(error)

    fuzz()


@pytest.mark.parametrize("task", FILES)
def test_models_of_any_values_are_built_or_refused(task):
    built = []

    @settings(EXAMPLES, max_examples=100)
    @given(st.sampled_from([path for path in places(task) if path[0] == "model"]), CHANGES, VALUES)
    def fuzz(path, change, value):
        config = changed(task, path, change, value)
        try:
            recipe = recipes._recipe(config, "fuzzed.py", ["model.backbone.pretrained=None"]).config
            prepare(recipe)
            with torch.device("meta"):  # nothing is allocated
                built.append(build_model(recipe, RUNTIME))
        except UserError as error:
            assert "\n" not in str(error), str(error)

    fuzz()
    assert 8 < len(built) < 98


# ---- --set ---------------------------------------------------------------------------------------------------------

ODD = ["a", "=1", "a..b=1", ".=1", "model.=1", "model..type=X", "run.log_every=", "run.log_every= 3 ",
       "run.log_every=3=4",
       "model.backbone.out_indices.9=1", "model.backbone.out_indices.-1=1", "model.backbone.out_indices.²=1",
       "model.type.x=1", "run.é=1", "run.log_every=" + "(" * 3000, "run.log_every=" + "9" * 5000, "pretrained_ignore=x",
       "run={[]: 1}", "run={1: 2}", "run=[1", "data_root=", "data_root=3", "data_root=None", "data_root.x=1",
       "__class__=1",
       "model.__class__=1", "_cfg_dict=1", "keys=1", "model.keys=1", "embedded=3", "embedded={}", "custom_imports=None",
       "default_scope=mmcv", "model.backbone.model_args.a.b.c=1", "train_cfg={'max_epochs': 3}", "val_dataloader=null",
       "param_scheduler.0=None", "param_scheduler=[]", "train_dataloader.dataset.dataset.pipeline.2.scale.0=x",
       "run.metric=['a']", "global_batch=True", "global_batch=1e3", "global_batch=０",
       "randomness.seed=0x10"]  # fmt: skip


@pytest.mark.parametrize("task", FILES)
def test_any_override_is_applied_or_refused(task):
    names = [".".join(map(str, path)) for path in places(task)]
    texts = st.one_of(
        st.sampled_from(["", "x", "[", "{'a': 1}", "None", "-1", "(1, 2)", "1e9", "'"]), st.text(max_size=8)
    )
    mutated = st.tuples(st.sampled_from(names), st.integers(0, 60), st.sampled_from(["", ".", "x", "é", " ", "0"])).map(
        lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] + 1 :]
    )
    override = st.tuples(st.one_of(st.sampled_from(names), mutated), texts).map("=".join)

    @settings(EXAMPLES, max_examples=500)
    @given(st.lists(st.one_of(st.sampled_from(ODD), override), min_size=1, max_size=3))
    def fuzz(overrides):
        try:
            recipes._recipe(Config(fresh(task).to_dict(), format_python_code=False), "fuzzed.py", overrides)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500, str(error)

    fuzz()
    for one in ODD:
        try:
            recipes._recipe(Config(fresh(task).to_dict(), format_python_code=False), "fuzzed.py", [one])
        except UserError as error:
            assert "\n" not in str(error), one


def test_of_a_key_given_twice_the_last_counts():
    config = Config(fresh("detection").to_dict(), format_python_code=False)
    assert recipes._recipe(config, "x.py", ["run.log_every=3", "run.log_every=4"]).values["run.log_every"] == 4
