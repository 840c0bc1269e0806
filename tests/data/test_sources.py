"""Sources: folders, tar files and timm's readers, and one clear line for whatever is wrong with them."""

from __future__ import annotations

import logging
import re
import shutil
import sys
import tarfile
import types

import pytest
from PIL import Image

from elsa.core import UserError
from elsa.data import DataError, eval_loader, open_splits, train_loader

TWO = {"train": {"a": 5, "b": 3}, "val": {"a": 2, "b": 2}}


def refusal(config, *names):
    with pytest.raises(DataError) as caught:
        open_splits(config, *(names or ("train", "val")))
    return str(caught.value)


def pack(folder):
    """The folder as a tar file beside it; the folder goes."""
    path = folder.with_name(f"{folder.name}.tar")
    with tarfile.open(path, "w") as archive:
        archive.add(folder, arcname=".")
    shutil.rmtree(folder)
    return path


# ---- folders


def test_a_folder_gives_images_classes_and_names(write_images, make_config):
    root = write_images(TWO)
    train, val = open_splits(make_config(root), "train", "val")
    assert (len(train), len(val)) == (8, 4)
    assert train.classes == val.classes == ["a", "b"]
    for source, split in ((train, "train"), (val, "val")):
        for index in range(len(source)):
            image, target = source.load(index)
            path = source.name(index)
            assert path.startswith(str(root / split / source.classes[target]))
            assert (image.mode, image.size) == ("RGB", (20, 16))
            assert image.tobytes() == Image.open(path).tobytes()


def test_a_split_can_be_opened_alone_with_the_classes_of_training(write_images, make_config):
    root = write_images({"train": {"a": 1, "b": 1}, "val": {"b": 3}})
    (val,) = open_splits(make_config(root), "val")
    assert val.classes == ["a", "b"]
    assert {val.load(index)[1] for index in range(3)} == {1}


def test_validation_alone_is_enough_for_evaluation(write_images, make_config):
    (val,) = open_splits(make_config(write_images({"val": {"a": 2, "b": 2}})), "val")
    assert len(val) == 4


def test_grey_images_where_the_model_has_one_channel(write_images, make_config):
    config = make_config(write_images(TWO), "MODEL.IN_CHANS=1", "DATA.MEAN=[0.5]", "DATA.STD=[0.5]")
    (train,) = open_splits(config, "train")
    assert train.load(0)[0].mode == "L"


def test_images_in_deeper_folders_are_not_silently_left_out(write_images, make_config):
    """They belong to their class, as in torchvision; or they are refused by name."""
    root = write_images(TWO)
    deep = root / "train" / "b" / "more" / "x.png"
    deep.parent.mkdir()
    shutil.copy(root / "train" / "a" / "000.png", deep)
    try:
        (train,) = open_splits(make_config(root), "train")
    except DataError as error:
        assert str(deep.parent) in str(error)
    else:
        labels = {train.name(index): train.load(index)[1] for index in range(len(train))}
        assert labels.get(str(deep)) == 1


@pytest.mark.parametrize(
    ("train", "val"), [("train", "val"), ("training", "validation"), ("train", "eval"), ("training", "evaluation")]
)
def test_usual_split_names_are_found(write_images, make_config, train, val):
    root = write_images({train: TWO["train"], val: TWO["val"]})
    assert [len(source) for source in open_splits(make_config(root), "train", "val")] == [8, 4]


def test_the_name_asked_for_comes_before_its_synonyms(write_images, make_config):
    root = write_images({"train": TWO["train"], "val": {"a": 1, "b": 1}, "validation": TWO["val"]})
    lengths = {}
    for split in ("val", "validation"):
        lengths[split] = len(open_splits(make_config(root, f"DATA.VAL_SPLIT={split}"), "val")[0])
    assert lengths == {"val": 2, "validation": 4}


def test_a_split_of_any_name(write_images, make_config):
    root = write_images({"train": TWO["train"], "holdout": TWO["val"]})
    assert len(open_splits(make_config(root, "DATA.VAL_SPLIT=holdout"), "val")[0]) == 4


def test_missing_root_suggests_the_nearest(write_images, make_config):
    root = write_images(TWO)
    said = refusal(make_config(root.with_name("imagse")))
    assert str(root.with_name("imagse")) in said
    assert f"did you mean {root}" in said
    assert "did you mean" not in refusal(make_config(root.with_name("qqqqqqqq")))
    assert "/nowhere/at/all" in refusal(make_config("/nowhere/at/all"))


