"""Checks of data sets: each kind of damage is found and named, a whole data set has no finding."""

from __future__ import annotations

import io
import json
import math
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from elsa.data import DataError, write_digits_ade, write_digits_coco
from elsa.data.checks import check_ade20k, check_coco, check_imagenet
from elsa.data.checks import coco as coco_module
from elsa.data.checks.coco_names import CATEGORIES
from elsa.data.checks.report import look_at


def kinds(report):
    return {kind: len(findings) for kind, findings in report.by_kind().items()}


def only_finding(report):
    assert len(report.findings) == 1, report.findings
    assert not report.ok
    return report.findings[0]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return {"coco": write_digits_coco(folder / "coco", 6, 3), "ade": write_digits_ade(folder / "ade", 12, 6)}


@pytest.fixture
def coco(sets, tmp_path):
    return shutil.copytree(sets["coco"], tmp_path / "coco")


@pytest.fixture
def ade(sets, tmp_path):
    return shutil.copytree(sets["ade"], tmp_path / "ade")


def cut(path, share=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


# ---- looks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["JPEG", "PNG", "progressive"])
@pytest.mark.parametrize("missing", [8, 0.3, 0.9])
def test_a_truncated_image_is_unreadable(form, missing):
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8))
    image.save(file, "JPEG" if form == "progressive" else form, progressive=form == "progressive")
    data = file.getvalue()
    assert look_at(io.BytesIO(data)).size == (120, 90)
    kept = len(data) - missing if missing >= 1 else int(len(data) * (1 - missing))
    if form == "PNG":
        kept -= 24  # its last chunk holds no pixels
    assert look_at(io.BytesIO(data[:kept])).error


def test_a_header_is_enough_for_the_size(coco):
    path = next(coco.glob("train2017/*"))
    cut(path)
    assert look_at(str(path)).error
    assert look_at(str(path), decode=False).size


# ---- COCO ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def edit(coco):
    """``edit(function)`` changes the training annotation file."""

    def change(function):
        path = coco / "annotations/instances_train2017.json"
        content = json.loads(path.read_text())
        function(content)
        path.write_text(json.dumps(content))

    return change


def test_a_whole_coco_set(coco):
    report = check_coco(coco)
    assert report.ok
    assert report.counts["train images"] == 6
    assert report.counts["val categories"] == 10
    assert any("another data set than COCO (digits-coco" in note for note in report.notes)
    assert check_coco(coco, classes=10).ok
    assert check_coco(coco, workers=2).as_dict() == report.as_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images(coco, workers):
    paths = sorted((coco / "train2017").iterdir())
    paths[0].unlink()
    cut(paths[1])
    paths[2].write_bytes(b"no image")
    Image.new("RGB", (50, 60)).save(paths[3])
    report = check_coco(coco, workers=workers)
    assert kinds(report) == {"image missing": 1, "image unreadable": 2, "image of another size": 1}
    by_kind = report.by_kind()
    assert [finding.place for finding in by_kind["image missing"]] == [str(paths[0])]
    assert [finding.place for finding in by_kind["image unreadable"]] == [str(paths[1]), str(paths[2])]
    assert "50×60" in by_kind["image of another size"][0].detail
    fast = kinds(check_coco(coco, fast=True))
    assert fast == {"image missing": 1, "image unreadable": 1, "image of another size": 1}


def test_missing_parts_of_a_coco_set(coco):
    shutil.rmtree(coco / "val2017")
    (coco / "annotations/instances_train2017.json").unlink()
    assert kinds(check_coco(coco)) == {"annotation file missing": 1, "image folder missing": 1}
    assert kinds(check_coco(coco, splits=("train",))) == {"annotation file missing": 1}


