"""Label maps as users have them: what their numbers mean, which image they belong to, what is refused and found."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from elsa.core import ConfigError, DataError, logger
from elsa.data import UnreadableImage
from elsa.data.checks import check_ade20k
from elsa.data.label_maps import IGNORED, Labelling
from elsa.models.mm import operators

operators.provide()

from elsa.data.mm import maps  # noqa: E402  after mmcv's operators

NAMES = ("sky", "tree", "road")
COLOUR = np.full((6, 8, 3), 90, np.uint8)
LABELS = np.tile(np.array([0, 1, 2, 3], np.uint8), (6, 2))


def save(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(path, **options)
    return path


@pytest.fixture
def pair(tmp_path):
    """``pair(map, name="a.png", image="a.jpg", split="training")`` adds an image and its map to a data set."""

    def add(values=LABELS, name="a.png", image="a.jpg", split="training", pixels=COLOUR, **options):
        save(tmp_path / "images" / split / image, pixels, **options)
        return save(tmp_path / "annotations" / split / name, values)

    add.root = tmp_path
    return add


@pytest.fixture
def opened(tmp_path):
    """The data set of a split."""

    def call(names=NAMES, split="training", **options):
        metainfo = dict(classes=names, **options.pop("metainfo", {}))
        steps = [dict(type="DecodeImage"), dict(type="LoadCheckedAnnotations")]
        prefix = dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}")
        return maps.CheckedMapsDataset(
            data_root=str(tmp_path), data_prefix=prefix, metainfo=metainfo, pipeline=steps, **options
        )

    return call


@pytest.fixture
def said(monkeypatch):
    lines = []
    told = SimpleNamespace(info=lambda form, *values: lines.append(form % values))
    monkeypatch.setattr(maps, "logger", told)
    return lines


def loaded(dataset, number=0):
    return dataset[number]["gt_seg_map"]


def kinds(root, classes=3, **options):
    return {finding.kind for finding in check_ade20k(root, classes, splits=("train",), **options).findings}


def test_the_logger_is_the_one_that_is_replaced_here():
    assert maps.logger is logger


# ---- forms -----------------------------------------------------------------------------------------------------------


def palette(values):
    image = Image.fromarray(values, "P")
    image.putpalette([255 - number // 3 for number in range(768)])
    return image


FORMS = {
    "grey": ("a.png", Image.fromarray),
    "palette": ("a.png", palette),
    "grey in colours": ("a.png", lambda values: Image.fromarray(np.stack([values] * 3, 2))),
    "grey in colours, opaque": ("a.png", lambda v: Image.fromarray(np.stack([v, v, v, np.full_like(v, 255)], 2))),
    "16 bits": ("a.png", lambda values: Image.fromarray(values.astype(np.uint16))),
    "16 bits, TIFF": ("a.tif", lambda values: Image.fromarray(values.astype(np.uint16))),
    "32 bits": ("a.tiff", lambda values: Image.fromarray(values.astype(np.int32))),
    "BMP": ("a.bmp", Image.fromarray),
    "BMP, palette": ("a.bmp", palette),
}


@pytest.mark.parametrize("form", FORMS)
def test_numbers_come_as_they_are_stored(pair, opened, form):
    name, make = FORMS[form]
    pair(make(LABELS), name)
    assert np.array_equal(loaded(opened()), np.where(LABELS == 0, IGNORED, LABELS - 1))
    assert not kinds(pair.root)


def test_grey_in_colours_is_said_once(pair, opened, said):
    for name in "ab":
        pair(np.stack([LABELS] * 3, 2), f"{name}.png", f"{name}.jpg")
    opened()
    assert [line for line in said if "three equal channels" in line] == said
    assert len(said) == 1
    report = check_ade20k(pair.root, 3, splits=("train",))
    assert "train: 2 annotations hold labels in three equal channels, taken for one" in report.notes


@pytest.mark.parametrize(
    ("make", "kind", "parts"),
    [
        (lambda v: np.stack([v, v, v + 1], 2), "annotation is no label map", ["3 channels (RGB)", "no colours"]),
        (lambda v: Image.fromarray(v.astype(np.float32)), "annotation is no label map", ["fractions (F)"]),
        (lambda v: v + np.uint8(1), "label out of range", ["label 4;", "1 … 3"]),
        (lambda v: v.astype(np.uint16) + np.uint16(256), "label out of range", ["label 256-259"]),
        (lambda v: v[:-1], "annotation of another size", ["is 8×5, its image 8×6"]),
        (lambda v: v.T.copy(), "annotation of another size", ["is 6×8, its image 8×6"]),
    ],
    ids=["colours", "fractions", "range", "16 bits", "size", "turned"],
)  # fmt: skip
def test_refused_before_any_work_when_it_is_loaded_and_by_the_check(pair, opened, make, kind, parts):
    name = "a.tif" if kind == "annotation is no label map" and "F" in parts[0] else "a.png"
    path = pair(make(LABELS), name)
    for attempt in (opened, lambda: opened(look=0)[0]):
        with pytest.raises(DataError) as refusal:
            attempt()
        assert str(refusal.value).startswith(f"label map {path} ")
        assert all(part in str(refusal.value) for part in parts)
    assert kind in kinds(pair.root)


def test_a_map_that_cannot_be_decoded_is_no_mistake_of_the_configuration(pair, opened, said):
    path = pair()
    path.write_bytes(path.read_bytes()[:40])
    pair(LABELS, "b.png", "b.jpg")
    dataset = opened()
    assert f"1 cannot be read: {path} cannot be read" in said[0]
    with pytest.raises(UnreadableImage, match=r"label map .*a\.png cannot be read"):
        dataset.prepare_data(0)
    assert kinds(pair.root) == {"annotation unreadable"}
    (pair.root / "annotations/training/b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png cannot be read.* and so are all 2 looked at"):
        opened()


def test_a_photo_that_a_camera_turned_and_its_map_that_is_not(pair, opened):
    note = Image.Exif()
    note[0x0112] = 6
    pair(LABELS, exif=note)
    for attempt in (opened, lambda: opened(look=0)[0]):
        with pytest.raises(DataError, match=r"is 8×6, its image 6×8 because .* image_orientation = 'stored'"):
            attempt()
    assert kinds(pair.root) == {"annotation of another size"}
    assert not kinds(pair.root, orientation="stored")
    pair(np.rot90(LABELS, -1).copy(), exif=note)
    assert loaded(opened()).shape == (8, 6)


# ---- what the numbers mean -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 7, 200, 255, 65535])
def test_masks_of_0_and_another_number(pair, opened, number):
    mask = np.where(LABELS == 3, number, 0).astype(np.uint16 if number > 255 else np.uint8)
    pair(mask)
    two = ("background", "road")
    if number != 1:
        with pytest.raises(DataError, match=rf"label_map=\{{{number}: 1\}}" if number == 255 else f"label {number}"):
            opened(two)
        assert kinds(pair.root, 2) & {"no labelled pixel", "label out of range"}
    dataset = opened(two, reduce_zero_label=False, metainfo=dict(label_map={number: 1}))
    assert np.array_equal(loaded(dataset), LABELS == 3)
    stored = opened(two, reduce_zero_label=False, metainfo=dict(label_map={str(number): 1}))
    assert np.array_equal(loaded(stored), LABELS == 3)
    assert not kinds(pair.root, 2, reduced=False, replaced={number: 1})


def test_the_cure_for_one_class_of_255_is_named_and_works(pair, opened):
    pair(np.where(LABELS == 3, 255, 0).astype(np.uint8))
    with pytest.raises(DataError, match=r"not one pixel has a label: the maps hold 0, 255.*two classes, background"):
        opened(("road",))
    with pytest.raises(DataError, match=r"one class \(road\).*classes=\('background', 'road'\).*num_classes=2"):
        opened(("road",), metainfo=dict(label_map={255: 1}))
    cured = opened(("background", "road"), reduce_zero_label=False, metainfo=dict(label_map={255: 1}))
    assert set(np.unique(loaded(cured))) == {0, 1}


def test_zero_as_a_class(pair, opened):
    pair(np.where(LABELS == 3, 255, LABELS).astype(np.uint8))
    dataset = opened(reduce_zero_label=False)
    assert np.array_equal(loaded(dataset), np.where(LABELS == 3, IGNORED, LABELS))
    assert not kinds(pair.root, reduced=False)
    pair(LABELS)
    with pytest.raises(DataError, match=r"label 3; there are 0 … 2, and 255 for ignored; reduce_zero_label=True"):
        opened(reduce_zero_label=False)


def test_replacements_and_both_conventions():
    values = np.array([[0, 10, 20, 255]], np.uint8)
    reduced = Labelling(2, True, {10: 1, 20: 2})
    assert reduced.labels(values, (0, 10, 20, 255)).tolist() == [[255, 0, 1, 255]]
    plain = Labelling(2, False, {10: 1, 20: 255, 255: 0})
    assert plain.labels(values, (0, 10, 20, 255)).tolist() == [[0, 1, 255, 0]]
    some = Labelling(3, True, {}, {0: 255, 1: 0, 2: 1})
    assert some.labels(np.array([[0, 1, 2, 3, 255]]), (0, 1, 2, 3, 255)).tolist() == [[255, 255, 0, 1, 255]]


@pytest.mark.parametrize(
    "wrong", [{255: 9}, {"a": 1}, {-1: 1}, {70000: 1}, {255: 1.0}, {255: None}, {True: 1}], ids=str
)
def test_replacements_that_make_no_labels(pair, opened, wrong):
    pair()
    with pytest.raises(ConfigError, match="label_map"):
        opened(metainfo=dict(label_map=wrong))


def test_more_classes_than_eight_bits(pair, opened):
    pair()
    assert len(opened([f"c{number}" for number in range(254)])) == 1
    with pytest.raises(ConfigError, match="at most 254 classes"):
        opened([f"c{number}" for number in range(255)])


@pytest.mark.parametrize("ignored", [255, 0])
def test_labels_that_were_reduced_already_are_said(pair, opened, said, ignored):
    values = np.where(LABELS == 0, ignored, LABELS - 1).astype(np.uint8)
    pair(values)
    opened()
    assert any("none is 3" in line and "reduce_zero_label=False" in line for line in said)
    assert "labels are probably reduced already" in kinds(pair.root)


def test_what_never_occurs_is_said(pair, opened, said):
    pair(np.where(LABELS == 2, 0, LABELS).astype(np.uint8))
    opened(metainfo=dict(label_map={77: 1}))
    assert any("1 of 3 classes never occur: tree" in line for line in said)
    assert any("label_map replaces 77, which does not occur" in line for line in said)


def test_rare_labels_are_looked_for_in_all_maps(pair, opened):
    for number in range(12):
        pair(LABELS * np.uint8(number == 7), f"{number:02d}.png", f"{number:02d}.jpg")
    assert len(opened(look=3)) == 12
    (pair.root / "annotations/training/07.png").write_bytes((pair.root / "annotations/training/08.png").read_bytes())
    with pytest.raises(DataError, match="not one pixel has a label: the maps hold 0,"):
        opened(look=3)


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_all_endings_in_folders_below(pair, opened):
    for number, ending in enumerate((".jpg", ".JPG", ".jpeg", ".png", ".webp", ".bmp", ".tif")):
        pair(
            LABELS, f"f{number % 2}/x{number}{('.png', '.tif', '.bmp')[number % 3]}", f"f{number % 2}/x{number}{ending}"
        )
    for name in ("images/training/.ipynb_checkpoints/x0.jpg", "images/training/f0/._x0.jpg"):
        save(pair.root / name, COLOUR)
    (pair.root / "annotations/training/.DS_Store").write_bytes(b"x")
    assert len(opened()) == 7
    report = check_ade20k(pair.root, 3, splits=("train",))
    assert report.ok
    assert report.counts["train images"] == report.counts["train annotations"] == 7


def test_equal_names_in_two_folders_stay_two(pair, opened):
    pair(LABELS, "a/x.png", "a/x.jpg")
    pair(np.where(LABELS == 3, 1, LABELS).astype(np.uint8), "b/x.png", "b/x.jpg")
    dataset = opened()
    assert [3 - 1 in loaded(dataset, number) for number in range(2)] == [True, False]
    (pair.root / "annotations/training/b/x.png").unlink()
    with pytest.raises(DataError, match=r"1 with no label map: b/x"):
        opened()


def test_two_images_of_one_name(pair, opened):
    pair()
    pair(LABELS, image="a.png")
    with pytest.raises(DataError, match=r"2 files have the name a: .*a\.jpg, .*a\.png"):
        opened()
    assert kinds(pair.root) == {"several files of one name"}


def test_endings_that_a_user_states_still_restrict(pair, opened):
    pair(LABELS, "a_labels.png", "a_left.png")
    pair(LABELS, "a_instances.png", "a_right.png")
    dataset = opened(img_suffix="_left.png", seg_map_suffix="_labels.png")
    assert [info["img_path"].rsplit("/", 1)[1] for info in map(dataset.get_data_info, range(len(dataset)))] == [
        "a_left.png"
    ]
    with pytest.raises(DataError, match=r"has no _middle\.png|a label map but no image"):
        opened(img_suffix="_middle.png", seg_map_suffix="_labels.png")


def test_a_list_of_names(pair, opened):
    for name in "abc":
        pair(LABELS, f"{name}.png", f"{name}.png")
    (pair.root / "some.txt").write_text("c\na\n")
    assert len(opened(ann_file="some.txt")) == 2
    (pair.root / "some.txt").write_text("c\nq\n")
    with pytest.raises(DataError, match=r"names 1 that are not there: q"):
        opened(ann_file="some.txt")


def test_folders_that_are_missing_or_empty(pair, opened):
    pair()
    with pytest.raises(DataError, match=r"images/validation does not exist"):
        opened(split="validation")
    for what in ("images", "annotations"):
        (pair.root / what / "validation").mkdir()
    with pytest.raises(DataError, match=r"images/validation has no images"):
        opened(split="validation")


@pytest.mark.parametrize("names", [(), ("a", "a", "b")])
def test_class_names_that_are_none(pair, opened, names):
    pair()
    with pytest.raises(ConfigError, match=r"metainfo\.classes must name each class once"):
        opened(names)


def test_some_of_ade20ks_classes(pair):
    pair(LABELS)
    prefix = dict(img_path="images/training", seg_map_path="annotations/training")
    steps = [dict(type="DecodeImage"), dict(type="LoadCheckedAnnotations")]
    dataset = maps.CheckedADE20KDataset(
        data_root=str(pair.root), data_prefix=prefix, metainfo=dict(classes=("sky", "wall")), pipeline=steps
    )  # in ADE20K wall is 1, building 2 and sky 3
    assert loaded(dataset)[0, :4].tolist() == [IGNORED, 1, IGNORED, 0]
    assert json.dumps(dataset.metainfo["classes"]) == '["sky", "wall"]'


def test_the_map_moves_with_its_image(pair, opened):
    """Bigger and mirrored: where the image is bright, the label is the tree's."""
    pixels = np.where(LABELS == 2, 255, 0).astype(np.uint8)
    pair(pixels=np.stack([pixels] * 3, 2), image="a.png")
    init_default_scope("mmseg")
    dataset = opened()
    further = [
        dict(type="Resize", scale=(16, 12), interpolation="nearest"),
        dict(type="RandomFlip", prob=1.0),
        dict(type="PackSegInputs"),
    ]
    dataset.pipeline.transforms += map(maps.TRANSFORMS.build, further)
    item = dataset[0]
    labels = item["data_samples"].gt_sem_seg.data[0].numpy()
    assert labels.shape == (12, 16)
    assert np.array_equal(item["inputs"][0].numpy() == 255, labels == 1)
    assert item["data_samples"].reduce_zero_label


