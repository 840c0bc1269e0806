"""The scenes of handwritten digits: exact, the same every time, unseen digits in validation, written whole or not."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from elsa.data import DIGITS_ADE_CLASSES, SCENE_CLASSES, write_digits_ade, write_digits_coco
from elsa.data.embedded import scenes as scenes_module
from elsa.data.embedded.digits import split_digits
from elsa.data.embedded.scene_sets import STAMP, ade_labels, run_lengths
from elsa.data.embedded.scenes import MIN_CONTRAST, MIN_VISIBLE, SIDES, Scenes

TRAIN, VAL = 30, 12


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_digits_coco(tmp_path_factory.mktemp("coco") / "digits-coco", TRAIN, VAL)


@pytest.fixture(scope="module")
def ade(tmp_path_factory):
    return write_digits_ade(tmp_path_factory.mktemp("ade") / "digits-ade", TRAIN, VAL)


@pytest.fixture(scope="module")
def scenes():
    drawn = Scenes("train")
    return [drawn.draw(number) for number in range(60)]


def read(root, split):
    return json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


# ---- what is drawn -------------------------------------------------------------------------------------------------


def test_sizes_and_numbers_vary_within_their_limits(scenes):
    shapes = [scene.image.shape for scene in scenes]
    assert all(SIDES[0] <= side <= SIDES[1] for shape in shapes for side in shape[:2])
    assert len(set(shapes)) > 50
    assert any(height != width for height, width, _ in shapes)
    numbers = Counter(len(scene.labels) for scene in scenes)
    assert set(numbers) <= set(range(3, 11))
    assert len(numbers) >= 7


def test_digits_are_small_and_large_and_of_every_class(scenes):
    boxes = [np.ptp(np.argwhere(scene.mask(i)), axis=0) + 1 for scene in scenes for i in range(len(scene.labels))]
    heights = np.array(boxes)[:, 0]
    assert heights.min() < 26
    assert heights.max() > 60
    assert {label for scene in scenes for label in scene.labels} == set(range(10))


def test_digits_are_lighter_and_darker_than_what_surrounds_them(scenes):
    contrasts = []
    for scene in scenes:
        level = scene.image.mean(-1)
        for instance in range(len(scene.labels)):
            mask = scene.mask(instance)
            rows, columns = np.nonzero(mask)
            near = np.zeros_like(mask)
            near[max(rows.min() - 3, 0) : rows.max() + 4, max(columns.min() - 3, 0) : columns.max() + 4] = True
            contrasts.append(np.median(level[mask]) - np.median(level[near & (scene.owner < 0)]))
    contrasts = np.array(contrasts)
    assert (contrasts > MIN_CONTRAST / 2).mean() > 0.25
    assert (contrasts < -MIN_CONTRAST / 2).mean() > 0.25
    assert (np.abs(contrasts) > MIN_CONTRAST / 2).mean() > 0.95


def test_digits_overlap_and_none_is_hardly_visible(scenes, monkeypatch):
    shares = []
    for number, scene in enumerate(scenes):
        wholes = whole_strokes(number, monkeypatch)
        shares += [scene.mask(instance).sum() / whole for instance, whole in enumerate(wholes)]
    shares = np.array(shares)
    assert shares.min() >= MIN_VISIBLE
    assert (shares < 0.95).mean() > 0.1
    assert (shares > 0.999).mean() > 0.3


def whole_strokes(number, monkeypatch):
    """The pixels of each digit's stroke in a training scene, those covered or outside included."""
    easels = []

    class Easel(scenes_module._Easel):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            easels.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(scenes_module, "_Easel", Easel)
        Scenes("train").draw(number)
    return easels[0].strokes


def test_the_shape_of_a_mask_is_that_of_the_digit(scenes):
    """Cropped to its box, a mask agrees with the digit that it was made of, the better the less that was turned."""
    source = load_digits().images
    agreement = []
    for scene in scenes:
        for instance, number in enumerate(scene.sources):
            rows, columns = np.nonzero(scene.mask(instance))
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            shape = Image.fromarray(scene.mask(instance)).crop(box).resize((16, 16))
            digit = Image.fromarray(source[number] >= 8).resize((64, 64))
            digit = digit.crop(digit.getbbox()).resize((16, 16))
            one, other = np.asarray(shape), np.asarray(digit)
            agreement.append((one & other).sum() / (one | other).sum())
    assert np.median(agreement) > 0.5
    assert max(agreement) > 0.8


def test_the_edge_of_a_mask_is_the_edge_in_the_picture(scenes):
    """Colour changes more across the outline of a mask than within it."""
    for scene in scenes[:20]:
        level = scene.image.mean(-1)
        across = np.abs(np.diff(level, axis=1))
        edge = scene.owner[:, 1:] != scene.owner[:, :-1]
        inside = (scene.owner[:, 1:] >= 0) & ~edge
        assert across[edge].mean() > 3 * across[inside].mean()