def test_truncated_and_broken_annotation_files(coco):
    cut(coco / "annotations/instances_train2017.json")
    (coco / "annotations/instances_val2017.json").write_text('{"images": [}, ]')
    truncated, broken = check_coco(coco).findings
    assert truncated.kind == "annotation file truncated"
    assert "line 1 column " in truncated.detail
    assert broken.kind == "annotation file is not JSON"
    assert "line 1 column 13" in broken.detail
    (coco / "annotations/instances_val2017.json").write_text('{"images": []}')
    finding = only_finding(check_coco(coco, splits=("val",)))
    assert finding.detail == "no list annotations, categories"


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("category_id", 99, "annotation of an unknown category"),
        ("image_id", 77, "annotation of an unknown image"),
        ("iscrowd", 2, "iscrowd is neither 0 nor 1"),
        ("bbox", [5, 5, 0, 8], "box without area"),
        ("bbox", [5, 5, 8, -8], "box without area"),
        ("bbox", [-3, 5, 8, 8], "box outside its image"),
        ("bbox", [5, 5, 8, 400], "box outside its image"),
        ("bbox", [5, 5, 8], "box is not four numbers"),
        ("bbox", [5, math.nan, 8, 8], "box is not four numbers"),
        ("bbox", [5, "5", 8, 8], "box is not four numbers"),
        ("bbox", None, "annotations: entry incomplete"),
        ("area", "12", "annotations: entry incomplete"),
        ("area", 0, "area is not positive"),
        ("segmentation", None, "mask missing"),
        ("segmentation", [], "mask empty"),
    ],
)
def test_a_damaged_annotation(coco, edit, key, value, kind):
    edit(lambda content: content["annotations"][3].update({key: value}))
    finding = only_finding(check_coco(coco))
    assert finding.kind == kind
    assert "instances_train2017.json" in finding.place


def test_a_box_may_reach_a_pixel_over_the_edge(coco, edit):
    edit(lambda content: content["annotations"][3].update(bbox=[-0.6, 0, 8, 8]))
    assert check_coco(coco).ok


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_duplicate_ids_and_odd_entries(coco, edit, name):
    def repeat(content):
        content[name].append(content[name][0])
        content[name].append("text")

    edit(repeat)
    assert kinds(check_coco(coco)) == {f"{name}: duplicate id": 1, f"{name}: entry is no object": 1}


def test_a_file_listed_twice_and_an_image_without_annotation(coco, edit):
    edit(lambda content: content["images"].append({**content["images"][0], "id": 500}))
    report = check_coco(coco)
    assert only_finding(report).kind == "images: duplicate file"
    assert report.counts["train images without annotation"] == 1


def test_categories_that_differ_between_the_splits(coco, edit):
    edit(lambda content: content["categories"][4].update(name="five"))
    finding = only_finding(check_coco(coco))
    assert finding.kind == "categories of the splits differ"
    assert finding.detail == "5 4, 5 five"


def test_the_number_of_classes_that_was_named(coco):
    assert kinds(check_coco(coco, classes=80)) == {"number of categories": 2}


def as_published(content):
    """Makes it look like COCO, with digits as its objects."""
    content["categories"] = [{"id": number, "name": name} for number, name in CATEGORIES.items()]


def test_what_is_coco_is_held_against_the_published_mapping(coco, edit, monkeypatch):
    edit(as_published)
    expected = {"number of images": 1, "number of annotations": 1}
    assert kinds(check_coco(coco, splits=("train",))) == expected
    assert check_coco(coco, splits=("train",), classes=80).ok
    number = len(json.loads((coco / "annotations/instances_train2017.json").read_text())["annotations"])
    monkeypatch.setitem(coco_module.PUBLISHED, "train", {"images": 6, "annotations": number})
    assert check_coco(coco, splits=("train",)).ok

    edit(lambda content: content["categories"][79].update(name="tooth brush"))
    finding = only_finding(check_coco(coco, splits=("train",)))
    assert finding.kind == "category mapping"
    assert finding.detail == "'tooth brush'; COCO has 'toothbrush'"
    edit(lambda content: content["categories"].pop())
    assert kinds(check_coco(coco, splits=("train",))) == {"number of categories": 1}


def test_the_two_flaws_of_the_published_file_are_known(coco, edit, monkeypatch):
    def flaw(content):
        as_published(content)
        content["images"][0]["id"] = 200_365
        for entry in content["annotations"]:
            if entry["image_id"] == 1:
                entry["image_id"] = 200_365
        content["annotations"][0].update(
            bbox=[96.65, 88.33, 1.03, 0.0], area=0.0, segmentation=[[96.65, 88.33, 96.65, 88.33, 97.68, 88.33]]
        )

    edit(flaw)
    number = len(json.loads((coco / "annotations/instances_train2017.json").read_text())["annotations"])
    monkeypatch.setitem(coco_module.PUBLISHED, "train", {"images": 6, "annotations": number})
    report = check_coco(coco, splits=("train",))
    assert report.ok
    assert any("in the published file either" in note for note in report.notes)
    assert kinds(check_coco(coco, splits=("train",), classes=80)) == {"box without area": 1}


