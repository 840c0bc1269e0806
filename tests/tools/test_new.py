"""elsa new: what is found, chosen, written and refused; that it trains is tested with docs/your-data.md."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from elsa.core import DataError
from elsa.engine import load_config
from elsa.tools.tasks.new.proposal import batch_for, epochs_for, held_out, scaled
from elsa.tools.tasks.new.segmentation import read_labels


@pytest.fixture
def new(tool, tmp_path):
    """``new(task, data, *options, to="my.yaml")``: the outcome, with the recipe in ``tmp_path``."""

    def call(task, data, *options, to=None):
        name = to or ("my.yaml" if task == "classification" else "my.py")
        return tool("new", task, "--data", data, "--output", tmp_path / name, *options)

    return call


def written(path):
    """Its text, comments without their line ends."""
    return " ".join(path.read_text().replace("#", "").split())


# ---- numbers


@pytest.mark.parametrize(
    ("images", "most", "batch"),
    [
        (5, 32, 4),
        (40, 32, 8),
        (360, 32, 16),
        (10_000, 32, 32),
        (10_000, 1024, 256),
        (1_281_167, 1024, 1024),
        (2, 32, 2),
    ],
)
def test_a_batch_is_a_power_of_two_of_which_an_epoch_has_some(images, most, batch):
    assert batch_for(images, most) == batch


def test_rates_follow_the_root_of_the_batch():
    assert scaled(1e-3, 1024, 1024) == 1e-3
    assert scaled(1e-3, 1024, 32) == pytest.approx(1e-3 / math.sqrt(32), rel=0.03)
    assert scaled(1e-4, 16, 4) == pytest.approx(5e-5)


def test_more_images_more_epochs_but_few_from_weights():
    assert [epochs_for(images, False) for images in (500, 5000, 50_000, 10**6)] == [100, 100, 200, 300]
    assert [epochs_for(images, True) for images in (500, 5000, 50_000, 10**6)] == [50, 30, 30, 20]


def test_what_is_held_out_is_a_fifth_and_always_the_same():
    names = [f"{number}.png" for number in range(50)]
    train, val = held_out(names)
    assert (len(train), len(val)) == (40, 10)
    assert sorted(train + val) == sorted(names)
    assert held_out(names[::-1])[1] == val[::-1]
    assert held_out(["a", "b"])[1] in (["a"], ["b"])


# ---- classification


def test_folders_that_are_divided_are_taken_as_they_are(new, images, tmp_path):
    outcome = new("classification", images)
    assert outcome.code == 0, outcome.err
    config = load_config(tmp_path / "my.yaml")
    data, train = config.DATA, config.TRAIN
    assert (config.MODEL.NAME, config.MODEL.NUM_CLASSES) == ("elsa_swin_nano", 4)
    assert ("folder", str(images), 64, 8) == (data.DATASET, data.ROOT, data.IMG_SIZE, data.BATCH)
    assert (train.LR, train.EPOCHS, train.WARMUP_EPOCHS) == (5e-4, 100, 5)
    text = written(tmp_path / "my.yaml")
    assert "0.001 for 32 (digits_elsa_swin_nano) × √(8 / 32)" in text
    assert "learning rate 0.0005" in outcome.err and "unequal" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]


def test_class_folders_are_divided_by_lists(new, images, tmp_path):
    """Each class alone, the same again; numbered folders stay classes with names."""
    data = tmp_path / "data"
    for number in range(3):
        shutil.copytree(images / "train" / f"class{number}", data / str(9 + number))
    for path in sorted((data / "11").iterdir())[3:]:
        path.unlink()
    assert new("classification", data).code == 0
    config = load_config(tmp_path / "my.yaml")
    assert (config.DATA.DATASET, config.DATA.CLASSES, config.MODEL.NUM_CLASSES) == ("list", "natural", 3)
    rows = [(tmp_path / f"my.{split}.csv").read_text().splitlines()[1:] for split in ("train", "val")]
    assert [len(some) for some in rows] == [10 + 10 + 2, 2 + 2 + 1]
    assert not set(rows[0]) & set(rows[1])
    assert "unequal classes: 10 images of 10, 2 of 11" in written(tmp_path / "my.yaml")
    before = (tmp_path / "my.val.csv").read_text()
    assert new("classification", data, "--overwrite").code == 0
    assert (tmp_path / "my.val.csv").read_text() == before


def test_weights_of_other_classes(new, images, tmp_path):
    """The checkpoint says which model it is of; its head is left out, and the rate is that of fine-tuning."""
    import timm

    torch.save({"arch": "elsa_swin_nano", "state_dict": timm.create_model("elsa_swin_nano").state_dict()},
               tmp_path / "weights.pt")  # fmt: skip
    outcome = new("classification", images, "--weights", tmp_path / "weights.pt")
    assert outcome.code == 0, outcome.err
    config = load_config(tmp_path / "my.yaml")
    assert str(tmp_path / "weights.pt") == config.MODEL.PRETRAINED
    assert (config.MODEL.PRETRAINED_IGNORE, config.TRAIN.EPOCHS) == (("head.*",), 50)
    assert pytest.approx(1e-4 * math.sqrt(8 / 128)) == config.TRAIN.LR


def test_any_model_of_timms(new, images, tmp_path):
    assert new("classification", images, "--model", "resnet10t").code == 0
    assert load_config(tmp_path / "my.yaml").MODEL.NAME == "resnet10t"


def one_class(root):
    shutil.rmtree(root / "class1")


def one_image(root):
    for path in sorted((root / "class1").iterdir())[1:]:
        path.unlink()


def damaged(root):
    for path in root.glob("*/*.png"):
        path.write_bytes(b"no picture")


def empty(root):
    for path in root.iterdir():
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (one_class, ["one class (class0)", "two are needed"]),
        (one_image, ["class 'class1'", "has 1 image:"]),
        (damaged, ["images looked at cannot be read", "class0/"]),
        (empty, ["no class folders", "/CLASS/IMAGE"]),
    ],
)
def test_images_that_cannot_be_trained_on(refused, new, images, tmp_path, change, parts):
    data = tmp_path / "data"
    for number in range(2):
        shutil.copytree(images / "train" / f"class{number}", data / f"class{number}")
    change(data)
    refused(new("classification", data), *parts)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["clasification", "my.yaml"], ["'clasification' is no task", "did you mean classification?"]),
        (["detection", "my.yaml"], ["a recipe of detection ends in .py"]),
        (["classification", "my.py"], ["a recipe of classification ends in .yaml"]),
        (["classification", "my.yaml", "--model", "elsa_swin_tinny"], ["is no model", "did you mean elsa_swin_tiny?"]),
        (["detection", "my.py", "--model", "elsa_swin_tinny"], ["is no backbone", "did you mean elsa_swin_tiny?"]),
        (["classification", "my.yaml", "--modle", "x"], ["unknown argument '--modle'", "did you mean --model?"]),
        (["classification", "my.yaml", "--weights", "no.pt"], ["no.pt does not exist"]),
        (["classification", "my.yaml", "--label-key", "x"], ["--image-key and --label-key are of tables"]),
        (["segmentation", "my.py", "--label-key", "x"], ["--label-key is of tables"]),
    ],
)
def test_a_mistake_is_told_in_one_line(refused, new, images, write_coco, tmp_path, arguments, parts):
    task, name, *options = arguments
    data = write_coco(tmp_path / "coco", ("a", "b", "c")) if "backbone" in parts[0] else images
    refused(new(task, data, *options, to=name), *parts)
    assert not (tmp_path / name).exists()


def test_what_is_there_stays(refused, new, images, tmp_path):
    for name in ("my.yaml", "other.val.csv"):
        (tmp_path / name).write_text("mine")
    refused(new("classification", images), "my.yaml exists", "--overwrite")
    refused(new("classification", images / "train", to="other.yaml"), "other.val.csv exists")
    assert not (tmp_path / "other.yaml").exists()
    assert {path.read_text() for path in tmp_path.iterdir()} == {"mine"}


# ---- detection


def test_objects_with_masks_and_two_files(new, write_coco, tmp_path):
    """COCO's layout; the class that has no object is left out."""
    data = write_coco(tmp_path / "coco", ("bolt", "nut", "washer", "screw"))
    outcome = new("detection", data)
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "my.py").read_text()
    assert "every object has a mask: Mask R-CNN" in text and "mask_rcnn_elsa_swin_nano.py" in text
    assert "classes = ('bolt', 'nut', 'washer')" in text
    assert "ann_file='annotations/instances_train2017.json', data_prefix=dict(img='train2017/')" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coco", "my.py"]


