"""Recipes of detection and segmentation run nothing that no user wrote as code; whole models to start from."""

from __future__ import annotations

import ast
import json
import pickle

import numpy as np
import pytest
import torch
from mmengine.runner.checkpoint import CheckpointLoader

from elsa.core import ConfigError, DataError, UserError
from elsa.engine import Runtime
from elsa.tools.tasks.mm.recipe import read_recipe, restore_recipe, stored
from elsa.tools.tasks.mm.session import build_model, mistakes_named, prepare
from elsa.tools.tasks.mm.start import initialise

RECIPES = {
    "detection": "configs/detection/mask_rcnn_elsa_swin_nano_digits.py",
    "segmentation": "configs/segmentation/upernet_elsa_swin_nano_digits.py",
}


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def sprung(tmp_path):
    return tmp_path / "sprung"


@pytest.fixture(params=RECIPES)
def recipe(request, root):
    return root / RECIPES[request.param]


def alone() -> Runtime:
    return Runtime(0, 1, torch.device("cpu"))


# ---- files hold values ---------------------------------------------------------------------------------------------

TRAPPED_WEIGHTS = {
    "neck": "model = dict(neck=dict(init_cfg=dict(type='Pretrained', checkpoint='{file}')))",
    "head": "model = dict(rpn_head=dict(init_cfg=dict(type='Pretrained', checkpoint='{file}')))",
    "model": "model = dict(init_cfg=dict(type='Pretrained', checkpoint='{file}'))",
    "backbone": "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='{file}')))",
    "whole": "pretrained = '{file}'",
}


@pytest.mark.parametrize("where", TRAPPED_WEIGHTS)
def test_weights_anywhere_in_a_model_run_nothing(root, tmp_path, sprung, where):
    torch.save({"state_dict": {}, "meta": Trap(sprung)}, tmp_path / "trap.pth")
    path = tmp_path / "recipe.py"
    line = TRAPPED_WEIGHTS[where].format(file=tmp_path / "trap.pth")
    path.write_text(f"_base_ = '{root / RECIPES['detection']}'\nmodel = dict(backbone=dict(pretrained=None))\n{line}\n")
    if where == "backbone":
        path.write_text(path.read_text().replace("(pretrained=None)", "()"))
    config = read_recipe(path, ["model.backbone.pretrained=None"]).config
    prepare(config)
    model, _ = build_model(config, alone())
    with pytest.raises(UserError, match=r"trap.pth holds pickled code \(\S+open\), .* not executed"):
        initialise(model, config, list("0123456789"), False)
    assert not sprung.exists()


@pytest.mark.parametrize(
    "address", ["https://x/y.pth", "torchvision://resnet50", "open-mmlab://resnet50", "modelzoo://x"]
)
def test_addresses_of_weights_are_not_followed(recipe, address):
    read_recipe(recipe, [])
    with pytest.raises(UserError, match="download it, and name the file"):
        CheckpointLoader.load_checkpoint(address)


@pytest.mark.parametrize("ending", ["pkl", "pickle"])
def test_pickles_are_refused_by_name_and_by_reader(root, tmp_path, sprung, ending):
    import mmengine

    trap = tmp_path / f"trap.{ending}"
    trap.write_bytes(pickle.dumps(Trap(sprung)))
    key = "train_dataloader.dataset.dataset.ann_file"
    with pytest.raises(
        ConfigError, match=rf"{key} '.*trap.{ending}' is a pickle, which could run anything: convert it"
    ):
        read_recipe(root / RECIPES["detection"], [f"{key}={trap}"])
    with pytest.raises(DataError, match="a pickle could run anything, and was not read"):
        mmengine.load(trap)
    assert not sprung.exists()


def test_yaml_makes_values_alone(recipe, tmp_path, sprung):
    import mmengine

    read_recipe(recipe, [])
    (tmp_path / "trap.yaml").write_text(f"!!python/object/apply:builtins.open ['{sprung}', w]")
    with pytest.raises(DataError, match="more than values"):
        mmengine.load(tmp_path / "trap.yaml")
    (tmp_path / "plain.yaml").write_text("a: [1, 2]")
    assert mmengine.load(tmp_path / "plain.yaml") == {"a": [1, 2]}
    assert not sprung.exists()


def test_a_base_in_yaml_holds_values_alone(root, tmp_path, sprung):
    (tmp_path / "base.yaml").write_text(f"x: !!python/object/apply:builtins.open ['{sprung}', w]")
    (tmp_path / "recipe.py").write_text("_base_ = 'base.yaml'\n")
    with pytest.raises(UserError, match="more than values"):
        read_recipe(tmp_path / "recipe.py", [])
    assert not sprung.exists()


