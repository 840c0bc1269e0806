"""Token labels: every crop and flip reaches the map as it reaches the image, to the cell; files and their errors."""

from __future__ import annotations

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from elsa.data import (
    DataError,
    LabelMaps,
    TokenLabels,
    View,
    build_mix_token,
    label_path,
    open_splits,
    token_targets,
    train_loader,
    train_transform,
    write_label_map,
)
from elsa.data.images.mix import draw_box

ROWS, COLUMNS = 5, 7  # of the synthetic map, in which every cell is a class of its own
CELLS = torch.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
CROP = (3, 4)  # rows, columns


def synthetic_map(cells=CELLS, score=40.0):
    return torch.stack([torch.full(cells.shape, score), cells.float()])[:, None]


def targets_of(views, grid, cells=CELLS, smoothing=0.0):
    labels = TokenLabels.stack([(synthetic_map(cells), view) for view in views])
    return token_targets(labels, torch.zeros(len(views), dtype=torch.long), cells.numel(), grid, smoothing)


# ---- targets


@pytest.mark.parametrize("flips", [*itertools.product((False, True), repeat=2)])
def test_every_crop_and_flip_takes_its_cells(flips):
    corners = list(itertools.product(range(ROWS - CROP[0] + 1), range(COLUMNS - CROP[1] + 1)))
    boxes = [(left / COLUMNS, top / ROWS, (left + CROP[1]) / COLUMNS, (top + CROP[0]) / ROWS) for top, left in corners]
    _, _, of_tokens = targets_of([View(box, flips) for box in boxes], CROP)
    for (top, left), tokens in zip(corners, of_tokens, strict=True):
        cells = CELLS[top : top + CROP[0], left : left + CROP[1]]
        for axis, flipped in zip((1, 0), flips, strict=True):  # left to right, upside down
            cells = cells.flip(axis) if flipped else cells
        assert torch.equal(tokens.argmax(1).reshape(CROP), cells)
        torch.testing.assert_close(tokens.amax(1), torch.ones(CROP[0] * CROP[1]))


def test_the_class_token_gets_the_mean_of_its_region():
    view = View((2 / COLUMNS, 1 / ROWS, 4 / COLUMNS, 2 / ROWS), (True, False))
    _, of_class, _ = targets_of([view], (2, 2))
    expected = torch.zeros(1, ROWS * COLUMNS)
    expected[0, [CELLS[1, 2], CELLS[1, 3]]] = 0.5
    torch.testing.assert_close(of_class, expected, atol=1e-6, rtol=0)


def test_a_crop_between_cells_mixes_their_scores():
    """Half a cell further right: each token sees two neighbours alike."""
    view = View((0.5 / COLUMNS, 0, 4.5 / COLUMNS, 1), (False, False))
    _, _, of_tokens = targets_of([view], (ROWS, 4))
    top = of_tokens[0].topk(2, dim=1)
    torch.testing.assert_close(top.values, torch.full((ROWS * 4, 2), 0.5), atol=1e-5, rtol=0)
    assert torch.equal(top.indices.sort(dim=1).values, torch.stack([CELLS[:, :4], CELLS[:, 1:5]], -1).reshape(-1, 2))


def test_scores_go_through_a_softmax_in_which_unnamed_classes_count_as_zero():
    scores, classes = torch.tensor([2.0, 1.0]).reshape(1, 2, 1, 1), torch.tensor([3, 0]).reshape(1, 2, 1, 1)
    labels = TokenLabels(
        torch.stack([scores, classes.float()], 1), torch.tensor([[0.0, 0, 1, 1]]), torch.zeros(1, 2) > 0
    )
    expected = torch.tensor([1.0, 0, 0, 2, 0]).softmax(0)
    truth, of_class, of_tokens = token_targets(labels, torch.tensor([4]), 5, (2, 3), 0.1)
    torch.testing.assert_close(of_class[0], 0.9 * expected + 0.1 / 5)
    torch.testing.assert_close(of_tokens[0], (0.9 * expected + 0.1 / 5).expand(6, 5))
    torch.testing.assert_close(truth[0], torch.tensor([0.02, 0.02, 0.02, 0.02, 0.92]))