def without_objects(content):
    content["annotations"] = []


def without_images(content):
    for entry in content["images"]:
        entry["file_name"] = f"elsewhere_{entry['file_name']}"


def of_an_unknown_category(content):
    content["annotations"][0]["category_id"] = 77


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (without_objects, ["no annotation", "nothing can be learned"]),
        (without_images, ["has the images of", "elsewhere_001.jpg"]),
        (of_an_unknown_category, ["annotation of an unknown category", "77"]),
    ],
)
def test_annotations_that_cannot_be_trained_on(refused, new, write_coco, tmp_path, change, parts):
    data = write_coco(tmp_path / "coco", ("a", "b", "c"))
    for file in (data / "annotations").iterdir():
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))
    refused(new("detection", data), *parts)
    assert not (tmp_path / "my.py").exists()


def test_files_that_may_each_be_meant(refused, new, write_coco, tmp_path):
    data = write_coco(tmp_path / "coco", ("a", "b", "c")) / "annotations"
    shutil.copy(data / "instances_train2017.json", data / "instances_train_new.json")
    refused(new("detection", data.parent), "several files of annotations of train", "instances_train_new.json")
    (tmp_path / "bare").mkdir()
    refused(new("detection", tmp_path / "bare"), "needs annotations in COCO's form", "it has none")