def test_missing_split_says_what_is_there(write_images, make_config):
    said = refusal(make_config(write_images({"train": TWO["train"], "holdout": TWO["val"]})))
    for word in ("validation or val", "holdout", "train"):
        assert word in said


def test_class_count_mismatch_names_both_numbers(write_images, make_config):
    root = write_images({"train": {"a": 1, "b": 1, "c": 1}, "val": {"a": 1}})
    for names in (("train", "val"), ("val",)):
        said = refusal(make_config(root), *names)
        assert "3 classes" in said
        assert "MODEL.NUM_CLASSES is 2" in said


def test_empty_training_class_is_named(write_images, make_config):
    said = refusal(make_config(write_images({"train": {"a": 3, "b": 0}, "val": {"a": 1, "b": 1}})))
    assert re.search(r"1 of 2 classes have no image in .*train: b", said)


def test_empty_validation_class_is_a_warning(write_images, make_config, caplog):
    root = write_images({"train": {"a": 3, "b": 2}, "val": {"a": 1, "b": 0}})
    with caplog.at_level(logging.WARNING, "elsa"):
        _, val = open_splits(make_config(root), "train", "val")
    assert len(val) == 1
    assert "1 of 2 classes have no image" in caplog.text


def test_validation_class_that_training_does_not_know(write_images, make_config):
    said = refusal(make_config(write_images({"train": {"a": 1, "b": 1}, "val": {"a": 1, "zebra": 1}})))
    assert "zebra" in said
    assert "train" in said


@pytest.mark.parametrize("split", ["train", "val"])
def test_no_images(write_images, make_config, split):
    root = write_images({**TWO, split: {"a": 0, "b": 0}})
    (root / split / "a" / "notes.txt").touch()
    said = refusal(make_config(root))
    assert str(root / split) in said
    assert "no image" in said


def test_images_without_class_folders(write_images, make_config):
    root = write_images(TWO)
    for label in ("a", "b"):
        shutil.rmtree(root / "train" / label)
    Image.new("RGB", (4, 4)).save(root / "train" / "1.png")
    assert "CLASS/IMAGE" in refusal(make_config(root))


def test_a_file_in_place_of_a_folder(write_images, make_config):
    root = write_images(TWO)
    shutil.rmtree(root / "train")
    (root / "train").touch()
    assert f"{root} has no folder (nor .tar file) train" in refusal(make_config(root))


# ---- tar files