def test_without_label_maps_every_token_has_the_image_s_class():
    targets = token_targets(None, torch.tensor([2, 0]), 4, (2, 3), 0.2)
    expected = torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    torch.testing.assert_close(targets[0], expected)
    torch.testing.assert_close(targets[1], expected)
    torch.testing.assert_close(targets[2], expected[:, None].expand(2, 6, 4))


# ---- the transform


def test_image_and_map_stay_together_through_the_training_transform(make_config, tmp_path):
    """The pixel at the centre of a token tells where in the image it comes from; its target must be that cell."""
    width, height, side, grid = 180, 90, 64, 32
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(width), np.arange(height)[:, None]
    image, cells = Image.fromarray(ramp), torch.arange(18 * 18).reshape(18, 18)
    config = make_config(
        tmp_path, f"DATA.IMG_SIZE={side}", "AUG.HFLIP=0.5", "AUG.VFLIP=0.5", "AUG.SCALE=[0.3,1]", "AUG.RATIO=[0.5,2]",
        "AUG.INTERPOLATION=bilinear", "DATA.MEAN=[0,0,0]", "DATA.STD=[1,1,1]",
    )  # fmt: skip
    transform, views = train_transform(config, tracked=True), set()
    torch.manual_seed(0)
    for _ in range(40):
        pixels, view = transform(image)
        _, _, of_tokens = targets_of([view], (grid, grid), cells)
        found = of_tokens[0].argmax(1)
        # A token has 2 × 2 pixels; one of value v was taken at v + 0.5.
        around = torch.nn.functional.avg_pool2d(pixels, side // grid).flatten(1) * 255 + 0.5
        column, row = around[0] / width * 18, around[1] / height * 18
        assert (row - (found // 18 + 0.5)).abs().max() < 0.65
        assert (column - (found % 18 + 0.5)).abs().max() < 0.65
        views.add(view.flips)
    assert len(views) == 4


# ---- files


@pytest.fixture
def labeled(write_images, tmp_path):
    """Ten images of two classes, a label map beside each that names its number."""
    root, labels = write_images({"train": {"a": 5, "b": 5}, "val": {"a": 1, "b": 1}}), tmp_path / "labels"
    for number, path in enumerate(sorted((root / "train").rglob("*.png"))):
        target = labels / path.relative_to(root / "train").with_suffix(".pt")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_label_map(target, torch.full((1, 3, 3), float(number)), torch.full((1, 3, 3), number % 2))
    return root, labels


def config_of(make_config, labeled, *overrides):
    return make_config(labeled[0], "TOKENS.ENABLED=true", f"TOKENS.LABELS={labeled[1]}", "AUG.HFLIP=0.5", *overrides)


def scores_by_image(config, world_size=1):
    (source,) = open_splits(config, "train")
    return [
        (int(index), float(scores), tuple(box.tolist()))
        for rank in range(world_size)
        for step in train_loader(config, source, rank, world_size).epoch(1)
        for batch in step
        for index, scores, box in zip(
            batch.indices, batch.tokens.maps[:, 0].mean((1, 2, 3)), batch.tokens.boxes, strict=True
        )
    ]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_image_of_a_batch_has_its_own_map_whatever_the_processes(make_config, labeled, workers, world_size):
    rows = scores_by_image(config_of(make_config, labeled, f"DATA.WORKERS={workers}"), world_size)
    assert len(rows) == 8
    assert all(index == score for index, score, _ in rows)
    alone = scores_by_image(config_of(make_config, labeled))
    assert sorted(rows) == sorted(alone)


def test_an_unreadable_image_s_successor_comes_with_its_own_map(make_config, labeled):
    root, _ = labeled
    (root / "train/a/002.png").write_bytes(b"no image")
    rows = scores_by_image(config_of(make_config, labeled, "DATA.BATCH=10"))
    assert [index for index, *_ in rows].count(3) == 2
    assert all(index == score for index, score, _ in rows)


def test_maps_are_found_by_path_in_tar_files_and_by_number_where_images_have_no_name(make_config, labeled, tmp_path):
    root, labels = labeled
    shutil.make_archive(str(tmp_path / "packed/train"), "tar", root / "train")
    (source,) = open_splits(make_config(tmp_path / "packed"), "train")
    assert {label_path(source, index) for index in range(len(source))} == {
        str(path.relative_to(labels)) for path in labels.rglob("*.pt")
    }
    source.files = False
    assert label_path(source, 7) == "00000007.pt"


def test_many_classes_are_kept_exactly(tmp_path):
    for number in (1000, 21841):
        write_label_map(tmp_path / "map.pt", torch.ones(5, 18, 18), torch.full((5, 18, 18), number - 1))
        assert (torch.load(tmp_path / "map.pt")[1].float() == number - 1).all()


def spoil(labels, what):
    path = labels / "a/001.pt"
    content = torch.load(path)
    if what == "missing":
        path.unlink()
    elif what == "shape":
        torch.save(content[:, :, :2], path)
    elif what == "first shape":
        torch.save(content[0], labels / "a/000.pt")
    elif what == "class":
        torch.save(torch.stack([content[0], content[1] + 2]), path)
    elif what == "fraction":
        torch.save(torch.stack([content[0], content[1] * 0 + 0.5]), path)
    elif what == "nan":
        torch.save(content * float("nan"), path)
    elif what == "no tensor":
        torch.save({"map": content}, path)
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:300])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "code":
        torch.save({"map": content, "trap": Trap(labels / "sprung")}, path)


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "1 of 10 images have no label map in .*: a/001.pt"),
        ("shape", r"a/001.pt has shape \(2, 1, 2, 3\), the first label map has \(2, 1, 3, 3\)$"),
        ("first shape", r"a/000.pt has shape \(1, 3, 3\); a label map is \(2, classes, rows, columns\)"),
        ("class", "a/001.pt names classes 3 … 3; the classes are 0 … 1$"),
        ("fraction", "a/001.pt names classes 0.5 … 0.5"),
        ("nan", "a/001.pt has scores that are not finite"),
        ("no tensor", "a/001.pt holds a dict, not a tensor"),
        ("cut", "a/001.pt cannot be read"),
        ("empty", "a/001.pt cannot be read"),
        ("code", "a/001.pt is damaged, or holds more than a tensor; nothing of it was run"),
    ],
)
def test_a_map_that_cannot_be_used_is_named(make_config, labeled, what, message, workers):
    spoil(labeled[1], what)
    with pytest.raises(DataError, match=message) as refusal:
        scores_by_image(config_of(make_config, labeled, f"DATA.WORKERS={workers}", "DATA.BATCH=10"))
    assert "Traceback" not in str(refusal.value)
    assert not (labeled[1] / "sprung").exists()


