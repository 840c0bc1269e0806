"""Images that a list names: DATA.DATASET list."""

from __future__ import annotations

import pytest
from PIL import Image

from elsa.core import ConfigError, DataError
from elsa.data import open_splits
from elsa.data.images.lists import read_list


@pytest.fixture
def listed(tmp_path, make_config):
    """``listed(train text, val text, *overrides, ending=".csv")`` → the opened splits of two lists; images are
    a.png … f.png, of as many shades."""
    (tmp_path / "pictures").mkdir()
    for shade, name in enumerate("abcdef"):
        Image.new("RGB", (9, 8), (shade, 0, 0)).save(tmp_path / "pictures" / f"{name}.png")

    def call(train, val, *overrides, ending=".csv"):
        for name, text in (("train", train), ("val", val)):
            (tmp_path / f"{name}{ending}").write_text(text)
        return open_splits(make_config(tmp_path, "DATA.DATASET=list", *overrides), "train", "val")

    return call


def content(source):
    return [(image.getpixel((0, 0))[0], label) for image, label in map(source.load, range(len(source)))]


TABLE = "image,label\npictures/a.png,dog\npictures/b.png,cat\n"


def test_a_table_with_classes(listed, tmp_path):
    train, val = listed(TABLE, "image,label\npictures/c.png,cat\n")
    assert (train.classes, content(train)) == (["cat", "dog"], [(0, 1), (1, 0)])
    assert (val.classes, content(val)) == (["cat", "dog"], [(2, 0)])
    assert train.path(0) == f"{tmp_path}/pictures/a.png"
    assert train.relative_name(1) == "pictures/b"
    assert train.labels().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("Class;Filename\ndog;pictures/a.png\ncat;pictures/b.png\n", []),
        ("id\timage\tbreed\n7\tpictures/a.png\tdog\n8\tpictures/b.png\tcat\n", ["DATA.LABEL_KEY=breed"]),
        ('photo,kind\n"pictures/a.png",dog\n\n"pictures/b.png",cat\n', ["DATA.IMAGE_KEY=photo"]),
        ("\ufeffimage,label,label_name\npictures/a.png,dog,x\npictures/b.png,cat,y\n", []),
    ],
)
def test_columns_by_their_usual_names_or_as_said(listed, text, keys):
    train, _ = listed(text, text, *keys)
    assert (train.classes, content(train)) == (["cat", "dog"], [(0, 1), (1, 0)])


def test_a_text_with_numbers(listed):
    rows = "pictures/a.png 1\npictures/b.png 0\n"
    train, val = listed(rows, "pictures/d.png 1\n", ending=".txt")
    assert (train.classes, content(train), content(val)) == ([], [(0, 1), (1, 0)], [(3, 1)])


def test_numbers_as_names(listed):
    rows = "image,label\npictures/a.png,10\npictures/b.png,9\n"
    train, _ = listed(rows, rows, "DATA.CLASSES=natural")
    assert (train.classes, content(train)) == (["9", "10"], [(0, 1), (1, 0)])


def test_lists_anywhere(tmp_path, make_config, listed):
    """Paths of the images begin at DATA.ROOT, the lists may lie elsewhere."""
    (tmp_path / "lists").mkdir()
    rows = "image,label\na.png,x\nb.png,y\n"
    (tmp_path / "lists/mine.csv").write_text(rows)
    splits = [f"DATA.{split}_SPLIT={tmp_path}/lists/mine.csv" for split in ("TRAIN", "VAL")]
    train, _ = open_splits(make_config(tmp_path / "pictures", "DATA.DATASET=list", *splits), "train", "val")
    assert content(train) == [(0, 0), (1, 1)]


@pytest.mark.parametrize(
    ("train", "overrides", "parts"),
    [
        ("image,label\npictures/a.png,cat\n", [], ["has 1 classes (cat)", "NUM_CLASSES is 2"]),
        ("image,label\npictures/a.png,dog\npictures/b.png\n", [], ["train.csv, line 3", "no 'label'"]),
        ("image,label\npictures/a.png,0\npictures/b.png,2\n", [], ["line 3: label 2", "0 … 1", "DATA.CLASSES=natural"]),
        ("image,label\npictures/a.png,1\npictures/b.png,1\n", [], ["1 of 2 classes have no image", ": 0"]),
        (
            "image,label\npictures/a.png,0\npictures/aa.png,1\n",
            [],
            ["1 of 2", "/aa.png", "did you mean a.png?"],
        ),
        ("image,label\n", [], ["train.csv names no images"]),
        ("pictures/a.png,dog\npictures/b.png,cat\n", [], ["first line must name the columns", "image,label"]),
        ("one,two,three\npictures/a.png,0,1\n", [], ["which column", "DATA.IMAGE_KEY", "one, two, three"]),
        ("image,two,three\npictures/a.png,0,1\n", [], ["which column", "holds the label", "DATA.LABEL_KEY"]),
        (TABLE, ["DATA.LABEL_KEY=labell"], ["labell is no column", "did you mean label?"]),
        (TABLE, ["DATA.TRAIN_SPLIT=trian"], ["no list trian, trian.csv", "it has train.csv, val.csv"]),
        (TABLE, ["DATA.ROOT=/nowhere"], ["/nowhere does not exist"]),
        ("image,label\npictures/a.png,dog\npictures/b.png,bird\n", [], ["val.csv has classes", "cat"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(listed, train, overrides, parts):
    with pytest.raises(DataError) as refusal:
        listed(train, "image,label\npictures/c.png,cat\n" if "dog" in train else train, *overrides)
    assert not [part for part in parts if part not in str(refusal.value)], refusal.value


def test_a_text_has_no_columns(listed):
    with pytest.raises(ConfigError, match=r"DATA\.IMAGE_KEY photo has no effect"):
        listed("pictures/a.png 0\n", "pictures/a.png 0\n", "DATA.IMAGE_KEY=photo", ending=".txt")


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"list\.csv cannot be read: no text in UTF-8"):
        read_list(tmp_path / "list.csv")
