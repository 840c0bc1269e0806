"""Folders and tar files as people have them, and which label a class has."""

from __future__ import annotations

import io
import logging
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

from elsa.core import ConfigError, DataError
from elsa.data import LabelMaps, natural, open_splits
from elsa.data.checks import check_imagenet
from elsa.engine import load_config
from elsa.tools.tasks.checkpoints import check_belongs

PNG = io.BytesIO()
Image.new("RGB", (4, 4)).save(PNG, "PNG")


@pytest.fixture
def build(tmp_path):
    """``build({"train": {"a": ["x.png"]}})`` writes such files and returns their root."""

    def call(splits, root=None):
        root = root or tmp_path / "data"
        for split, classes in splits.items():
            for label, names in classes.items():
                for name in names:
                    path = root / split / label / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(PNG.getvalue())
        return root

    return call


@pytest.fixture
def config(root):
    def call(folder, *more, classes=2):
        base = [f"DATA.ROOT={folder}", f"MODEL.NUM_CLASSES={classes}", "DATA.DATASET=folder", "DATA.BATCH=2"]
        return load_config(root / "configs/classification/digits_elsa_swin_nano.yaml", [*base, *more])

    return call


def pack(folder, arcname="."):
    with tarfile.open(folder.with_name(f"{folder.name}.tar"), "w") as archive:
        archive.add(folder, arcname=arcname)
    shutil.rmtree(folder)


def names(source):
    return [source.relative_name(index) for index in range(len(source))]


TWO = {split: {"a": ["1.png", "2.png"], "b": ["1.png"]} for split in ("train", "val")}
HIDDEN = {"train": {
    "a/.ipynb_checkpoints": ["1-checkpoint.png"], ".ipynb_checkpoints": ["2.png"], "b/@eaDir": ["1.png"],
    "a": ["._1.png", ".DS_Store"], "__MACOSX/a": ["1.png"], "b": ["Thumbs.db"],
}}  # fmt: skip


@pytest.mark.parametrize("form", ["folder", "tar", "tar with its own folder"])
def test_what_systems_leave_behind_is_no_data(build, config, form):
    root = build(HIDDEN, build(TWO))
    if form != "folder":
        for split in TWO:
            pack(root / split, "." if form == "tar" else split)
    train, val = open_splits(config(root), "train", "val")
    assert names(train) == names(val) == ["a/1", "a/2", "b/1"]
    assert train.classes == val.classes == ["a", "b"]
    assert [train.load(index)[1] for index in range(3)] == [0, 0, 1]
    report = check_imagenet(root)
    assert report.ok, report.findings
    assert report.counts == {"train classes": 2, "train images": 3, "val classes": 2, "val images": 3}


def test_links_to_folders_are_followed_once(build, config, tmp_path):
    root = build(TWO)
    far = build({"far": {"c": ["3.png"], "more": ["4.png"]}}, tmp_path / "elsewhere")
    (root / "train" / "a" / "more").symlink_to(far / "far" / "more")
    (root / "train" / "a" / "back").symlink_to(root / "train" / "a")
    for place in (root / "train" / "a", root / "train"):
        (place / "itself").symlink_to("itself")
    for split in TWO:
        (root / split / "c").symlink_to(far / "far" / "c")
    train, _ = open_splits(config(root, classes=3), "train", "val")
    assert train.classes == ["a", "b", "c"]
    assert names(train) == ["a/1", "a/2", "a/more/4", "b/1", "c/3"]


def test_a_class_that_training_lacks_is_named_with_both_places(build, config):
    root = build({"val": {"zebra": ["1.png"]}}, build(TWO))
    with pytest.raises(DataError) as caught:
        open_splits(config(root), "val")
    for word in (root / "train", root / "val", "zebra"):
        assert str(word) in str(caught.value)