# ---- segmentation


@pytest.fixture
def maps(tmp_path):
    """``maps(array or picture, …)``: paths of label maps of these."""

    def call(*values):
        paths = []
        for number, value in enumerate(values):
            path = tmp_path / f"{number}.png"
            (value if isinstance(value, Image.Image) else Image.fromarray(np.asarray(value))).save(path)
            paths.append(str(path))
        return paths

    return call


def row(*numbers, kind=np.uint8):
    return np.tile(np.array(numbers, kind), (4, 2))


@pytest.mark.parametrize(
    ("numbers", "kind", "classes", "reduced", "label_map"),
    [
        ((0, 1, 2, 255), np.uint8, 3, False, {}),
        ((1, 2, 3), np.uint8, 3, True, {}),
        ((0, 255), np.uint8, 2, False, {0: 0, 255: 1}),
        ((10, 20, 30), np.uint8, 3, False, {10: 0, 20: 1, 30: 2}),
        ((0, 7, 300), np.uint16, 3, False, {0: 0, 7: 1, 300: 2}),
        ((0, 7, 255), np.uint8, 2, False, {0: 0, 7: 1, 255: 255}),
    ],
)
def test_what_numbers_are_taken_for(maps, tmp_path, numbers, kind, classes, reduced, label_map):
    labels = read_labels(tmp_path, maps(row(*numbers[:1], kind=kind), row(*numbers, kind=kind)))
    assert (len(labels.classes), labels.reduced, dict(labels.label_map)) == (classes, reduced, label_map)


def test_colours_become_classes(maps, tmp_path):
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[:2, :, 1], colours[2:, 2:, 0] = 200, 90
    labels = read_labels(tmp_path, maps(colours))
    assert labels.label_map == {(0, 0, 0): 0, (0, 200, 0): 1, (90, 0, 0): 2}
    assert labels.palette == [[0, 0, 0], [0, 200, 0], [90, 0, 0]]


def test_names_beside_the_data(maps, tmp_path):
    (tmp_path / "classes.txt").write_text("sky\ntree\nroad\n")
    labels = read_labels(tmp_path, maps(row(0, 1, 255)))
    assert (labels.classes, labels.reduced) == (["sky", "tree", "road"], False)
    assert read_labels(tmp_path, maps(row(0, 1, 3))).reduced
    with pytest.raises(DataError, match=r"0\.png has 4, but classes\.txt names 3 classes: 0 … 2, or 1 … 3 where 0"):
        read_labels(tmp_path, maps(row(0, 4)))


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (row(3), "the maps hold 3: one class leaves nothing to tell apart"),
        (row(*range(260), kind=np.uint16), "has 260 numbers: is it a label map?"),
        ((np.arange(900) % 256).astype(np.uint8).reshape(10, 30, 3), "is it a label map?"),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 4)), "neither one channel of whole numbers nor opaque colours"),
    ],
)
def test_maps_that_are_none(maps, tmp_path, value, part):
    with pytest.raises(DataError, match=part.replace("?", r"\?")):
        read_labels(tmp_path, maps(value))


def test_images_without_maps(refused, new, tmp_path):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    refused(new("segmentation", data), "has no images and label maps: expected images and masks")
    (data / "masks").mkdir()
    refused(new("segmentation", data), "no images by their names")
    Image.new("RGB", (8, 8)).save(data / "images/a.jpg")
    refused(new("segmentation", data), "1 with no label map", "a.jpg")