def test_coco_has_80_categories_with_gaps():
    assert len(CATEGORIES) == 80
    assert (CATEGORIES[1], CATEGORIES[13], CATEGORIES[90]) == ("person", "stop sign", "toothbrush")
    assert set(range(1, 91)) - set(CATEGORIES) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


# ---- ImageNet ------------------------------------------------------------------------------------------------------


def test_a_whole_folder_of_classes(write_images):
    root = write_images({"train": {"cat": 3, "dog/brown": 2}, "val": {"cat": 1, "dog": 2}})
    report = check_imagenet(root)
    assert report.ok
    assert report.counts == {"train classes": 2, "train images": 5, "val classes": 2, "val images": 3}
    assert "another data set than ImageNet: 2 classes" in report.notes[0]
    assert check_imagenet(root, classes=2, workers=2).ok
    assert kinds(check_imagenet(root, classes=3)) == {"number of classes": 2}


def test_damaged_class_folders(write_images):
    root = write_images({"training": {"cat": 3, "dog": 2, "emu": 1}, "validation": {"cat": 1, "cow": 2, "dog": 1}})
    for image in (root / "validation/dog").iterdir():
        image.rename(image.with_suffix(".txt"))
    cut(root / "training/cat/001.png")
    report = check_imagenet(root)
    assert kinds(report) == {
        "image unreadable": 1,
        "class without images": 1,
        "class in train only": 1,
        "class in val only": 1,
    }
    places = {finding.kind: finding.place for finding in report.findings}
    assert places["image unreadable"] == str(root / "training/cat/001.png")
    assert places["class without images"] == str(root / "validation/dog")
    assert places["class in train only"].endswith("emu")
    assert any("1 files in class folders are no images" in note for note in report.notes)


def test_a_validation_folder_as_downloaded(write_images):
    root = write_images({"train": {"cat": 1}, "val": {"cat": 3}})
    for image in (root / "val/cat").iterdir():
        image.rename(root / "val" / image.name)
    (root / "val/cat").rmdir()
    report = check_imagenet(root)
    assert kinds(report) == {"no class folders": 1, "class in train only": 1}
    assert "3 files lie in it directly" in report.findings[0].detail


def test_a_missing_split(write_images):
    root = write_images({"train": {"cat": 1}})
    assert only_finding(check_imagenet(root)).kind == "split missing"
    assert check_imagenet(root, splits=("train",)).ok


def test_what_looks_like_imagenet_is_held_against_the_published_numbers(write_images):
    root = write_images({split: {"n01440764": 2, "n01443537": 1} for split in ("train", "val")})
    report = check_imagenet(root)
    assert kinds(report) == {"number of classes": 2, "number of images": 2}
    assert any("3 instead of 1281167" in finding.detail for finding in report.findings)
    assert check_imagenet(root, classes=2).ok


def tar_folder(root, split, nested=False):
    with tarfile.open(root / f"{split}.tar", "w") as tar:
        for folder in sorted((root / split).iterdir()):
            if nested:
                inner = io.BytesIO()
                with tarfile.open(fileobj=inner, mode="w") as inside:
                    for image in sorted(folder.iterdir()):
                        inside.add(image, image.name)
                member = tarfile.TarInfo(f"{folder.name}.tar")
                member.size = len(inner.getvalue())
                tar.addfile(member, io.BytesIO(inner.getvalue()))
            else:
                tar.add(folder, folder.name)
    shutil.rmtree(root / split)


@pytest.mark.parametrize("workers", [0, 2])
def test_tar_files(write_images, workers):
    root = write_images({"train": {"cat": 3, "dog": 2}, "val": {"cat": 2, "dog": 1}})
    cut(root / "train/dog/001.png")
    cut(root / "val/cat/000.png")
    tar_folder(root, "train", nested=True)
    tar_folder(root, "val")
    report = check_imagenet(root, workers=workers)
    assert kinds(report) == {"image unreadable": 2}
    assert report.counts == {"train classes": 2, "train images": 5, "val classes": 2, "val images": 3}
    assert [finding.place for finding in report.findings] == [
        f"{root / 'train.tar'}/dog/001.png",
        f"{root / 'val.tar'}/cat/000.png",
    ]
    (root / "val.tar").write_bytes(b"no tar")
    assert "tar file unreadable" in kinds(check_imagenet(root))


# ---- ADE20K --------------------------------------------------------------------------------------------------------