def test_other_files_are_counted(build, config, caplog):
    root = build({"train": {"a": ["notes.txt", "x.json", "noending"], "": ["loose.png"]}}, build(TWO))
    with caplog.at_level(logging.INFO, "elsa"):
        train, _ = open_splits(config(root), "train", "val")
    assert len(train) == 3
    assert "3 files in class folders are no images by their names (1 .json, 1 .txt, 1 without ending)" in caplog.text
    assert "1 files lie beside the class folders" in caplog.text
    assert any("3 files in class folders" in note for note in check_imagenet(root).notes)


def test_too_many_classes_are_listed(build, config):
    root = build({split: {"docs": ["1.png"]} for split in TWO}, build(TWO))
    with pytest.raises(DataError, match=r"has 3 classes \(a, b, docs\), but MODEL.NUM_CLASSES is 2"):
        open_splits(config(root), "train")


def test_names_that_differ_little_are_different(build, config):
    labels = ["A", "a", "a ", "ä", "a.b"]
    root = build({split: {label: ["1.png"] for label in labels} for split in TWO})
    train, val = open_splits(config(root, classes=5), "train", "val")
    assert train.classes == val.classes == sorted(labels)
    assert [train.load(index)[1] for index in range(5)] == list(range(5))


def test_split_names_with_a_dot_are_folders(build, config):
    root = build({"train.v1": TWO["train"], "holdout": TWO["val"]})
    more = ("DATA.TRAIN_SPLIT=train.v1", "DATA.VAL_SPLIT=holdout")
    assert [len(source) for source in open_splits(config(root, *more), "train", "val")] == [3, 3]


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root and setpriv to drop its rights")
def test_folders_without_permission_are_one_line(build, root):
    code = (
        "import sys; from elsa.data import open_splits; from elsa.engine import load_config\n"
        "from elsa.core import UserError\n"
        "from elsa.core.archive import checkpoint_file\n"
        "from pathlib import Path\n"
        "for place in sys.argv[2:]:\n"
        "    try: open_splits(load_config(sys.argv[1], ['DATA.DATASET=folder', f'DATA.ROOT={place}',"
        " 'MODEL.NUM_CLASSES=2']), 'train', 'val')\n"
        "    except UserError as error: print(error)\n"
        "try: checkpoint_file(Path(sys.argv[2]) / 'x' / 'last.pt')\n"
        "except UserError as error: print(error)\n"
    )
    one, other = build(TWO, build(TWO).parent / "one"), build(TWO)
    for closed in (one, other / "train" / "a"):
        closed.chmod(0)
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-c", code]
    recipe = root / "configs/classification/digits_elsa_swin_nano.yaml"
    done = subprocess.run([*command, recipe, one, other], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert str(one) in lines[0]
    assert str(other / "train" / "a") in lines[1]
    assert all("cannot be" in line and "Permission denied" in line for line in lines)


# ---- tar files


def test_tar_files_in_a_tar_file_are_classes(build, config, tmp_path):
    """As the published training images of ImageNet come."""
    root = build(TWO)
    for label in ("a", "b"):
        pack(root / "train" / label)
    for split in TWO:
        pack(root / split)
    train, val = open_splits(config(root), "train", "val")
    assert names(train) == names(val)
    assert train.load(2)[0].size == (4, 4)
    assert train.name(2) == f"{root}/train.tar/b/1.png"


def test_a_cut_tar_file(build, config):
    root = build(TWO)
    for split in TWO:
        pack(root / split)
    path = root / "train.tar"
    path.write_bytes(path.read_bytes()[:1400])
    with pytest.raises(DataError, match=r"train\.tar is no tar file that can be read"):
        open_splits(config(root), "train")


# ---- order and names

NUMBERED = [str(number) for number in range(11)]
BY_NUMBER = {split: {label: ["1.png"] for label in NUMBERED} for split in TWO}


def labels(source):
    return {source.relative_name(index).partition("/")[0]: source.load(index)[1] for index in range(len(source))}


@pytest.mark.parametrize("form", ["folder", "tar"])
@pytest.mark.parametrize("order", ["", "text", "natural"])
def test_numbered_folders_have_the_order_that_is_asked_for(build, config, order, form):
    root = build(BY_NUMBER)
    for split in BY_NUMBER if form == "tar" else ():
        pack(root / split)
    expected = NUMBERED if order == "natural" else sorted(NUMBERED)
    for source in open_splits(config(root, f"DATA.CLASSES='{order}'", classes=11), "train", "val"):
        assert source.classes == expected
        assert labels(source) == {label: index for index, label in enumerate(expected)}
        assert source.order_is_open == (order == "")


def test_natural_order_is_that_of_timm():
    from timm.utils.misc import natural_key

    mixed = ["b10", "b9", "B1", "a", "10", "9", "n02", "Zebra", "apple", "x1y2", "x1y10"]
    assert natural(mixed) == sorted(sorted(mixed), key=natural_key)
    assert natural(["²", "1"]) == ["1", "²"]


def test_a_file_says_which_folder_is_which_class(build, config, tmp_path):
    root, listed = build(TWO), tmp_path / "classes.txt"
    listed.write_text("\ufeffb\tdog\r\na\tcat\r\n", encoding="utf-8")
    train, val = open_splits(config(root, f"DATA.CLASSES={listed}"), "train", "val")
    assert train.classes == val.classes == ["dog", "cat"]
    assert labels(train) == labels(val) == {"a": 1, "b": 0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb\na\n", "has the folder 'a' twice"),
        ("a\tx\nb\tx\n", "has the name 'x' twice"),
        ("a\nc\n", "does not name: b"),
        (None, "must be text, natural or a file"),
    ],
)
def test_a_file_of_classes_with_a_mistake(build, config, tmp_path, text, said):
    listed = tmp_path / "classes.txt"
    if text is not None:
        listed.write_text(text)
    with pytest.raises(DataError) as caught:
        open_splits(config(build(TWO), f"DATA.CLASSES={listed}"), "train")
    assert said in str(caught.value)
    assert str(listed) in str(caught.value)