def test_the_patterned_region_covers_a_part_and_no_digit(scenes):
    shares = [scene.texture.mean() for scene in scenes]
    assert all(0 < share < 0.8 for share in shares)
    assert np.mean(shares) > 0.1
    assert not any((scene.texture & (scene.owner >= 0)).any() for scene in scenes)


def test_digits_of_validation_are_in_no_training_scene(coco):
    known = {split: {number for number, _, _ in digits} for split, digits in split_digits().items()}
    used = {split: {entry["digit_id"] for entry in read(coco, split)["annotations"]} for split in known}
    assert used["train"] <= known["train"]
    assert used["val"] <= known["val"]
    assert not used["train"] & used["val"]
    labels = load_digits().target
    for split in known:
        assert all(labels[entry["digit_id"]] + 1 == entry["category_id"] for entry in read(coco, split)["annotations"])


def test_a_scene_depends_on_split_seed_and_number_alone():
    drawn = {
        key: Scenes(split, seed).draw(number).image.tobytes()
        for key, (split, seed, number) in enumerate([("train", 0, 5), ("val", 0, 5), ("train", 1, 5), ("train", 0, 6)])
    }
    assert len(set(drawn.values())) == 4
    after_others = Scenes("train")
    after_others.draw(9)
    assert after_others.draw(5).image.tobytes() == drawn[0]


def test_a_split_that_does_not_exist():
    with pytest.raises(ValueError, match="'test'"):
        Scenes("test")


# ---- COCO's layout -------------------------------------------------------------------------------------------------


def test_coco_layout(coco):
    assert sorted(path.name for path in coco.iterdir()) == ["annotations", STAMP, "train2017", "val2017"]
    ids = set()
    for split, count in (("train", TRAIN), ("val", VAL)):
        content = read(coco, split)
        assert {"info", "licenses", "images", "annotations", "categories"} == set(content)
        assert [(c["id"], c["name"]) for c in content["categories"]] == list(enumerate(SCENE_CLASSES, 1))
        assert len(content["images"]) == count == len(list((coco / f"{split}2017").iterdir()))
        for entry in content["images"]:
            with Image.open(coco / f"{split}2017" / entry["file_name"]) as image:
                assert (image.size, image.mode) == ((entry["width"], entry["height"]), "RGB")
        numbers = [entry["id"] for entry in content["images"]] + [entry["id"] for entry in content["annotations"]]
        assert not ids & set(numbers)
        ids |= set(numbers)
        assert len({entry["id"] for entry in content["annotations"]}) == len(content["annotations"])
        assert {entry["iscrowd"] for entry in content["annotations"]} == {0}
    assert 0 not in ids  # pycocotools takes an annotation of id 0 for none


def test_pycocotools_reads_the_masks(coco):
    from pycocotools import mask as masks
    from pycocotools.coco import COCO

    for split in ("train", "val"):
        api, drawn = COCO(coco / "annotations" / f"instances_{split}2017.json"), Scenes(split)
        for number, image in enumerate(api.dataset["images"][:8]):
            scene = drawn.draw(number)
            found = api.imgToAnns[image["id"]]
            assert len(found) == len(scene.labels)
            for instance, entry in enumerate(found):
                np.testing.assert_array_equal(api.annToMask(entry), scene.mask(instance))
                code = api.annToRLE(entry)
                assert masks.area(code) == entry["area"]
                assert masks.toBbox(code).tolist() == entry["bbox"]


@pytest.mark.parametrize(
    ("mask", "lengths"),
    [
        ([[0, 1], [0, 1]], [2, 2]),
        ([[1, 0], [0, 1]], [0, 1, 2, 1]),
        ([[1, 1], [1, 1]], [0, 4]),
        ([[0, 0], [0, 0]], [4]),
        ([[0, 1, 0], [1, 1, 0]], [1, 3, 2]),
    ],
)
def test_run_lengths(mask, lengths):
    assert run_lengths(np.array(mask, bool)) == lengths


# ---- ADE20K's layout -----------------------------------------------------------------------------------------------


def test_ade_layout_shows_the_scenes_of_coco(coco, ade):
    assert len(DIGITS_ADE_CLASSES) == 11
    for split, name, count in (("train", "training", TRAIN), ("val", "validation", VAL)):
        images = sorted((ade / "images" / name).glob("*.jpg"))
        labels = sorted((ade / "annotations" / name).glob("*.png"))
        assert [path.stem for path in images] == [path.stem for path in labels]
        assert len(images) == count
        same = [path.read_bytes() for path in sorted((coco / f"{split}2017").iterdir())]
        assert [path.read_bytes() for path in images] == same
        present = set()
        for number, path in enumerate(labels):
            with Image.open(path) as annotation:
                values = np.asarray(annotation)
                assert annotation.mode == "L"
            np.testing.assert_array_equal(values, ade_labels(Scenes(split).draw(number)) if number < 3 else values)
            present |= set(np.unique(values).tolist())
        assert present == set(range(12))