def labels_of(path, change):
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def first(ade, what="annotations", split="training"):
    return sorted((ade / what / split).iterdir())[0]


def test_a_whole_ade_set(ade):
    report = check_ade20k(ade, classes=11)
    assert report.ok
    assert not report.notes
    assert report.counts["train images"] == report.counts["train annotations"] == 12
    assert report.counts["train classes"] == 11
    assert "another data set than ADE20K: labels 0-11" in check_ade20k(ade).notes[0]
    assert check_ade20k(ade, classes=11, workers=2).as_dict() == report.as_dict()


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_pairs(ade, workers):
    images, labels = (sorted((ade / what / "training").iterdir()) for what in ("images", "annotations"))
    images[0].unlink()
    labels[1].unlink()
    cut(images[2])
    cut(labels[3])
    grey = Image.open(labels[4])
    Image.merge("RGB", [grey, grey, grey.point(lambda value: 255 - value)]).save(labels[4])
    labels_of(labels[5], lambda values: values[:-3])
    labels_of(labels[6], lambda values: np.where(values == 0, 12, values).astype(np.uint8))
    report = check_ade20k(ade, classes=11, workers=workers)
    assert {finding.kind: finding.place for finding in report.findings} == {
        "annotation without image": str(labels[0]),
        "image without annotation": str(images[1]),
        "image unreadable": str(images[2]),
        "annotation unreadable": str(labels[3]),
        "annotation is no label map": str(labels[4]),
        "annotation of another size": str(labels[5]),
        "label out of range": str(labels[6]),
    }
    told = {finding.kind: finding.detail for finding in report.findings}
    assert told["label out of range"].startswith("has label 12; there are 0 for unlabelled and 1 … 11")
    fast = check_ade20k(ade, classes=11, fast=True)
    assert "label out of range" not in kinds(fast)
    assert "annotation of another size" in kinds(fast)
    assert "labels were not looked at" in fast.notes


def test_a_palette_holds_labels_too(ade):
    path = first(ade)
    image = Image.open(path).copy()
    image.putpalette(list(range(256)) * 3)
    image.save(path)
    assert Image.open(path).mode == "P"
    assert check_ade20k(ade, classes=11).ok


@pytest.mark.parametrize("ignored", [255, 0])
def test_labels_that_were_reduced_already(ade, ignored):
    """0 … 10 with 255 for unlabelled pixels, or without any."""
    for path in ade.glob("annotations/*/*.png"):
        labels_of(path, lambda values: np.where(values == 0, ignored, values - 1).astype(np.uint8))
    finding = only_finding(check_ade20k(ade, classes=11))
    assert finding.kind == "labels are probably reduced already"
    assert f"values 0-10{', 255' if ignored else ''}, none is 11" in finding.detail


def test_a_class_that_training_never_shows(ade):
    for path in ade.glob("annotations/training/*.png"):
        labels_of(path, lambda values: np.where(values == 4, 0, values).astype(np.uint8))
    finding = only_finding(check_ade20k(ade, classes=11))
    assert finding.kind == "class never seen in training"
    assert finding.detail == "4 of 1-11"


def test_what_is_named_like_ade20k_is_held_against_the_published_numbers(ade):
    for what in ("images", "annotations"):
        for split, name in (("training", "train"), ("validation", "val")):
            for path in (ade / what / split).iterdir():
                path.rename(path.with_name(f"ADE_{name}_{path.stem[-8:]}{path.suffix}"))
    report = check_ade20k(ade)
    assert kinds(report) == {"number of images": 2, "class never seen in training": 1}
    assert any("12 instead of 20210" in finding.detail for finding in report.findings)
    assert any(finding.detail.startswith("12-150 of 1-150") for finding in report.findings)


def test_a_folder_above_or_without_parts(ade):
    shutil.rmtree(ade / "annotations" / "validation")
    assert kinds(check_ade20k(ade, classes=11)) == {"folder missing": 1, "image without annotation": 6}
    inner = ade.parent / "above" / "ADEChallengeData2016"
    inner.parent.mkdir()
    ade.rename(inner)
    assert f"did you mean {inner}?" in only_finding(check_ade20k(inner.parent)).detail


@pytest.mark.parametrize("check", [check_coco, check_imagenet, check_ade20k])
def test_a_root_that_is_not_there(check, coco):
    with pytest.raises(DataError, match=r"cocoo does not exist; did you mean .*coco\?"):
        check(coco.with_name("cocoo"))
