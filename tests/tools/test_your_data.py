"""The commands of docs/your-data.md, one after the other, on small data that look as the page says."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
from PIL import Image

SMALL = ["MODEL.KWARGS={embed_dim: 8, num_heads: [1, 1, 2, 2], elsa_kernel: 3}"]
SHORT = {  # recipe → what makes a training of it seconds
    "photos.yaml": ["TRAIN.EPOCHS=2", "TRAIN.WARMUP_EPOCHS=1", "DATA.IMG_SIZE=32"],
    "tuned.yaml": ["TRAIN.EPOCHS=1", "TRAIN.WARMUP_EPOCHS=0", "DATA.IMG_SIZE=32"],
    "parts.py": ["train_cfg.max_epochs=1"],
    "fields.py": ["train_cfg.max_iters=2", "train_cfg.val_interval=2"],
}
RANDOM = np.random.default_rng(0)


def photograph(path, colour, size=(40, 32)):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = RANDOM.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise + np.array(colour, np.uint8)).save(path)


@pytest.fixture
def data(tmp_path):
    """photos, tables, animals.csv, parts and fields."""
    kinds = {"cat": (150, 0, 0), "dog": (0, 150, 0), "owl": (0, 0, 150)}
    rows = []
    for (name, colour), count in zip(kinds.items(), (20, 10, 5), strict=True):
        for number in range(count):
            photograph(tmp_path / "photos" / name / f"{number}.png", colour)
            rows.append(f"{number},photos/{name}/{number}.png,{name}")
    (tmp_path / "animals.csv").write_text("\n".join(["number,photo,species", *rows]))
    for split, some in (("train", rows[::2]), ("val", rows[1::2])):
        (tmp_path / "tables").mkdir(exist_ok=True)
        lines = [row.partition(",")[2] for row in some]
        (tmp_path / "tables" / f"{split}.csv").write_text("\n".join(["image,label", *lines]))
    (tmp_path / "tables/photos").symlink_to(tmp_path / "photos")
    images, objects = [], []
    for number in range(8):
        photograph(tmp_path / "parts/images" / f"{number}.png", (0, 0, 0))
        images.append(dict(id=number, file_name=f"{number}.png", width=40, height=32))
        for kind in (3, 7, 9):
            box = [4 + kind, 5, 20, 18]
            objects.append(dict(id=len(objects) + 1, image_id=number, category_id=kind, bbox=box, area=360, iscrowd=0))
    names = {3: "bolt", 7: "nut", 9: "washer", 1: "part"}
    categories = [dict(id=number, name=name) for number, name in names.items()]
    content = dict(images=images, annotations=objects, categories=categories)
    (tmp_path / "parts/all.json").write_text(json.dumps(content))
    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0]], np.uint8)
    for number in range(10):
        photograph(tmp_path / "fields/images" / f"{number}.jpg", (0, 0, 0))
        labels = np.zeros((32, 40), np.uint8)
        labels[5:20, 5:30], labels[18:30, number : number + 10] = 1, 2
        (tmp_path / "fields/masks").mkdir(exist_ok=True)
        Image.fromarray(colours[labels]).save(tmp_path / "fields/masks" / f"{number}.png")
    return tmp_path


def commands(root):
    blocks = re.findall(r"```bash\n(.*?)```", (root / "docs/your-data.md").read_text(), re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_page_s_commands(tool, root, data, monkeypatch):
    monkeypatch.chdir(data)
    done = commands(root)
    assert {command[1] for command in done} == {"new", "check_data", "doctor", "train", "evaluate", "predict"}
    for _, verb, *arguments in done:
        small = SHORT[arguments[0]] if verb == "train" else []
        outcome = tool(verb, *arguments, *(["--set", *small] if small else []))
        is_looked_at = verb == "doctor"  # a machine may have problems that the data have not
        assert is_looked_at or outcome.code == 0, (verb, arguments, outcome.err)
        assert not is_looked_at or re.search(r"(?m)^ok +data ", outcome.out), outcome.out
    assert json.loads((data / "runs/photos/evaluation/results.json").read_text())["count"] == 7
    metrics = json.loads((data / "runs/parts/evaluation/results.json").read_text())["metrics"]
    assert "coco/bbox_mAP" in metrics and not [name for name in metrics if "segm" in name]
    metrics = json.loads((data / "runs/fields/evaluation/results.json").read_text())["metrics"]
    assert "single_scale/mIoU" in metrics
    said = json.loads((data / "runs/parts/predictions/predictions.json").read_text())
    assert [(entry["id"], entry["name"]) for entry in said["categories"]] == [(3, "bolt"), (7, "nut"), (9, "washer")]
    for picture in ("photos/predictions/predictions", "parts/evaluation/predictions", "fields/evaluation/predictions"):
        assert Image.open(data / "runs" / f"{picture}.png").size > (100, 100)
