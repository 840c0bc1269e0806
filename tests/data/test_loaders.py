"""Loaders: the order and pixels of a step, shares of processes, resuming, unreadable images."""

from __future__ import annotations

import re
import signal
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elsa.core import ConfigError
from elsa.data import DataError, eval_loader, open_splits, train_loader
from elsa.data.decode import UnreadableImage

RANDOM = ["AUG.AUTO_AUGMENT=rand-m9-mstd0.5-inc1", "AUG.ERASE=0.5", "AUG.HFLIP=0.5", "AUG.INTERPOLATION=random"]


@pytest.fixture
def folder(write_images):
    """19 + 6 images for training (25), 7 + 4 for validation (11)."""
    return write_images({"train": {"a": 19, "b": 6}, "val": {"a": 7, "b": 4}})


def epoch_of(config, epoch=0, first_step=0, world_size=1, loader=None):
    """Every step of an epoch as one (indices, targets, images), micro-batches and processes in their order."""
    (source,) = open_splits(config, "train")
    ranks = [loader or train_loader(config, source, rank, world_size) for rank in range(world_size)]
    steps = []
    for shares in zip(*(rank.epoch(epoch, first_step) for rank in ranks), strict=True):
        micro = [batch for group in zip(*shares, strict=True) for batch in group]
        steps.append(
            tuple(torch.cat([getattr(batch, name) for batch in micro]) for name in ("indices", "targets", "images"))
        )
    return steps


def assert_same_steps(one, other):
    assert len(one) == len(other) > 0
    for mine, theirs in zip(one, other, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b)


# ---- training


def test_an_epoch_takes_whole_batches_of_different_images(folder, make_config):
    config = make_config(folder)
    steps = epoch_of(config)
    assert len(steps) == 6  # 25 images in batches of 4; the last one waits
    indices = torch.cat([step[0] for step in steps])
    assert len(indices.unique()) == 24
    (source,) = open_splits(config, "train")
    assert train_loader(config, source, 0, 1).steps_per_epoch == 6
    for step_indices, targets, images in steps:
        assert [source.load(index)[1] for index in step_indices.tolist()] == targets.tolist()
        assert images.shape == (4, 3, 8, 8)
        assert images.dtype == torch.float32


def test_every_image_is_seen_over_the_epochs(folder, make_config):
    config = make_config(folder)
    seen = {index for epoch in range(6) for step in epoch_of(config, epoch) for index in step[0].tolist()}
    assert seen == set(range(25))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(folder, make_config, workers):
    alone = make_config(folder, *RANDOM, "DATA.WORKERS=0")
    assert_same_steps(epoch_of(alone, 2), epoch_of(make_config(folder, *RANDOM, f"DATA.WORKERS={workers}"), 2))


def test_loader_processes_that_are_spawned_change_nothing(folder, make_config, monkeypatch):
    """They have no memory of the training process's: the folder's index, source and transform are sent. And no thread
    of theirs can be ended by a scheduler's SIGTERM, also where Python's resource tracker starts with them."""
    resource_tracker._resource_tracker._stop()
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")  # a thread that begins before anything of ours
    config = make_config(folder, *RANDOM, "DATA.WORKERS=1")
    (source,) = open_splits(config, "train")
    loader = train_loader(config, source, 0, 1)
    loader.loader.multiprocessing_context = "spawn"
    assert_same_steps(epoch_of(config, 2), epoch_of(config, 2, loader=loader))
    (process,) = loader.loader._iterator._workers
    threads = "".join(path.read_text() for path in Path(f"/proc/{process.pid}/task").glob("*/status"))
    heedless = [bool(int(mask, 16) >> signal.SIGTERM - 1 & 1) for mask in re.findall(r"SigBlk:\s+(\w+)", threads)]
    assert heedless.count(False) == 1  # the thread that waits for requests; others come with the libraries
    assert heedless.count(True) > 1


@pytest.mark.parametrize(("world_size", "accum"), [(2, 1), (4, 1), (1, 2), (2, 2), (1, 4)])
def test_processes_and_accumulation_change_nothing(folder, make_config, world_size, accum):
    config = make_config(folder, *RANDOM)
    split = make_config(folder, *RANDOM, f"TRAIN.ACCUM={accum}")
    assert_same_steps(epoch_of(config, 1), epoch_of(split, 1, world_size=world_size))


