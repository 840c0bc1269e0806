"""mmdet's and mmseg's own inferencers on our recipes and checkpoints, imported in any order."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

RECIPES = {
    "detection": "configs/detection/mask_rcnn_elsa_swin_nano_digits.py",
    "segmentation": "configs/segmentation/upernet_elsa_swin_nano_digits.py",
}
# Ours as saved by a run, made in the folder as ``last.pt`` and ``config.py``.
MAKE = """
import sys, torch
from pathlib import Path
from elsa.engine import Runtime
from elsa.tools.tasks.mm.recipe import read_recipe, stored
from elsa.tools.tasks.mm.session import build_model, prepare
recipe = read_recipe(Path(sys.argv[1]), ["model.backbone.pretrained=None", "data_root=nowhere"])
prepare(recipe.config)
model, _ = build_model(recipe.config, Runtime(0, 1, torch.device("cpu")))
names = [f"my {name}" for name in recipe.config.test_dataloader.dataset.metainfo.classes]
meta = {"dataset_meta": {"classes": names, "palette": [[9 * i, 0, 0] for i in range(len(names))]}}
torch.save({"state_dict": model.state_dict(), "meta": meta, "recipe": stored(recipe.config)}, "last.pt")
Path("config.py").write_text(recipe.text)
"""
FIRST = {"elsa first": "import elsa.models.mm", "mm first": ""}
DETECT = """
from mmdet.apis import DetInferencer, inference_detector, init_detector
model = init_detector("config.py", "last.pt", device="cpu")
print(model.dataset_meta["classes"][:2], type(inference_detector(model, "a.png").pred_instances).__name__)
found = DetInferencer("config.py", "last.pt", device="cpu", show_progress=False)("a.png", out_dir="out")
print(sorted(found["predictions"][0]))
"""
SEGMENT = """
from mmseg.apis import MMSegInferencer, inference_model, init_model
model = init_model("config.py", "last.pt", device="cpu")
print(model.dataset_meta["classes"][:2], inference_model(model, "a.png").pred_sem_seg.data.shape)
inferencer = MMSegInferencer("config.py", "last.pt", device="cpu")
print(inferencer("a.png", out_dir="out", show=False)["predictions"].shape, inferencer.visualizer.dataset_meta["palette"][1])
"""  # noqa: E501


def run(folder, code, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def saved(root, tmp_path_factory):
    """{task: a folder with last.pt, config.py and an image}"""
    folders = {}
    for task, recipe in RECIPES.items():
        folders[task] = tmp_path_factory.mktemp(task)
        run(folders[task], MAKE, root / recipe)
        Image.new("RGB", (60, 40), (90, 90, 90)).save(folders[task] / "a.png")
    return folders


def site_hook():
    return any(
        "OperatorsOfElsa" in type(finder).__name__ or "OperatorsOfElsa" in repr(finder) for finder in sys.meta_path
    )


@pytest.fixture(params=FIRST)
def first(request):
    if request.param == "mm first" and not site_hook():
        pytest.skip("elsa_mm.pth is not installed: bash scripts/setup.sh --dense")
    return FIRST[request.param]


def test_detection(saved, first):
    said = run(saved["detection"], f"{first}\n{DETECT}")
    assert "['my 0', 'my 1'] InstanceData" in said
    assert "['bboxes', 'labels', 'masks', 'scores']" in said
    assert (saved["detection"] / "out/vis/a.png").exists()


def test_segmentation(saved, first):
    said = run(saved["segmentation"], f"{first}\n{SEGMENT}")
    assert "['my 0', 'my 1'] torch.Size([1, 40, 60])" in said
    assert "(40, 60) [9, 0, 0]" in said


def test_what_is_installed_imports_nothing_and_finds_one_module(root):
    line = (root / "models/mm/elsa_mm.pth").read_text()
    assert line.startswith("import ") and line.count("\n") == 1
    code = f"import sys; before = set(sys.modules); {line.strip()}; print(set(sys.modules) - before)\n"
    code += "for name in ('mmcv._ex', 'mmcv._ext2', 'json'): assert sys.meta_path[-1].find_spec(name) is None"
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_our_checkpoint_names_its_classes_where_mm_looks(saved):
    content = torch.load(saved["detection"] / "last.pt", weights_only=True)
    assert content["meta"]["dataset_meta"]["classes"][9] == "my 9"