# ---- colours ---------------------------------------------------------------------------------------------------------

SHADES = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]], np.uint8)
COLOURS = {(128, 0, 0): 0, (0, 128, 0): 1, (128, 128, 0): 2, (0, 0, 0): 255}


def coloured(mode="RGB"):
    """LABELS as a picture whose colours count."""
    if mode == "P":
        picture = Image.fromarray(3 - LABELS, "P")
        picture.putpalette(SHADES[::-1].tobytes())
        return picture
    return Image.fromarray(SHADES[LABELS]).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_colours_stand_for_classes(pair, opened, mode):
    """Whatever numbers a palette has; training, the check, and a recipe that a checkpoint holds read them alike."""
    pair(coloured(mode))
    expected = np.where(LABELS == 0, IGNORED, LABELS - 1)
    for written in (COLOURS, {str(colour): label for colour, label in COLOURS.items()}):
        dataset = opened(reduce_zero_label=False, metainfo=dict(label_map=written))
        assert np.array_equal(loaded(dataset), expected)
        assert not kinds(pair.root, reduced=False, replaced=written)
    reduced = {(0, 0, 0): 0, (128, 0, 0): 1, (0, 128, 0): 2, (128, 128, 0): 3}
    assert np.array_equal(loaded(opened(metainfo=dict(label_map=reduced))), expected)