def test_a_step_is_a_list_of_micro_batches(folder, make_config):
    config = make_config(folder, "DATA.BATCH=12", "TRAIN.ACCUM=3")
    (source,) = open_splits(config, "train")
    for rank in range(2):
        loader = train_loader(config, source, rank, 2)
        steps = list(loader.epoch(0))
        assert len(steps) == loader.steps_per_epoch == 2
        assert [[len(batch.targets) for batch in step] for step in steps] == [[2, 2, 2]] * 2


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first_step", [1, 5])
def test_resuming_gives_the_identical_rest(folder, make_config, first_step, workers):
    config = make_config(folder, *RANDOM, f"DATA.WORKERS={workers}")
    assert_same_steps(epoch_of(config, 3)[first_step:], epoch_of(config, 3, first_step))


def test_resuming_at_the_end_gives_nothing(folder, make_config):
    assert epoch_of(make_config(folder), 0, first_step=6) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_left_early_does_not_disturb_the_next(folder, make_config, workers):
    config = make_config(folder, *RANDOM, f"DATA.WORKERS={workers}")
    (source,) = open_splits(config, "train")
    loader = train_loader(config, source, 0, 1)
    next(loader.epoch(0))
    assert_same_steps(epoch_of(config, 1, loader=loader), epoch_of(config, 1))


def test_randomness_used_elsewhere_does_not_matter(folder, make_config):
    config = make_config(folder, *RANDOM)
    expected = epoch_of(config, 1)
    torch.manual_seed(99)
    np.random.seed(99)
    assert_same_steps(expected, epoch_of(config, 1))


def test_epochs_and_seeds_differ_in_order_and_pixels(folder, make_config):
    config = make_config(folder, *RANDOM)
    runs = [epoch_of(config, 0), epoch_of(config, 1), epoch_of(make_config(folder, *RANDOM, "TRAIN.SEED=1"), 0)]
    orders = [torch.cat([step[0] for step in steps]) for steps in runs]
    pictures = []
    for steps in runs:
        indices, images = torch.cat([step[0] for step in steps]), torch.cat([step[2] for step in steps])
        pictures.append(dict(zip(indices.tolist(), images, strict=True)))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert not torch.equal(orders[one], orders[other])
        common = pictures[one].keys() & pictures[other].keys()
        differing = sum(not torch.equal(pictures[one][index], pictures[other][index]) for index in common)
        assert differing > len(common) / 2


def test_images_of_one_channel(folder, make_config):
    grey = ["MODEL.IN_CHANS=1", "DATA.MEAN=[0.5]", "DATA.STD=[0.25]"]
    config = make_config(folder, *RANDOM, *grey)
    assert epoch_of(config)[0][2].shape == (4, 1, 8, 8)
    (source,) = open_splits(config, "val")
    assert next(iter(eval_loader(config, source, 0, 1))).images.shape[1:] == (1, 8, 8)


@pytest.mark.parametrize(
    ("overrides", "world_size", "said"),
    [
        (["DATA.BATCH=4"], 3, "DATA.BATCH 4 is no multiple of 3 processes"),
        (["DATA.BATCH=12", "TRAIN.ACCUM=2"], 4, "TRAIN.ACCUM 2 = 8"),
        (["DATA.BATCH=26"], 1, "25 images, fewer than one batch: DATA.BATCH is 26"),
    ],
)
def test_a_batch_that_cannot_be_made_is_refused(folder, make_config, overrides, world_size, said):
    config = make_config(folder, *overrides)
    (source,) = open_splits(config, "train")
    with pytest.raises(DataError, match=re.escape(said)):
        train_loader(config, source, 0, world_size)


# ---- evaluation


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 13])
def test_shares_make_up_the_split_exactly_once(folder, make_config, world_size):
    """Also where some of the processes get nothing; no image is padded, and none depends on its batch."""
    config = make_config(folder, "DATA.EVAL_BATCH=3")
    (source,) = open_splits(config, "val")
    (whole,) = eval_loader(make_config(folder, "DATA.EVAL_BATCH=11"), source, 0, 1)
    assert whole.indices.tolist() == list(range(11))
    seen, sizes = [], []
    for rank in range(world_size):
        loader = eval_loader(config, source, rank, world_size)
        assert loader.total == 11
        batches = list(loader)
        assert len(batches) == len(loader)
        sizes.append(sum(len(batch.targets) for batch in batches))
        for batch in batches:
            seen.extend(batch.indices.tolist())
            assert torch.equal(batch.images, whole.images[batch.indices])
            assert torch.equal(batch.targets, whole.targets[batch.indices])
    assert sorted(seen) == list(range(11))
    assert max(sizes) - min(sizes) <= 1