def test_arrays_of_objects_are_not_read(root, tmp_path, sprung):
    """mmseg reads class weights from .npy files."""
    np.save(tmp_path / "trap.npy", np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    key = "model.decode_head.loss_decode"
    loss = f"{{'type': 'CrossEntropyLoss', 'class_weight': '{tmp_path / 'trap.npy'}'}}"
    config = read_recipe(root / RECIPES["segmentation"], [f"{key}={loss}"]).config
    prepare(config)
    with pytest.raises(ConfigError, match=r"^model: .*allow_pickle=False"):
        build_model(config, alone())
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("train_dataloader = dict(dataset=dict(dataset=dict(type='OpenImagesChallengeDataset')))", "reads pickles"),
        ("train_dataloader = dict(dataset=dict(dataset=dict(proposal_file='p.pkl')))", "proposal_file 'p.pkl'"),
        ("test_pipeline = [dict(type='LoadBiomedicalImageFromFile', decode_backend='pickle')]\n"
         "test_dataloader = dict(dataset=dict(pipeline=test_pipeline))", "decode_backend 'pickle' reads pickles"),
    ],
)  # fmt: skip
def test_what_reads_pickles_by_itself_is_refused(root, tmp_path, line, part):
    (tmp_path / "recipe.py").write_text(f"_base_ = '{root / RECIPES['detection']}'\n{line}\n")
    with pytest.raises(ConfigError, match=part):
        read_recipe(tmp_path / "recipe.py", [])


# ---- the recipe that a checkpoint holds ----------------------------------------------------------------------------


def test_a_stored_recipe_is_the_recipe(recipe, tmp_path):
    before = read_recipe(recipe, ["run.log_every=7", "embedded=None"])
    torch.save({"recipe": stored(before.config)}, tmp_path / "last.pt")
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    after = restore_recipe(content, "last.pt", [])
    assert after.values == before.values
    assert after.config.to_dict() == before.config.to_dict()  # tuples are tuples
    assert restore_recipe(content, "last.pt", ["run.log_every=8"]).values["run.log_every"] == 8


def test_a_stored_recipe_draws_nothing(recipe):
    content = {"recipe": stored(read_recipe(recipe, []).config)}
    assert content["recipe"]["embedded"]
    assert restore_recipe(content, "last.pt", []).config.embedded is None
    assert restore_recipe(content, "digits.safetensors", [], ours=True).config.embedded == content["recipe"]["embedded"]


def changed(recipe, change):
    values = json.loads(json.dumps(stored(read_recipe(recipe, []).config)))
    change(values)
    return {"recipe": values}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda r: r["model"].update(type="subprocess.Popen", args="touch x"), "model.type 'subprocess.Popen'"),
        (lambda r: r["model"].update(type="mmengine.utils.package_utils.call_command"), "could run anything"),
        (lambda r: r["model"].update(_scope_="setup"), "model._scope_ 'setup'"),
        (lambda r: r.update(default_scope="antigravity"), "default_scope 'antigravity'"),
        (lambda r: r["val_evaluator"].update(type=["a"]), r"val_evaluator.type \['a'\]"),
        (lambda r: r["model"].update(nms=dict(type="__import__('os').system('touch x')")), "model.nms.type"),
        (lambda r: r.update(custom_imports=dict(imports=["antigravity"])), "imports 'antigravity'"),
        (lambda r: r.update(custom_imports=dict(imports="os")), "imports 'os'"),
        (lambda r: r.update(custom_imports=["os"]), "imports 'os'"),
        (lambda r: r["test_evaluator"].update(outfile_prefix="/home/me/x"), "test_evaluator.outfile_prefix"),
        (lambda r: r["model"].update(x=object()), "no plain value"),
    ],
)  # fmt: skip
def test_a_stored_recipe_runs_nothing(recipe, change, part):
    with pytest.raises(ConfigError, match=part) as caught:
        restore_recipe(changed(recipe, change), "evil.pt", [])
    assert str(caught.value).startswith("evil.pt: its recipe ")
    assert str(caught.value).endswith("name CONFIG")


def test_names_of_a_stored_recipe_import_nothing(recipe, monkeypatch):
    """A registry takes a name that it does not know for a module's."""
    import mmengine.registry.registry as registry

    monkeypatch.setattr(registry, "get_object_from_string", registry.get_object_from_string)  # put back in the end
    config = restore_recipe(changed(recipe, lambda r: r["model"].update(type="antigravity")), "evil.pt", []).config
    prepare(config)
    with pytest.raises(ConfigError, match="antigravity"):
        build_model(config, alone())
    import sys

    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("content", [{}, {"recipe": None}, {"recipe": "import os"}, {"config": {"text": "import os"}}])
def test_a_checkpoint_without_a_recipe(recipe, content):
    read_recipe(recipe, [])
    with pytest.raises(ConfigError, match=r"last.pt holds no recipe; name CONFIG before it"):
        restore_recipe(content, "last.pt", [])


