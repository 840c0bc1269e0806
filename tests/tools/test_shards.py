"""tools/make_shards.py: what training sees of the shards is what it sees of the images they were made of."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_dataset

from elsa.data import open_splits, train_loader
from elsa.engine import load_config

COUNTS = {"train": {"ant": 7, "bee.x": 5}, "val": {"ant": 2, "bee.x": 3}}


@pytest.fixture
def images(tmp_path):
    """Class folders with photos of noise in several formats; a name with dots, one that is there twice."""
    random = np.random.default_rng(0)
    for split, classes in COUNTS.items():
        for label, count in classes.items():
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                ending = ("JPEG", "png", "webp")[number % 3]
                pixels = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number // 2}.{ending}")
    (tmp_path / "images/train/ant/0.JPEG").rename(tmp_path / "images/train/ant/0.1.JPEG")
    shutil.copy(tmp_path / "images/train/ant/0.png", tmp_path / "images/train/ant/0_1.png")
    return tmp_path / "images"


@pytest.fixture
def make(tool, tmp_path):
    """``make(SOURCE, …)`` writes shards of half a dozen images into ``shards``; its outcome."""

    def call(source, *options):
        small = ("--output", tmp_path / "shards", "--size-mb", "1", "--workers", "0")
        return tool("make_shards", source, *small, *options)

    call.output = tmp_path / "shards"
    return call


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr("elsa.tools.tasks.shards.MB", 10_000)


@pytest.fixture
def config(root):
    def call(dataset, place, *overrides):
        base = [f"DATA.DATASET={dataset}", f"DATA.ROOT={place}", "MODEL.NUM_CLASSES=2", "DATA.IMG_SIZE=8"]
        more = ["DATA.BATCH=1", "AUG.SCALE=[1,1]", "AUG.RATIO=[1,1]"]
        return load_config(root / "configs/classification/digits_elsa_swin_nano.yaml", [*base, *more, *overrides])

    return call


def contents(config, split="train"):
    """(bytes, label) of all files, sorted; and the class names."""
    (source,) = open_splits(config, split)
    items = [source.items[index] for index in range(len(source))]
    read = [(i.read() if hasattr(i, "read") else Path(i).read_bytes(), label) for i, label in items]
    return sorted(read), source.classes


def epoch(config):
    """(pixels, label) of an epoch of the training loader, sorted."""
    (source,) = open_splits(config, "train")
    batches = [batch for step in train_loader(config, source, 0, 1).epoch(0) for batch in step]
    return sorted((batch.images.numpy().tobytes(), batch.targets.item()) for batch in batches)


def test_shards_of_a_folder_hold_its_files_byte_for_byte(images, make, config):
    outcome = make(images)
    assert outcome.code == 0, outcome.err
    folder, shards = config("folder", images), config("wds/shards", make.output)
    for split in COUNTS:
        assert contents(shards, split) == contents(folder, split)
    assert epoch(shards) == epoch(folder)
    assert "train with --set DATA.DATASET=wds/shards" in outcome.err
    names = sorted(path.name for path in make.output.iterdir())
    assert names[:3] == ["_index-train.npz", "_index-validation.npz", "_info.json"]
    assert names[3] == "shards-train-000000.tar"
    assert len([name for name in names if name.startswith("shards-train-")]) > 1


def test_timm_s_own_reader_reads_them(images, make):
    assert make(images).code == 0
    dataset = create_dataset("wds/shards", root=str(make.output), split="validation")
    assert sorted(label for _, label in dataset) == [0, 0, 1, 1, 1]


def test_samples_are_called_as_their_files_and_neighbours_stay_apart(images, make, config):
    assert make(images).code == 0
    (source,) = open_splits(config("wds/shards", make.output), "train")
    names = [source.relative_name(index) for index in range(len(source))]
    assert len(set(names)) == len(names) == 13
    assert {"bee.x/0", "bee.x/1"} <= set(names)
    assert sum(name.startswith("ant/0_1") for name in names) == 2
    assert [name.split("/")[0] for name in names] != sorted(name.split("/")[0] for name in names)
    assert make(images, "--output", make.output.with_name("other"), "--shuffle", "1").code == 0
    (other,) = open_splits(config("wds/x", make.output.with_name("other")), "train")
    assert [other.relative_name(index) for index in range(13)] != names


def test_a_recipe_says_what_the_images_are(make, root, tmp_path, config):
    overrides = ["--set", f"DATA.ROOT={tmp_path / 'digits'}"]
    outcome = make(root / "configs/classification/digits_elsa_swin_nano.yaml", *overrides, "--size-mb", "20")
    assert outcome.code == 0, outcome.err
    ten = "MODEL.NUM_CLASSES=10"
    shards, folder = (config(*place, ten) for place in (("wds/x", make.output), ("folder", tmp_path / "digits")))
    assert contents(shards) == contents(folder)
    assert contents(shards)[1] == [str(digit) for digit in range(10)]


def test_lists_with_numbers_or_classes(images, make, config, tmp_path):
    for kind, label in (("numbers", {"ant": "1", "bee.x": "0"}), ("names", {"ant": "ant", "bee.x": "a bee"})):
        space = " " if kind == "numbers" else "\t"
        for split in COUNTS:
            rows = [f"images/{f.relative_to(images)}{space}{label[f.parent.name]}" for f in images.glob(f"{split}/*/*")]
            (tmp_path / f"{split}.txt").write_text("\n".join([*rows, ""]))
        output = tmp_path / kind
        outcome = make(tmp_path / "train.txt", "--val", tmp_path / "val.txt", "--output", output)
        assert outcome.code == 0, outcome.err
        found, classes = contents(config("wds/x", output))
        assert classes == ([] if kind == "numbers" else ["a bee", "ant"])
        assert found == sorted((content, 1 - number) for content, number in contents(config("folder", images))[0])


def test_pixels_without_a_file_become_png(monkeypatch, make, root, config):
    """What torchvision's readers give as arrays loses nothing."""

    class Pixels:
        classes = ("a", "b")

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return Image.new("RGB", (9, 7), (index, 2, 3)), index % 2

    monkeypatch.setattr("elsa.data.images.readers.create_dataset", lambda *_, **__: Pixels())
    recipe = root / "configs/classification/digits_elsa_swin_nano.yaml"
    outcome = make(recipe, "--set", "DATA.DATASET=torch/pixels", "MODEL.NUM_CLASSES=2")
    assert outcome.code == 0, outcome.err
    monkeypatch.undo()
    (source,) = open_splits(config("wds/x", make.output), "train")
    found = sorted((image.getpixel((0, 0)), label) for image, label in map(source.load, range(4)))
    assert found == [((index, 2, 3), index % 2) for index in range(4)]