def test_evaluation_is_repeatable_with_workers_and_progress(folder, make_config):
    config = make_config(folder, "DATA.WORKERS=2", "DATA.EVAL_BATCH=4")
    (source,) = open_splits(config, "val")
    loader = eval_loader(config, source, 0, 1)
    runs = [list(loader), list(loader.with_progress())]
    assert [batch.indices.tolist() for batch in runs[0]] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_five_crops_are_the_corners_and_what_is_seen_without_them(write_images, make_config, workers):
    root = write_images({split: {"a": 2, "b": 1} for split in ("train", "val")}, size=(30, 20))
    config = make_config(root, "EVAL.CROP=0.5", "DATA.IMG_SIZE=10", f"DATA.WORKERS={workers}")
    (source,) = open_splits(config, "val")
    (whole,), (plain,) = (list(eval_loader(config, source, 0, 1, five_crops=five)) for five in (True, False))
    assert whole.images.shape == (3, 5, 3, 10, 10)
    assert torch.equal(whole.images[:, 4], plain.images)
    pixels = torch.from_numpy(np.asarray(source.load(0)[0])).permute(2, 0, 1) / 255
    shown = whole.images[0] * 0.35 + 0.3
    for crop, (top, left) in zip(shown, ((0, 0), (0, 20), (10, 0), (10, 20)), strict=False):
        torch.testing.assert_close(crop, pixels[:, top : top + 10, left : left + 10], atol=1e-5, rtol=0)


def test_five_crops_without_a_margin_are_refused(write_images, make_config):
    config = make_config(write_images({split: {"a": 2, "b": 1} for split in ("train", "val")}), "EVAL.CROP=1.0")
    (source,) = open_splits(config, "val")
    with pytest.raises(ConfigError, match=r"five crops need a margin, but with EVAL\.CROP 1\.0"):
        eval_loader(config, source, 0, 1, five_crops=True)


def test_evaluation_resizes_crops_and_normalises(tmp_path, make_config):
    """Left and right thirds black, the centre white: with a crop of a third of the side only white remains."""
    pixels = np.zeros((24, 24, 3), dtype=np.uint8)
    pixels[8:16, 8:16] = 255
    for split in ("train", "val"):
        for label in ("a", "b"):
            path = tmp_path / "square" / split / label
            path.mkdir(parents=True)
            Image.fromarray(pixels).save(path / "1.png")
    overrides = ["EVAL.INTERPOLATION=nearest", "DATA.MEAN=[0.5,0.5,0.25]", "DATA.STD=[0.5,0.25,0.5]"]
    for crop, white in ((1 / 3, 1.0), (1.0, 1 / 9)):
        config = make_config(tmp_path / "square", *overrides, f"EVAL.CROP={crop}", "DATA.IMG_SIZE=12")
        (source,) = open_splits(config, "val")
        image = next(iter(eval_loader(config, source, 0, 1))).images[0]
        assert image.shape == (3, 12, 12)
        shown = image * torch.tensor([0.5, 0.25, 0.5])[:, None, None] + torch.tensor([0.5, 0.5, 0.25])[:, None, None]
        torch.testing.assert_close(shown, shown.round(), atol=1e-5, rtol=0)
        assert shown.mean().item() == pytest.approx(white, abs=1e-3)


# ---- unreadable images


def damage(folder, *names):
    for name in names:
        assert (folder / name).exists()
        (folder / name).write_bytes(b"this is no image")


def test_an_unreadable_training_image_is_replaced_by_its_successor(folder, make_config):
    damage(folder, "train/a/003.png", "train/a/004.png")
    config = make_config(folder, "DATA.MAX_BAD=2")
    (source,) = open_splits(config, "train")
    bad = [index for index in range(25) if source.name(index).endswith(("a/003.png", "a/004.png"))]
    clean = dict(zip(*(range(25), range(25)), strict=True)) | dict.fromkeys(bad, max(bad) + 1)
    loader = train_loader(config, source, 0, 1)
    for epoch in range(3):
        order = list(loader.sampler) if epoch == 0 else None
        batches = [batch for step in loader.epoch(epoch) for batch in step]
        assert all(len(batch.targets) == 4 for batch in batches)
        seen = [index for batch in batches for index in batch.indices.tolist()]
        assert not set(seen) & set(bad)
        if order is not None:
            assert seen == [clean[index] for batch in order for _, index in batch]
    assert sorted(loader.bad.names) == [str(folder / "train/a/003.png"), str(folder / "train/a/004.png")]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_unreadable_training_images_are_an_error_that_names_them(folder, make_config, workers):
    damage(folder, "train/a/003.png", "train/b/002.png")
    config = make_config(folder, "DATA.MAX_BAD=1", f"DATA.WORKERS={workers}")
    (source,) = open_splits(config, "train")
    loader = train_loader(config, source, 0, 1)
    for epoch in range(5):
        list(loader.epoch(epoch))
    with pytest.raises(DataError) as caught:
        loader.bad.merge([{}, loader.bad.names])
    for word in ("2 images", "DATA.MAX_BAD is 1", str(folder / "train/a/003.png"), str(folder / "train/b/002.png")):
        assert word in str(caught.value)