# ---- a whole model to start from -----------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path):
    """``whole(recipe, classes, **settings)``: a model of the recipe, initialised for ten or so classes, from weights of
    its own kind that were learned of ``classes``; the model and the weights."""

    def call(recipe, classes, mine, **settings):
        config = read_recipe(recipe, ["model.backbone.pretrained=None"]).config
        prepare(config)
        theirs, _ = build_model(config, alone())
        weights = {name: torch.full_like(value, 0.5) for name, value in theirs.state_dict().items()}
        torch.save({"state_dict": weights, "meta": {"dataset_meta": {"classes": classes}}}, tmp_path / "whole.pth")
        count = len(mine)
        for head in ("roi_head.bbox_head", "roi_head.mask_head", "decode_head", "auxiliary_head"):
            node = config.model
            for part in head.split("."):
                node = node.get(part, {})
            if "num_classes" in node:
                node.num_classes = count
            if (node.get("loss_decode") or {}).get("class_weight"):
                node.loss_decode.class_weight = [1.0] * count
        config.pretrained = str(tmp_path / "whole.pth")
        config.pretrained_ignore = settings.get("ignore", [])
        model, _ = build_model(config, alone())
        initialise(model, config, mine, False)
        return model

    return call


def floating(model):
    return [(name, value) for name, value in model.state_dict().items() if value.is_floating_point()]


DIGITS = [*"0123456789"]
HEADS = {
    "detection": ["roi_head.bbox_head.fc_cls.*", "roi_head.bbox_head.fc_reg.*", "roi_head.mask_head.conv_logits.*"],
    "segmentation": ["decode_head.conv_seg.*", "auxiliary_head.conv_seg.*"],
}
CLASSES = {"detection": DIGITS, "segmentation": [*DIGITS, "texture"]}


@pytest.mark.parametrize("task", RECIPES)
@pytest.mark.parametrize("mine", [["bolt", "nut", "washer"], "renamed"])
def test_what_was_learned_of_other_classes_is_named_and_left_out(root, whole, task, mine):
    theirs = CLASSES[task]
    mine = [f"my {name}" for name in theirs] if mine == "renamed" else mine
    with pytest.raises(ConfigError) as caught:
        whole(root / RECIPES[task], theirs, mine)
    said = str(caught.value)
    assert f"has {len(theirs)} classes (0, 1, 2, …), the data {len(mine)} ({mine[0]}" in said
    patterns = ast.literal_eval(said.partition("pretrained_ignore = ")[2])
    assert sorted(patterns) == sorted(HEADS[task])
    model = whole(root / RECIPES[task], theirs, mine, ignore=patterns)
    for name, value in floating(model):
        kept = any(name.startswith(pattern[:-1]) for pattern in patterns)
        assert kept != bool((value == 0.5).all()), name


@pytest.mark.parametrize("task", RECIPES)
def test_the_same_classes_load_whole(root, whole, task):
    model = whole(root / RECIPES[task], CLASSES[task], CLASSES[task])
    assert all((value == 0.5).all() for _, value in floating(model))


def test_patterns_must_match_and_need_the_file(root, whole):
    with pytest.raises(UserError, match=r"'roi_heads\.\*' matches no tensor"):
        whole(root / RECIPES["detection"], DIGITS, DIGITS, ignore=["roi_heads.*"])
    with pytest.raises(ConfigError, match="pretrained_ignore has no effect without pretrained"):
        read_recipe(root / RECIPES["detection"], ["pretrained_ignore=['a.*']"])


def test_load_from_is_refused_with_what_does_its_work(recipe):
    with pytest.raises(ConfigError, match=r"--set load_from: .*pretrained starts from a whole detector or segmentor"):
        read_recipe(recipe, ["load_from=x.pth"])


# ---- values --------------------------------------------------------------------------------------------------------


def test_whatever_a_builder_raises_is_one_line():
    for error in (AttributeError("a\nb"), ZeroDivisionError("x"), KeyError("k"), RuntimeError(""), OSError(36, "long")):
        with pytest.raises(ConfigError) as caught, mistakes_named("val_dataloader"):
            raise error
        assert str(caught.value).startswith("val_dataloader: ") and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_named(root, tmp_path):
    (tmp_path / "a.py").write_text(f"_base_ = '{root / RECIPES['detection']}'\n", encoding="utf-8-sig")
    with pytest.raises(ConfigError, match=r"a.py begins with a byte-order mark; save it as UTF-8 without"):
        read_recipe(tmp_path / "a.py", [])


@pytest.mark.parametrize("name", ["val_dataloader", "val_evaluator", "test_dataloader", "model", "train_cfg"])
def test_a_part_that_is_none(root, tmp_path, name):
    (tmp_path / "a.py").write_text(f"_base_ = '{root / RECIPES['detection']}'\n{name} = None\n")
    with pytest.raises(ConfigError, match=rf"a.py lacks {name}"):
        read_recipe(tmp_path / "a.py", [])
