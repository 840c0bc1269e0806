"""Folders for model hubs: timm and our verbs load them, and the card tells what was measured."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from exports import export
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from elsa.core import ConfigError, TrainingError, sha256
from elsa.tools.tasks.exporting import hub

CLASSES = [f"class{label}" for label in range(4)]
SIZES = dict(embed_dim=8, num_heads=(1, 1, 2, 2), elsa_kernel=3, window_size=3)


@pytest.fixture
def trained(config, tmp_path):
    """(recipe, checkpoint, network) of a classifier of the striped images, with an evaluation beside it."""
    torch.manual_seed(0)
    model = timm.create_model("elsa_swin_nano", num_classes=4, img_size=32, **SIZES).eval().requires_grad_(False)
    checkpoint = tmp_path / "run" / "best.pt"
    checkpoint.parent.mkdir()
    torch.save({"state_dict": model.state_dict(), "classes": CLASSES}, checkpoint)
    results = {"metrics": {"top1": 76.25, "loss": 0.5}, "count": 20, "checkpoint": {"sha256": sha256(checkpoint)}}
    (checkpoint.parent / "results.json").write_text(json.dumps(results))
    return config, checkpoint, model


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def test_timm_loads_the_folder_by_its_name(trained, tmp_path, monkeypatch):
    folder = export(*trained[:2], tmp_path / "small", format="hub")
    names = ["README.md", "config.json", "config.yaml", "model.safetensors"]
    assert sorted(path.name for path in folder.iterdir()) == names
    expected = logits(trained[2])
    local = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert torch.equal(logits(local), expected)
    assert local.pretrained_cfg["label_names"] == CLASSES
    data = timm.data.resolve_data_config(local.pretrained_cfg, model=local)
    assert data["input_size"] == (3, 32, 32) and data["crop_pct"] == 0.9 and data["interpolation"] == "bicubic"

    asked = []

    def download(repository, filename=None, **options):
        asked.append(options.get("repo_id", repository))
        return str(folder / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", lambda *args, **given: download(
        *(args or (given.pop("repo_id"),)), **given))  # fmt: skip
    assert torch.equal(logits(timm.create_model("hf-hub:someone/small", pretrained=True)), expected)
    assert set(asked) == {"someone/small"}
    fewer = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=2)
    assert torch.equal(fewer.patch_embed.proj.weight, trained[2].patch_embed.proj.weight)


def test_the_card_tells_data_figures_and_how_to_load(trained, tmp_path):
    text = (export(*trained[:2], tmp_path / "small", format="hub") / "README.md").read_text()
    assert text.startswith("---\ntags:\n- image-classification\n")
    for part in ('timm.create_model("local-dir:small", pretrained=True)', "| top1 | 76.25 |", "| images | 20 |",
                 '"class0", "class1"', "## Licence", "## Limits", sha256(trained[1])):  # fmt: skip
        assert part in text
    (trained[1].parent / "results.json").write_text(
        '{"metrics": {"top1": 99}, "count": 1, "checkpoint": {"sha256": 1}}'
    )
    text = (export(*trained[:2], tmp_path / "other", format="hub") / "README.md").read_text()
    assert "99" not in text.partition("## Figures")[2].partition("##")[0] and "Not measured" in text


def test_evaluate_reads_a_folder(trained, tool, tmp_path):
    folder = export(*trained[:2], tmp_path / "small", format="hub", accuracy=True)
    outcome = tool("evaluate", folder, "--output", tmp_path / "eval")
    assert outcome.code == 0, outcome.err
    top1 = json.loads((tmp_path / "eval" / "results.json").read_text())["metrics"]["top1"]
    assert f"| top1 | {top1:.4g} |" in (folder / "README.md").read_text()


def test_what_lies_there_stays(trained, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty"):
        export(*trained[:2], folder, format="hub")
    with pytest.raises(ConfigError, match="holds other things than an export wrote"):
        export(*trained[:2], folder, format="hub", overwrite=True)
    assert [path.name for path in folder.iterdir()] == ["mine"]
    (folder / "mine").unlink()
    export(*trained[:2], folder, format="hub")
    export(*trained[:2], folder, format="hub", overwrite=True)
    assert (folder / "model.safetensors").is_file()


def test_a_folder_that_timm_loads_otherwise_is_not_kept(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "save_config_for_hf", broken(hub.save_config_for_hf))
    with pytest.raises(TrainingError, match="what timm loads of the folder computes something else"):
        export(*trained[:2], tmp_path / "small", format="hub")
    assert not (tmp_path / "small").exists()


def broken(save):
    """Forgets an argument that changes what is computed, but no tensor's shape."""

    def call(model, path, **options):
        save(model, path, **options)
        with open(path) as stream:
            config = json.load(stream)
        config["model_args"]["gamma"] = 2
        with open(path, "w") as stream:
            json.dump(config, stream)

    return call


def test_a_segmentor_is_a_folder_of_recipe_and_weights(segmentor, tool, plain_norms, tmp_path):
    init_default_scope("mmseg")
    torch.manual_seed(0)
    model = MODELS.build(plain_norms(Config.fromfile(segmentor).model))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    folder = export(segmentor, tmp_path / "weights.pth", tmp_path / "maps", format="hub")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.py", "model.safetensors"]
    found = {}
    for name, named in (("folder", [folder]), ("file", [segmentor, tmp_path / "weights.pth"])):
        outcome = tool("evaluate", *named, "--output", tmp_path / name, "--scales", "single")
        assert outcome.code == 0, outcome.err
        found[name] = json.loads((tmp_path / name / "results.json").read_text())["metrics"]
    assert found["folder"] == found["file"]
    assert "elsa evaluate maps" in (folder / "README.md").read_text()