def test_a_folder_without_readable_images_ends(folder, make_config):
    damage(folder, *(str(path.relative_to(folder)) for path in folder.glob("train/*/*.png")))
    config = make_config(folder, "DATA.MAX_BAD=1000")
    (source,) = open_splits(config, "train")
    with pytest.raises(DataError, match=r"in a row cannot be read: .*\.png"):
        list(train_loader(config, source, 0, 1).epoch(0))


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("batch", [1, 4])
def test_unreadable_evaluation_images_are_skipped_and_counted(folder, make_config, batch, world_size):
    damage(folder, "val/a/000.png", "val/b/001.png")
    config = make_config(folder, f"DATA.EVAL_BATCH={batch}", "DATA.MAX_BAD=2")
    (source,) = open_splits(config, "val")
    seen, bad = [], []
    for rank in range(world_size):
        for part in eval_loader(config, source, rank, world_size):
            assert len(part.targets) == len(part.indices)
            assert not len(part.targets) or part.images.shape == (len(part.targets), 3, 8, 8)
            seen.extend(part.indices.tolist())
            bad.extend(part.bad)
    assert [text.partition(" cannot be read: ")[0] for text in sorted(bad)] == [
        str(folder / "val/a/000.png"),
        str(folder / "val/b/001.png"),
    ]
    assert len(seen) == len(set(seen)) == 9


def test_the_same_unreadable_image_counts_once_over_the_evaluations(folder, make_config):
    damage(folder, "val/a/000.png")
    config = make_config(folder, "DATA.MAX_BAD=1")
    (source,) = open_splits(config, "val")
    loader = eval_loader(config, source, 0, 1)
    for _ in range(3):
        for batch in loader:
            loader.bad.add(batch.bad)
    assert list(loader.bad.names) == [str(folder / "val/a/000.png")]


def test_the_limit_counts_the_images_of_all_processes(folder, make_config):
    damage(folder, "val/a/000.png", "val/a/001.png")
    config = make_config(folder, "DATA.MAX_BAD=1")
    loaders = [eval_loader(config, open_splits(config, "val")[0], rank, 2) for rank in range(2)]
    for loader in loaders:
        for batch in loader:
            loader.bad.add(batch.bad)
        assert not loader.bad.too_many()
    everyone = [loader.bad.names for loader in loaders]
    for loader in loaders:
        with pytest.raises(DataError, match=r"2 images cannot be read.*a/000\.png \(.*\), .*a/001\.png \(.*\)"):
            loader.bad.merge(everyone)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_a_damaged_file_is_either_decoded_or_unreadable(folder, make_config, form):
    """Whatever is wrong with a file, nothing but UnreadableImage comes out: anything else would stop the run."""
    path = folder / "val" / "a" / "000.png"  # files are told by their content, not by their name
    Image.open(path).save(path, form)
    whole = path.read_bytes()
    (source,) = open_splits(make_config(folder), "val")
    assert source.load(0)[0].size == (20, 16)
    generator = np.random.default_rng(0)
    versions = [whole[:length] for length in np.linspace(0, len(whole) - 1, 60).astype(int)]
    for extent in (60, len(whole)):
        for _ in range(150):
            noisy = bytearray(whole)
            for place in generator.integers(0, extent, 4):
                noisy[place] = generator.integers(256)
            versions.append(bytes(noisy))
    refused = 0
    for version in versions:
        path.write_bytes(version)
        try:
            image, _ = source.load(0)
        except UnreadableImage:
            refused += 1
        else:
            assert image.mode == "RGB"
    assert refused > 5


def test_the_published_augmentation_never_fails(folder, make_config):
    """Every operation of RandAugment at every strength that occurs, with the installed Pillow (13 refuses one)."""
    config = make_config(folder, *RANDOM)
    (source,) = open_splits(config, "train")
    images = train_loader(config, source, 0, 1).loader.dataset
    for epoch in range(60):
        for index in range(len(images)):
            assert images[epoch, index][0].isfinite().all()