def test_a_colour_without_a_class_is_refused_by_name(pair, opened):
    pair(coloured())
    without = {colour: label for colour, label in COLOURS.items() if colour != (0, 128, 0)}
    with pytest.raises(DataError, match=r"a\.png has \(0, 128, 0\); of colours label_map names \(0, 0, 0\), "):
        opened(reduce_zero_label=False, metainfo=dict(label_map=without))
    assert "label out of range" in kinds(pair.root, reduced=False, replaced=without)


def test_colours_without_a_label_map_say_how_to_name_them(pair, opened):
    pair(coloured())
    with pytest.raises(DataError, match=r"no colours; .*label_map=\{\(128, 0, 0\): 1, …\}"):
        opened()


def test_what_has_no_opaque_colours(pair, opened):
    picture = coloured("RGBA")
    picture.putpixel((0, 0), (0, 0, 0, 7))
    pair(picture)
    with pytest.raises(DataError, match=r"no colours of 8 bits \(RGBA\), opaque ones"):
        opened(reduce_zero_label=False, metainfo=dict(label_map=COLOURS))


@pytest.mark.parametrize("wrong", [{(0, 0, 0): 0, 1: 1}, {(0, 0, 300): 1}, {(0, 0): 1}, {"0,0": 1}, {(0, 0, 0): 9}])
def test_colours_that_make_no_labels(pair, opened, wrong):
    pair()
    with pytest.raises(ConfigError, match="label_map"):
        opened(reduce_zero_label=False, metainfo=dict(label_map=wrong))
