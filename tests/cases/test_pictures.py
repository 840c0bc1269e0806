"""Pictures with names and shapes as users have them: drawn as they are, nothing raised, nothing on the terminal."""

from __future__ import annotations

import json
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from elsa.core import write_json
from elsa.models.mm import operators
from elsa.tools.tasks import pictures

operators.provide()

from mmdet.structures import DetDataSample  # noqa: E402
from mmengine.structures import InstanceData, PixelData  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

from elsa.data.mm import maps  # noqa: E402, F401  registers the data sets
from elsa.tools.tasks.mm.pictures import MapDrawing, MapPredictions, ObjectDrawing, PicturesOfTest  # noqa: E402

NAMES = {
    "dollars": "price_$5_to_$9",
    "one dollar": "a$b",
    "mathematics": r"$\frac{1}{",
    "underscore": "_private",
    "Chinese": "汉字标签",
    "emoji": "🐈",
    "broken encoding": os.fsdecode(b"caf\xe9"),
    "lone surrogate": "a\ud800b",
    "newline": "two\nlines\tand\0zero",
    "long": "n" * 4000,
    "right to left": "قطة",
    "empty": "",
    "percent": "100%s {0} \\n",
}


@pytest.fixture(autouse=True)
def silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture
def drawn(monkeypatch):
    """The texts of the figures that are saved, which are drawn all the same."""
    texts, save = [], pictures.save_figure

    def call(figure, path):
        texts.extend(text for text in figure.findobj(Text) if text.get_text().strip())
        save(figure, path)

    monkeypatch.setattr(pictures, "save_figure", call)
    return texts


def literal(drawn):
    return [text.get_text() for text in drawn if not text.get_parse_math()]


@pytest.mark.parametrize("kind", NAMES)
def test_names_in_every_picture(tmp_path, drawn, capfd, kind):
    name, plain = NAMES[kind], pictures.plain(NAMES[kind])
    assert "\n" not in plain
    assert len(plain) <= 60
    source = SimpleNamespace(classes=[name, "b"], load=lambda index: (Image.new("RGB", (8, 6)), 0))
    pictures.draw_predictions(source, [(0, 0, 0, 0.9), (1, 0, 1, 0.5)], tmp_path / "grid.png", name, 2)
    short = pictures.plain(name, pictures.NAME)
    assert {f"{short} (90%)", f"b (50%)\ntrue: {short}"} <= set(literal(drawn))
    rows = [
        {"kind": "train", "epoch": 1, "loss": 2.0, f"loss_{name}": 1.0, "lr": 0.1},
        {"kind": "eval", "epoch": 1, f"{name}/mIoU": 3.0, "best": 1.0},
    ]
    pictures.draw_curves(rows, tmp_path / "curves.png", name, ["mIoU"], "best")
    assert pictures.plain(f"{name}/mIoU") in literal(drawn)
    assert all(Image.open(tmp_path / file).convert("L").getextrema()[0] < 100 for file in ("grid.png", "curves.png"))
    assert "arning" not in capfd.readouterr().err  # of glyphs that no font has


def test_a_name_is_what_can_be_read_of_it():
    assert pictures.plain("price_$5") == "price_$5"
    assert pictures.plain("汉字") == "汉字"
    assert pictures.plain("a\nb\x00") == "a b "
    assert pictures.plain(os.fsdecode(b"caf\xe9")) == "caf?"
    assert pictures.plain("0123456789" * 9, 12) == "0123456…6789"


def test_a_sheet_says_of_how_many_it_shows_some(tmp_path, drawn):
    cells = [(Image.new("RGB", (4, 4)), "x", "black")] * 3
    pictures.draw_grid(cells, tmp_path / "some.png", "title", 7)
    pictures.draw_grid(cells, tmp_path / "all.png", "title", 3)
    assert [text for text in literal(drawn) if text.startswith("title")] == ["title (3 of 7)", "title"]


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 20000)])
def test_pictures_of_any_shape_have_their_place(tmp_path, size):
    strip, square = Image.new("RGB", size, "red"), Image.new("L", (30, 30))
    pictures.draw_grid([(strip, "strip", "black"), (square, "square", "black")], tmp_path / "a.png", "title")
    width, height = Image.open(tmp_path / "a.png").size
    assert (width, height) == (600, 252)


def test_curves_without_a_number_that_is_best(tmp_path):
    """What is not finite in a log is null there."""
    rows = [{"kind": "eval", "epoch": n, "mIoU": value} for n, value in enumerate((None, float("nan"), 3.0, 2.0))]
    pictures.draw_curves(rows, tmp_path / "some.png", "title", ["mIoU"], "mIoU")
    pictures.draw_curves(rows[:2], tmp_path / "none.png", "title", ["mIoU"], "mIoU")
    assert (tmp_path / "none.png").exists()


# ---- segmentation ----------------------------------------------------------------------------------------------------


