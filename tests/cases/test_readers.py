"""timm's readers with data as people have them: columns of other names, shards without counts, labels out of range."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import types

import pytest
from PIL import Image

from elsa.core import UserError
from elsa.data import DataError, eval_loader, open_splits, train_loader
from elsa.engine import load_config


def picture():
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 20, 20)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def config(root, tmp_path):
    def call(*more):
        base = ["MODEL.NUM_CLASSES=3", "DATA.IMG_SIZE=8", "DATA.BATCH=2", f"DATA.ROOT={tmp_path}"]
        return load_config(root / "configs/classification/digits_elsa_swin_nano.yaml", [*base, *more])

    return call


def refusal(config, *names):
    with pytest.raises(UserError) as caught:
        open_splits(config, *(names or ("train", "val")))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- Hugging Face


class Image_:
    pass


class ClassLabel:
    names = ("a", "b", "c")


class Value:
    def __init__(self, dtype):
        self.dtype = dtype


Image_.__name__ = "Image"


@pytest.fixture
def hugging_face(monkeypatch):
    """``hugging_face({"img": "image", "fine_label": "class"})`` stands in for the package ``datasets``."""
    kinds = {"image": Image_, "class": ClassLabel, "int": lambda: Value("int64"), "text": lambda: Value("string")}

    def call(columns, label=1):
        features = {name: kinds[kind]() for name, kind in columns.items()}

        class Data:
            info = types.SimpleNamespace(features=features, splits={})

            def __init__(self):
                self.features = features

            def cast_column(self, name, _):
                if name not in features:
                    raise KeyError(name)
                return self

            def __len__(self):
                return 4

            def __getitem__(self, index):
                row = {"image": {"bytes": picture(), "path": None}, "class": label, "int": label, "text": "x"}
                return {name: row[kind] for name, kind in columns.items()}

        module = types.ModuleType("datasets")
        module.load_dataset = lambda *_, **__: Data()
        module.Image = lambda decode: None
        monkeypatch.setitem(sys.modules, "datasets", module)
        monkeypatch.delitem(sys.modules, "timm.data.readers.reader_hfds", raising=False)

    yield call
    sys.modules.pop("timm.data.readers.reader_hfds", None)


@pytest.mark.parametrize(
    "columns",
    [
        {"img": "image", "label": "class"},
        {"image": "image", "fine_label": "class"},
        {"id": "int", "pixels": "image", "what": "class"},
        {"image": "image", "mask": "image", "label": "int"},
    ],
    ids=lambda columns: " ".join(columns),
)
def test_columns_are_found_by_what_they_hold(hugging_face, config, columns):
    hugging_face(columns)
    train, val = open_splits(config("DATA.DATASET=hfds/x"), "train", "val")
    image, label = train.load(0)
    assert (image.size, label, len(val)) == ((8, 8), 1, 4)
    assert train.classes == ([] if "int" in columns.get("label", "") else ["a", "b", "c"])


@pytest.mark.parametrize(
    ("columns", "keys", "said"),
    [
        ({"image": "image", "fine_label": "class", "coarse_label": "class"}, [], ["label", "DATA.LABEL_KEY"]),
        ({"a": "image", "b": "image", "label": "class"}, [], ["holds the image", "DATA.IMAGE_KEY", "a (Image)"]),
        ({"image": "image", "caption": "text"}, [], ["holds the label", "caption (Value)"]),
        ({"image": "image", "label": "text"}, ["DATA.LABEL_KEY=label"], ["no labels"]),
        ({"image": "image", "fine": "class"}, ["DATA.LABEL_KEY=fien"], ["fien is no column", "did you mean fine"]),
    ],
)
def test_columns_that_leave_a_doubt_are_listed(hugging_face, config, columns, keys, said):
    hugging_face(columns)
    text = refusal(config("DATA.DATASET=hfds/x", *keys))
    for word in (*said, *columns):
        assert word in text


def test_a_column_can_be_named(hugging_face, config):
    hugging_face({"image": "image", "fine_label": "class", "coarse_label": "class"})
    (train,) = open_splits(config("DATA.DATASET=hfds/x", "DATA.LABEL_KEY=coarse_label"), "train")
    assert train.items.label_key == "coarse_label"


@pytest.mark.parametrize("label", [-1, 3, None, "a"])
def test_labels_that_the_model_has_not(hugging_face, config, label):
    """−1 is what test splits without labels have."""
    hugging_face({"image": "image", "label": "int"}, label)
    (train,) = open_splits(config("DATA.DATASET=hfds/x"), "train")
    with pytest.raises(DataError, match=r"^image 0 has the label .*MODEL.NUM_CLASSES 3 labels are 0 … 2"):
        train.load(0)


@pytest.mark.parametrize("error", [ConnectionError("offline"), KeyError("split"), Exception("a\nb"), TypeError("x")])
def test_whatever_a_reader_raises_is_one_line(hugging_face, config, error):
    hugging_face({"image": "image", "label": "class"})

    def fail(*_, **__):
        raise error

    sys.modules["datasets"].load_dataset = fail
    text = refusal(config("DATA.DATASET=hfds/x"))
    assert "hfds/x" in text
    assert "split train" in text


@pytest.mark.parametrize("dataset", ["folder", "torch/cifar10"])
@pytest.mark.parametrize("key", ["IMAGE_KEY", "LABEL_KEY"])
def test_keys_without_effect(config, dataset, key):
    assert f"DATA.{key} x has no effect" in refusal(config(f"DATA.DATASET={dataset}", f"DATA.{key}=x"), "train")


def test_an_order_of_folders_without_folders(config):
    assert "DATA.CLASSES natural has no effect" in refusal(config("DATA.DATASET=wds/x", "DATA.CLASSES=natural"))


# ---- WebDataset


@pytest.fixture
def stream(tmp_path):
    """The overriding that makes a stream of the shards."""
    return f"DATA.ROOT=pipe:cat {tmp_path}"


@pytest.fixture
def shards(tmp_path):
    """``shards("train", 2, 12)``: shards train-0.tar and train-1.tar of twelve samples together."""

    def call(split, parts, count, ending="png", label=lambda number: number % 3, content=picture):
        for part in range(parts):
            with tarfile.open(tmp_path / f"{split}-{part}.tar", "w") as archive:
                for number in range(part, count, parts):
                    for kind, data in ((ending, content()), ("cls", str(label(number)).encode())):
                        entry = tarfile.TarInfo(f"{number:06d}.{kind}")
                        entry.size = len(data)
                        archive.addfile(entry, io.BytesIO(data))

    return call


def of(split, parts, count=""):
    return f"DATA.{split}_SPLIT={'train' if split == 'TRAIN' else 'validation'}-{{0..{parts - 1}}}.tar{count}"


@pytest.mark.parametrize("ending", ["png", "jpeg", "bmp", "JPG"])
@pytest.mark.parametrize("count", ["", "|6"])
def test_validation_is_counted(shards, config, count, ending):
    shards("validation", 2, 6, ending)
    made = config("DATA.DATASET=wds/x", of("VAL", 2, count))
    (val,) = open_splits(made, "val")
    loader = eval_loader(made, val, 0, 1)
    assert loader.total == 6
    assert sum(len(batch.targets) for batch in loader) == 6


def test_a_number_that_is_wrong_is_corrected(shards, config):
    shards("validation", 2, 6)
    text = refusal(config("DATA.DATASET=wds/x", of("VAL", 2, "|4")), "val")
    assert "says 4 samples, its shards hold 6: write validation-{0..1}.tar|6" in text


def test_an_info_file_that_is_wrong(shards, config, tmp_path):
    shards("validation", 1, 6)
    info = {"name": "validation", "num_samples": 9, "filenames": ["validation-0.tar"], "shard_lengths": [9]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": info}}))
    assert "says 9 samples, its shards hold 6: correct its _info.json" in refusal(config("DATA.DATASET=wds/x"), "val")
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"validation": {"name": "validation"}}}))
    assert "num_samples" in refusal(config("DATA.DATASET=wds/x"), "val")


@pytest.mark.parametrize("split", ["TRAIN", "VAL"])
def test_a_stream_needs_a_number(shards, config, stream, split):
    name = "train" if split == "TRAIN" else "validation"
    shards(name, 2, 6)
    text = refusal(config("DATA.DATASET=wds/x", of(split, 2), stream), "train" if split == "TRAIN" else "val")
    assert f"DATA.{split}_SPLIT {name}-{{0..1}}.tar does not say how many samples there are" in text


def test_shards_on_a_disk_need_no_number(shards, config):
    shards("train", 2, 6)
    (train,) = open_splits(config("DATA.DATASET=wds/x", of("TRAIN", 2)), "train")
    assert len(train) == 6


@pytest.mark.parametrize("split", ["TRAIN", "VAL"])
def test_shards_that_are_not_there_or_broken(shards, config, tmp_path, split):
    name = "train" if split == "TRAIN" else "validation"
    shards(name, 2, 6)
    text = refusal(config("DATA.DATASET=wds/x", of(split, 4, "|6")), name[:3] if split == "VAL" else name)
    assert "2 of 4 shards do not exist" in text
    assert f"{name}-2.tar" in text
    (tmp_path / f"{name}-1.tar").write_bytes(b"no tar")
    text = refusal(config("DATA.DATASET=wds/x", of(split, 2, "|6")), name[:3] if split == "VAL" else name)
    assert f"{name}-1.tar is no tar file" in text


@pytest.mark.parametrize(
    ("parts", "processes", "workers", "enough"),
    [(1, 2, 0, False), (2, 2, 0, True), (8, 2, 8, False), (9, 2, 8, True), (3, 4, 1, False), (4, 4, 1, True)],
)
def test_every_process_needs_a_shard_of_a_stream(shards, config, stream, parts, processes, workers, enough):
    shards("train", parts, 20)
    made = config("DATA.DATASET=wds/x", of("TRAIN", parts, "|20"), f"DATA.WORKERS={workers}", "DATA.BATCH=4", stream)
    (train,) = open_splits(made, "train")
    for rank in range(processes):
        if enough:
            train_loader(made, train, rank, processes)
            continue
        with pytest.raises(DataError, match=f"{parts} shards for {processes} processes.*DATA.WORKERS"):
            train_loader(made, train, rank, processes)


@pytest.mark.parametrize(
    ("parts", "processes", "workers", "said"),
    [
        (10, 2, 2, ["10 shards for 2 processes × 2 loader processes = 4: 2 of them read 3 and 2 read 2",
                    "up to 10% come twice", "take a multiple of 4 shards, DATA.WORKERS=1, or plain .tar files"]),
        (3, 1, 2, ["1 of them read 2 and 1 read 1", "up to 17%", "a multiple of 2 shards, DATA.WORKERS=1, or"]),
        (3, 2, 0, ["2 processes × 1 loader processes = 2", "a multiple of 2 shards, or plain .tar files on a local"]),
        (8, 2, 4, []),
        (8, 2, 2, []),
        (5, 1, 0, []),
    ],
)  # fmt: skip
def test_what_a_stream_s_shards_lose_where_they_divide_unevenly_is_said_once(
    shards, config, stream, caplog, parts, processes, workers, said
):
    shards("train", parts, 20)
    made = config("DATA.DATASET=wds/x", of("TRAIN", parts, "|20"), f"DATA.WORKERS={workers}", "DATA.BATCH=4", stream)
    (train,) = open_splits(made, "train")
    for rank in range(processes):
        train_loader(made, train, rank, processes)
    lines = [record.getMessage() for record in caplog.records if "loader processes" in record.getMessage()]
    assert len(lines) == bool(said)
    for words in said:
        assert words in lines[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(content=lambda: b"no image"), "give no batch of 2"),
        (dict(label=lambda number: "dog"), "give no batch of 2"),
        (dict(label=lambda number: 7), "has the label 7"),
    ],
    ids=["unreadable", "words for labels", "labels out of range"],
)
def test_a_stream_without_a_batch_ends(shards, config, stream, options, said):
    shards("train", 1, 6, **options)
    made = config("DATA.DATASET=wds/x", of("TRAIN", 1, "|6"), stream)
    (train,) = open_splits(made, "train")
    with pytest.raises(DataError, match=said):
        list(train_loader(made, train, 0, 1).epoch(0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(label=lambda number: "dog"), "no sample of 1 shards has an image and a label: .*000000: its .cls holds"),
        (dict(label=lambda number: -1), "6 have negative labels"),
        (dict(label=lambda number: 7 * (number == 4)), r"train-0.tar/000004.png has the label 7"),
        (dict(ending="txt"), "000000: no image, but txt,cls"),
    ],
    ids=["words for labels", "no labels", "labels out of range", "no images"],
)
def test_shards_without_what_is_needed(shards, config, options, said):
    shards("train", 1, 6, **options)
    assert re.search(said, refusal(config("DATA.DATASET=wds/x", of("TRAIN", 1)), "train"))


def test_samples_without_a_label_are_left_out_and_said(shards, config, caplog):
    shards("train", 1, 6, label=lambda number: "?" if number == 2 else number % 3)
    (train,) = open_splits(config("DATA.DATASET=wds/x", of("TRAIN", 1, "|6")), "train")
    assert [train.name(index)[-10:-4] for index in range(len(train))] == [f"{n:06d}" for n in (0, 1, 3, 4, 5)]
    assert "1 of 6 samples are left out, the first" in caplog.text
    assert "train-0.tar/000002" in caplog.text


def test_a_shard_that_is_cut_off(shards, config, tmp_path):
    shards("train", 1, 6, "bmp", content=lambda: bytes(20_000))
    path = tmp_path / "train-0.tar"
    path.write_bytes(path.read_bytes()[:70_000])
    assert re.search(
        "train-0.tar is (cut off|no tar file)", refusal(config("DATA.DATASET=wds/x", of("TRAIN", 1)), "train")
    )


def test_labels_in_json(shards, config, tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for number in range(5):
            about = json.dumps({"label": number % 3 if number else -1, "more": {"fine": 2}}).encode()
            for kind, data in (("png", picture()), ("json", about)):
                entry = tarfile.TarInfo(f"a.b/{number}.{kind}")
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    for key, labels in (("label", [1, 2, 0, 1]), ("more/fine", [2] * 5)):
        (train,) = open_splits(config("DATA.DATASET=wds/x", of("TRAIN", 1), f"DATA.LABEL_KEY={key}"), "train")
        assert [train.load(index)[1] for index in range(len(train))] == labels
    assert "its .json has no lable" in refusal(
        config("DATA.DATASET=wds/x", of("TRAIN", 1), "DATA.LABEL_KEY=lable"), "train"
    )


# ---- torchvision


def test_torchvision_folders_are_decoded_as_all_others(config, tmp_path):
    """Its own loader would lose the camera's note on orientation."""
    for split in ("train", "val"):
        for label in ("a", "b", "c"):
            (tmp_path / split / label).mkdir(parents=True)
            image = Image.new("RGB", (8, 4))
            exif = image.getexif()
            exif[0x0112] = 6
            image.save(tmp_path / split / label / "1.jpg", exif=exif)
    (train,) = open_splits(config("DATA.DATASET=torch/image_folder"), "train")
    assert train.load(0)[0].size == (4, 8)
    assert train.classes == ["a", "b", "c"]