def test_tar_files_hold_the_same_images(write_images, make_config):
    root = write_images(TWO)
    folders = open_splits(make_config(root), "train", "val")
    expected = [sorted((s.load(i)[1], s.load(i)[0].tobytes()) for i in range(len(s))) for s in folders]
    for split in TWO:
        pack(root / split)
    config = make_config(root, "DATA.WORKERS=2")
    tars = open_splits(config, "train", "val")
    assert [source.classes for source in tars] == [["a", "b"]] * 2
    assert [sorted((s.load(i)[1], s.load(i)[0].tobytes()) for i in range(len(s))) for s in tars] == expected

    train, val = open_splits(config, "train", "val")
    assert sum(len(step[0].targets) for step in train_loader(config, train, 0, 1).epoch(0)) == 8
    assert sorted(index for batch in eval_loader(config, val, 0, 1) for index in batch.indices.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("names", [("train", "val"), ("val",)], ids=["both", "val alone"])
@pytest.mark.parametrize("packed", ["train", "val"])
def test_a_folder_and_a_tar_file_do_not_mix(write_images, make_config, packed, names):
    """Their class orders differ (1, 10, 2 and 1, 2, 10), also where only one of them is opened."""
    root = write_images({split: dict.fromkeys(("1", "10", "2"), 2) for split in TWO})
    pack(root / packed)
    assert "tar" in refusal(make_config(root, "MODEL.NUM_CLASSES=3"), *names)


def test_tar_files_of_different_classes(write_images, make_config):
    root = write_images({"train": {"a": 1, "b": 1}, "val": {"a": 1, "zebra": 1}})
    for split in TWO:
        pack(root / split)
    assert "zebra" in refusal(make_config(root))


def test_tar_file_with_another_number_of_classes(write_images, make_config):
    root = write_images(TWO)
    for split in TWO:
        pack(root / split)
    said = refusal(make_config(root, "MODEL.NUM_CLASSES=5"))
    assert "2 classes" in said
    assert "MODEL.NUM_CLASSES is 5" in said


@pytest.mark.parametrize("content", ["garbage", "empty", "without images"])
def test_unusable_tar_file(write_images, make_config, content):
    root = write_images(TWO)
    pack(root / "val")
    path = pack(root / "train")
    if content == "garbage":
        path.write_bytes(b"this is no archive" * 100)
    else:
        with tarfile.open(path, "w") as archive:
            if content == "without images":
                archive.addfile(tarfile.TarInfo("a/notes.txt"))
    assert str(path) in refusal(make_config(root))


# ---- timm's readers


@pytest.mark.parametrize("name", ["", "torch", "folders", "wsd/x", "imagenet", "tfrecord/x"])
def test_unknown_reader(write_images, make_config, name):
    with pytest.raises(UserError) as caught:  # an empty name already by the configuration
        open_splits(make_config(write_images(TWO), f"DATA.DATASET='{name}'"), "train", "val")
    said = str(caught.value)
    for word in (f"{name!r}", "folder", "torch/NAME", "hfds/NAME", "wds/NAME"):
        assert word in said


def test_torchvision_reader(write_images, make_config):
    root = write_images(TWO)
    config = make_config(root, "DATA.DATASET=torch/image_folder")
    train, val = open_splits(config, "train", "val")
    assert (len(train), len(val)) == (8, 4)
    assert train.classes == ["a", "b"]
    assert train.load(0)[0].mode == "RGB"
    plain = open_splits(make_config(root), "train")[0]
    pairs = [sorted((s.load(i)[1], s.load(i)[0].tobytes()) for i in range(8)) for s in (train, plain)]
    assert pairs[0] == pairs[1]
    assert sum(len(batch.targets) for batch in eval_loader(config, val, 0, 1)) == 4
    assert len(list(train_loader(config, train, 0, 1).epoch(0))) == 2


def test_torchvision_reader_names_unreadable_images_by_number(write_images, make_config):
    root = write_images(TWO)
    (root / "val" / "a" / "001.png").write_bytes(b"broken")
    config = make_config(root, "DATA.DATASET=torch/image_folder", "DATA.MAX_BAD=1")
    (val,) = open_splits(config, "val")
    bad = [name for batch in eval_loader(config, val, 0, 1) for name in batch.bad]
    assert len(bad) == 1


@pytest.mark.parametrize("dataset", ["torch/cifar10", "torch/no_such_dataset", "torch/image_folder"])
def test_reader_that_finds_nothing_says_which(tmp_path, make_config, dataset):
    said = refusal(make_config(tmp_path, f"DATA.DATASET={dataset}"))
    assert dataset in said
    assert "\n" not in said


def test_torchvision_reader_with_another_number_of_classes(write_images, make_config):
    said = refusal(make_config(write_images(TWO), "DATA.DATASET=torch/image_folder", "MODEL.NUM_CLASSES=9"))
    assert "2 classes" in said
    assert "MODEL.NUM_CLASSES is 9" in said


@pytest.mark.parametrize(
    ("dataset", "package"), [("hfds/x", "datasets"), ("tfds/x", "tensorflow"), ("hfids/x", "datasets")]
)
def test_a_missing_package_is_named(tmp_path, make_config, monkeypatch, dataset, package):
    monkeypatch.setitem(sys.modules, package, None)
    reader = f"timm.data.readers.reader_{dataset.split('/')[0]}"
    monkeypatch.delitem(sys.modules, reader, raising=False)
    said = refusal(make_config(tmp_path, f"DATA.DATASET={dataset}"))
    assert package in said
    assert dataset in said


def test_a_data_folder_that_is_taken_for_a_package_is_no_package(tmp_path, make_config, monkeypatch):
    """Started in the repository, ``import datasets`` finds the folder of the digits instead of nothing."""
    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    assert "hfds/x" in refusal(make_config(tmp_path, "DATA.DATASET=hfds/x"))


# ---- digits


def test_digits_are_written_on_first_use(tmp_path, make_config):
    config = make_config(tmp_path / "new" / "digits", "DATA.DATASET=digits", "MODEL.NUM_CLASSES=10")
    train, val = open_splits(config, "train", "val")
    assert (len(train), len(val)) == (1437, 360)
    assert train.classes == [str(label) for label in range(10)]


def test_digits_do_not_overwrite_other_data(write_images, make_config):
    root = write_images(TWO)
    assert str(root) in refusal(make_config(root, "DATA.DATASET=digits", "MODEL.NUM_CLASSES=10"))
    assert len(list(root.glob("train/*/*.png"))) == 8