def test_ade_labels_mean_what_they_say(scenes):
    for scene in scenes[:20]:
        labels = ade_labels(scene)
        for instance, label in enumerate(scene.labels):
            assert (labels[scene.mask(instance)] == label + 1).all()
        assert (labels[scene.texture] == 11).all()
        assert (labels[(scene.owner < 0) & ~scene.texture] == 0).all()


# ---- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_digits_coco, write_digits_ade])
def test_the_same_bytes_every_time(write, tmp_path):
    once, again = write(tmp_path / "once", 3, 2), write(str(tmp_path / "deep" / "again"), 3, 2)
    assert contents(once) == contents(again)
    more = contents(write(tmp_path / "more", 5, 2))
    pictures = {name: data for name, data in contents(once).items() if not name.endswith(".json")}
    assert pictures.items() <= more.items()
    seeded = contents(write(tmp_path / "seeded", 3, 2, seed=1))
    assert not any(seeded[name] == data for name, data in pictures.items())


@pytest.mark.parametrize("write", [write_digits_coco, write_digits_ade])
def test_a_complete_set_is_not_written_again(write, tmp_path, monkeypatch):
    root = write(tmp_path / "set", 3, 2)
    (root / "notes.txt").write_text("mine")
    monkeypatch.setattr(Scenes, "draw", None)
    assert write(root, 3, 2) == root
    assert (root / "notes.txt").read_text() == "mine"


def lose_an_image(root):
    next(root.rglob("*.jpg")).unlink()


def cut_an_annotation(root):
    path = next(path for path in root.glob("annotations/**/*") if path.is_file())
    path.write_bytes(path.read_bytes()[:-20])


def of_an_older_version(root):
    path = root / STAMP
    path.write_text(path.read_text().replace('"version": 1', '"version": 0'))


@pytest.mark.parametrize("write", [write_digits_coco, write_digits_ade])
@pytest.mark.parametrize("damage", [lose_an_image, cut_an_annotation, of_an_older_version])
def test_an_incomplete_or_older_set_is_written_anew(write, damage, tmp_path):
    root = write(tmp_path / "set", 3, 2)
    before = contents(root)
    damage(root)
    assert contents(root) != before
    assert contents(write(root, 3, 2)) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]


def test_other_parameters_are_written_anew(tmp_path):
    root = write_digits_coco(tmp_path / "set", 3, 2)
    write_digits_coco(root, 4, 2)
    assert len(list((root / "train2017").iterdir())) == 4
    write_digits_ade(root, 4, 2)
    assert sorted(entry.name for entry in root.iterdir()) == ["annotations", STAMP, "images"]


def test_another_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    precious = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    precious.write_text("{}")
    with pytest.raises(FileExistsError, match="coco"):
        write_digits_coco(tmp_path / "coco", 3, 2)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [precious]


@pytest.mark.parametrize("counts", [(0, 2), (3, -1), (3, 10**6)])
def test_impossible_numbers_of_scenes(tmp_path, counts):
    with pytest.raises(ValueError, match="must be between 1 and 999999 scenes"):
        write_digits_coco(tmp_path / "set", *counts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [write_digits_coco, write_digits_ade])
@pytest.mark.parametrize("there_before", [False, True])
def test_an_interrupted_write_leaves_no_half_set(write, there_before, tmp_path, monkeypatch):
    if there_before:
        write(tmp_path / "set", 3, 2)
    before = contents(tmp_path)
    draw = Scenes.draw

    def draw_some(self, number):
        if self.split == "val":
            raise KeyboardInterrupt
        return draw(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Scenes, "draw", draw_some)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "set", 4, 2)
    assert contents(tmp_path) == before
    assert len(list(write(tmp_path / "set", 4, 2).rglob("*.jpg"))) == 6


def test_a_killed_write_leaves_no_half_set(tmp_path):
    """Nothing is cleared up, but nothing lies where the set belongs either."""
    process = multiprocessing.get_context("fork").Process(target=write_digits_coco, args=(tmp_path / "set", 900, 2))
    process.start()
    while not list(tmp_path.rglob("*.jpg")):
        assert process.is_alive()
    process.kill()
    process.join()
    assert not (tmp_path / "set").exists()
    assert len(list(write_digits_coco(tmp_path / "set", 3, 2).rglob("*.jpg"))) == 5


def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_digits_coco, args=(tmp_path / "set", 8, 2)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [entry.name for entry in tmp_path.iterdir()] == ["set"]
    assert len(list((tmp_path / "set").rglob("*.jpg"))) == 10