def test_a_misspelt_order_is_seen(build, config):
    with pytest.raises(DataError, match="did you mean natural"):
        open_splits(config(build(TWO), "DATA.CLASSES=naturel"), "train")


def test_names_are_compared_and_both_lists_shown(build, config, tmp_path):
    (source,) = open_splits(config(build(TWO)), "train")
    path = tmp_path / "best.pt"
    check_belongs(path, {"classes": ["a", "b"]}, source)
    check_belongs(path, {}, source)
    for named in (["b", "a"], ["a", "c"]):
        with pytest.raises(ConfigError) as caught:
            check_belongs(path, {"classes": named}, source)
        for word in (path, f"{named[1]} in the file, b in the data", f"file's: {', '.join(named)}", "data's: a, b"):
            assert str(word) in str(caught.value)
        assert "DATA.CLASSES" in str(caught.value)


def test_weights_without_names_over_folders_of_two_orders(build, config, tmp_path):
    root = build(BY_NUMBER)
    (source,) = open_splits(config(root, classes=11), "val")
    with pytest.raises(ConfigError) as caught:
        check_belongs(tmp_path / "timm.pth", {}, source)
    for word in ("0, 1, 10, 2", "0, 1, 2, 3", "DATA.CLASSES=natural", "text"):
        assert word in str(caught.value)
    check_belongs(tmp_path / "ours.pt", {"classes": sorted(NUMBERED)}, source)
    for order in ("text", "natural"):
        check_belongs(
            tmp_path / "timm.pth", {}, open_splits(config(root, f"DATA.CLASSES={order}", classes=11), "val")[0]
        )


def test_label_maps_of_other_classes(build, config, tmp_path):
    (source,) = open_splits(config(build(TWO)), "train")
    (tmp_path / "labels.json").write_text('{"classes": ["b", "a"]}')
    with pytest.raises(DataError, match="maps of other classes: b there, a in the data"):
        LabelMaps(tmp_path, source, 2)