def test_a_folder_that_is_not_there_or_images_that_share_a_map_are_refused(make_config, labeled, tmp_path):
    root, labels = labeled
    (source,) = open_splits(make_config(root), "train")
    with pytest.raises(DataError, match=r"nowhere does not exist; tools/make_token_labels.py"):
        LabelMaps(tmp_path / "nowhere", source, 2)
    shutil.copy(root / "train/a/001.png", root / "train/a/001.jpg")
    (source,) = open_splits(make_config(root), "train")
    with pytest.raises(DataError, match=r"several images: a/001.pt"):
        LabelMaps(labels, source, 2)


# ---- mix-token


@pytest.mark.parametrize("batch", [1, 7])
def test_mix_token_refuses_an_odd_batch(make_config, tmp_path, batch):
    with pytest.raises(DataError, match=f"mix-token pairs .* each process holds {batch}"):
        build_mix_token(make_config(tmp_path, "TOKENS.ENABLED=true"), batch, (4, 4))
    assert build_mix_token(make_config(tmp_path, "TOKENS.ENABLED=true", "TOKENS.MIX=0"), batch, (4, 4)) is None


def test_the_box_lies_in_the_grid_and_its_share_is_spread():
    np.random.seed(0)
    boxes = torch.stack([draw_box((14, 20), 1.0) for _ in range(2000)])
    top, left, bottom, right = boxes.unbind(1)
    assert boxes.dtype == torch.int64
    assert ((top >= 0) & (top <= bottom) & (bottom <= 14) & (left >= 0) & (left <= right) & (right <= 20)).all()
    share = (bottom - top) * (right - left) / (14 * 20)
    assert share.min() == 0
    assert share.max() > 0.8
    assert 0.2 < share.mean() < 0.4  # 1 − λ is 0.5 in the mean, less what the border cuts off
    assert (bottom - top).float().mean() / 14 == pytest.approx((right - left).float().mean().item() / 20, abs=0.05)