def sample(labels, path="", truth=None):
    found = SegDataSample(metainfo=dict(img_path=str(path)))
    found.pred_sem_seg = PixelData(data=torch.as_tensor(labels)[None])
    if truth is not None:
        found.gt_sem_seg = PixelData(data=torch.as_tensor(truth)[None])
    return found


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 1), (40, 30)])
def test_label_maps_of_any_shape(tmp_path, shape, capfd):
    """Squeezed, a map of one row would be no map; the sheet holds strips and squares."""
    classes = [*NAMES.values(), *(f"class {number}" for number in range(30))]
    labels = np.arange(shape[0] * shape[1]).reshape(shape) % len(classes)
    path = tmp_path / "$a_\n汉.png"
    Image.new("RGB", shape[::-1], "grey").save(path)
    kept = PicturesOfTest(2, 9, MapDrawing({"classes": classes}))
    for number in range(9):
        kept.note(number, [sample(labels, path, np.where(labels == 1, 255, labels))])
    assert len(kept.cells) == 2
    assert kept.cells[0][0].width <= 840
    kept.save(tmp_path / "sheet.png", "ground $truth", 9)
    assert Image.open(tmp_path / "sheet.png").size[0] == 1680
    assert "arning" not in capfd.readouterr().err  # of glyphs that no font has


@pytest.mark.parametrize("size", [(60, 40), (1, 900), (900, 1)])
def test_objects_with_any_name_in_pictures_of_any_shape(size, capfd):
    init_default_scope("mmdet")
    drawing, (width, height) = ObjectDrawing({"classes": tuple(NAMES.values())}), size
    found = DetDataSample()
    found.pred_instances = InstanceData(
        bboxes=torch.tensor([[0.0, 0.0, width, height]] * len(NAMES)),
        labels=torch.arange(len(NAMES)),
        scores=torch.full((len(NAMES),), 0.9),
        masks=torch.ones(len(NAMES), height, width, dtype=torch.bool),
    )
    picture = drawing(np.zeros((height, width, 3), np.uint8), found, with_truth=False)
    assert picture.size == size
    assert np.asarray(picture).any()
    assert r"price_\$5_to_\$9" in drawing.visualizer.dataset_meta["classes"]
    assert "arning" not in capfd.readouterr().err  # of glyphs that no font has


class Stub(torch.nn.Module):
    """Says one label everywhere."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def test_step(self, batch):
        shape = batch["data_samples"][0].ori_shape
        return [sample(np.full(shape, self.label))]


def predictions(folder, classes, **dataset):
    init_default_scope("mmseg")
    steps = [dict(type="LoadImageFromFile"), dict(type="LoadCheckedAnnotations"), dict(type="PackSegInputs")]
    settings = dict(
        type="CheckedMapsDataset", data_root="nowhere", metainfo=dict(classes=tuple(classes)), pipeline=steps
    )
    config = Config(dict(test_dataloader=dict(dataset={**settings, **dataset})))
    return MapPredictions(config, classes, folder, {})


@pytest.mark.parametrize(
    ("count", "reduced", "label", "value", "mode"),
    [
        (3, True, 2, 3, "L"),
        (3, False, 2, 2, "L"),
        (254, True, 253, 254, "L"),
        (255, False, 254, 254, "L"),
        (300, False, 299, 299, "I;16"),
    ],
)  # fmt: skip
def test_maps_are_written_as_the_data_have_them(tmp_path, count, reduced, label, value, mode):
    Image.new("RGB", (5, 1)).save(tmp_path / "a.png")
    classes = [f"class {number}" for number in range(count)]
    found = predictions(tmp_path / "out", classes, reduce_zero_label=reduced)
    found.add(Stub(label), tmp_path / "a.png")
    written = Image.open(tmp_path / "out" / found.images[0]["labels"])
    assert written.mode == mode
    assert np.array_equal(np.asarray(written), np.full((1, 5), value))
    told = found.as_json()
    assert told["numbers"][str(value)] == classes[label]
    assert told["images"][0]["shares"] == {classes[label]: 1.0}


def test_every_image_is_predicted_or_named(tmp_path):
    note = Image.Exif()
    note[0x0112] = 6
    names = ["a/x.png", "b/x.png", "汉$_.png", "n" * 240 + ".png", os.fsdecode(b"caf\xe9.png"), "turned.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (6, 4)).save(tmp_path / name, exif=note if name == "turned.jpg" else None)
    (tmp_path / "empty.png").touch()
    found = predictions(tmp_path / "out", ["a", "b"])
    for name in [*names, "empty.png"]:
        found.add(Stub(1), tmp_path / name)
    assert [row["file_name"] for row in found.images] == [str(tmp_path / name) for name in names]
    assert len(list((tmp_path / "out").glob("*_labels.png"))) == len({row["labels"] for row in found.images}) == 6
    assert found.images[-1]["height"] == 6, "as people see it"
    [skipped] = found.skipped
    assert skipped["file_name"] == str(tmp_path / "empty.png")
    assert skipped["reason"]
    write_json(tmp_path / "predictions.json", found.as_json())
    assert json.loads((tmp_path / "predictions.json").read_text())["skipped"] == found.skipped