def test_unreadable_images_are_left_out_up_to_a_number_and_writing_goes_on(images, make, config, refused):
    """What was written before stays, byte for byte."""
    bad = images / "val/ant/0.JPEG"
    bad.write_bytes(b"no image")
    refused(make(images, "--max-bad", "0"), "1 images cannot be read (--max-bad is 0)", str(bad))
    assert not (make.output / "_info.json").exists()
    before = {path: path.stat().st_mtime_ns for path in make.output.glob("*-train-*.tar")}
    assert before
    refused(make(images, "--max-bad", "0"), "1 images cannot be read (--max-bad is 0)", str(bad), "written without it")
    refused(make(images, "--shuffle", "3"), "the beginning of other shards")
    cut = make.output / ".shards-validation-000000.tar.1.tmp"
    cut.write_bytes(b"what a killed process leaves")
    outcome = make(images)
    assert outcome.code == 0, outcome.err
    assert "validation: 4 images in 2 shards, 1 left out" in outcome.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not cut.exists() and not (make.output / "_unfinished.json").exists()
    assert len(contents(config("wds/x", make.output), "val")[0]) == 4


def test_several_processes_write_the_same(images, make):
    assert make(images).code == 0
    assert make(images, "--workers", "2", "--output", make.output.with_name("two"), "--name", "shards").code == 0
    for path in sorted(make.output.glob("*.tar")):
        assert path.read_bytes() == (make.output.with_name("two") / path.name).read_bytes()


def test_shards_are_not_written_over(images, make, refused):
    assert make(images).code == 0
    before = sorted((path.name, path.stat().st_mtime_ns) for path in make.output.iterdir())
    refused(make(images), "holds shards already")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in make.output.iterdir()) == before
    refused(make(images, "--output", images), "is not empty")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--val", "x.txt"], "--val has no effect where SOURCE is a folder"),
        (["--set", "DATA.BATCH=2"], "--set has no effect where SOURCE is a folder"),
        (["--name", "a.b"], "--name a.b must have no / and no dot"),
        (["--classes", "natrual"], "did you mean natural?"),
    ],
)
def test_options_that_make_no_sense(images, make, refused, options, said):
    refused(make(images, *options), said)
    assert not make.output.exists()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("elsa_swin_tny", "did you mean elsa_swin_tiny?"),
        ("mask_rcnn_elsa_swin_tiny_1x", "a recipe of detection; this is for classification"),
        ("empty", "has no folder (nor .tar file) train"),
        ("list.txt", "line 2: 'b.png' is neither"),
        ("blank.txt", "names no images"),
    ],
)
def test_sources_that_are_none(make, refused, tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("a.png 1\nb.png\n")
    (tmp_path / "blank.txt").write_text("\n")
    refused(make(source), said)


def test_a_disk_without_room(images, make, refused, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 100))
    refused(make(images), "the shards take about", "0 MB are free")
    assert not make.output.exists()


def test_the_info_file_counts_each_shard(images, make):
    assert make(images).code == 0
    info = json.loads((make.output / "_info.json").read_text())
    assert info["classes"] == ["ant", "bee.x"]
    for split in info["splits"].values():
        for name, count in zip(split["filenames"], split["shard_lengths"], strict=True):
            with tarfile.open(make.output / name) as archive:
                entries = archive.getnames()
                first = Image.open(io.BytesIO(archive.extractfile(entries[0]).read()))
            assert len(entries) == 2 * count
            assert first.size == (16, 12)
        assert sum(split["shard_lengths"]) == split["num_samples"]
