"""Unequal classes: the weights of the loss, and orders that show each class equally often."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from elsa.data import DataError, Source, class_weights, open_splits, train_loader

UNEQUAL = {"train": {"a": 19, "b": 6}, "val": {"a": 2, "b": 2}}
BALANCED = "DATA.SAMPLER=balanced"


@pytest.fixture
def folder(write_images):
    """19 images of a, 0 … 18, and 6 of b, 19 … 24."""
    return write_images(UNEQUAL)


def steps_of(config, epoch=0, first_step=0, world_size=1):
    """(indices, targets, images) of each step, micro-batches and processes in their order."""
    (source,) = open_splits(config, "train")
    ranks = [train_loader(config, source, rank, world_size).epoch(epoch, first_step) for rank in range(world_size)]
    steps = []
    for shares in zip(*ranks, strict=True):
        micro = [batch for group in zip(*shares, strict=True) for batch in group]
        steps.append(
            [torch.cat([getattr(batch, name) for batch in micro]) for name in ("indices", "targets", "images")]
        )
    return steps


def assert_same(one, other):
    assert len(one) == len(other) > 0
    assert all(torch.equal(a, b) for mine, theirs in zip(one, other, strict=True) for a, b in
               zip(mine, theirs, strict=True))  # fmt: skip


def test_a_balanced_epoch_shows_each_class_equally_often(folder, make_config):
    for epoch in range(3):
        steps = steps_of(make_config(folder, BALANCED, "DATA.BATCH=25"), epoch)
        ((indices, targets, _),) = steps
        assert sorted(targets.bincount().tolist()) == [12, 13]
        times = indices.bincount(minlength=25)
        assert times[:19].max() == 1  # of the frequent class each at most once
        assert sorted(set(times[19:].tolist())) in ([2], [2, 3])  # of the rare one as often as any other of it
        assert targets.tolist() == [int(index >= 19) for index in indices]


def test_every_image_of_a_frequent_class_is_seen_over_the_epochs(folder, make_config):
    seen = {index for epoch in range(8) for step in steps_of(make_config(folder, BALANCED), epoch)
            for index in step[0].tolist()}  # fmt: skip
    assert seen == set(range(25))


def test_an_image_that_comes_again_is_augmented_otherwise(folder, make_config):
    config = make_config(folder, BALANCED, "DATA.BATCH=25", "AUG.SCALE=[0.1, 1.0]", "AUG.ERASE=0")
    ((indices, _, images),) = steps_of(config)
    for index in range(19, 25):
        pictures = images[indices == index]
        assert len(pictures) >= 2
        assert not torch.equal(pictures[0], pictures[1])


@pytest.mark.parametrize(("world_size", "accum"), [(2, 1), (4, 1), (2, 2)])
def test_processes_and_accumulation_change_nothing(folder, make_config, world_size, accum):
    alone, shared = make_config(folder, BALANCED), make_config(folder, BALANCED, f"TRAIN.ACCUM={accum}")
    assert_same(steps_of(alone, 1), steps_of(shared, 1, world_size=world_size))


def test_resuming_gives_the_identical_rest_and_epochs_and_seeds_differ(folder, make_config):
    config, other = make_config(folder, BALANCED), make_config(folder, BALANCED, "TRAIN.SEED=1")
    assert_same(steps_of(config, 3)[4:], steps_of(config, 3, first_step=4))
    orders = [torch.cat([step[0] for step in steps]) for steps in (steps_of(config), steps_of(config, 1),
                                                                   steps_of(other))]  # fmt: skip
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_balanced_weights_are_images_by_classes_and_images_of_the_class(folder, make_config):
    config = make_config(folder, "DATA.CLASS_WEIGHTS=balanced")
    (source,) = open_splits(config, "train")
    weights = class_weights(config, source)
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([25 / (2 * 19), 25 / (2 * 6)])
    assert weights[torch.from_numpy(source.labels())].mean().item() == pytest.approx(1.0)


def test_weights_as_written_and_none(folder, make_config):
    (source,) = open_splits(make_config(folder), "train")
    assert class_weights(make_config(folder), source) is None
    written = class_weights(make_config(folder, "DATA.CLASS_WEIGHTS=[1, 3.5]"), source)
    assert torch.equal(written, torch.tensor([1.0, 3.5]))


class Items:
    """Images of a reader that has its own form of labels."""

    def __init__(self, **labels):
        self.__dict__.update(labels)

    def __len__(self):
        return 4


@pytest.mark.parametrize("labels", [{"targets": [0, 1, 1, 1]}, {"labels": np.array([0, 1, 1, 1])},
                                    {"targets": torch.tensor([0, 1, 1, 1])},
                                    {"iter_targets": lambda: iter([0, 1, 1, 1])}])  # fmt: skip
def test_labels_of_other_readers(make_config, labels):
    config = make_config("nowhere", "DATA.CLASS_WEIGHTS=balanced")
    assert class_weights(config, Source(Items(**labels), "RGB")).tolist() == pytest.approx([2, 4 / 6])


@pytest.mark.parametrize(("key", "what"), [("DATA.CLASS_WEIGHTS=balanced", "DATA.CLASS_WEIGHTS balanced"),
                                           (BALANCED, "DATA.SAMPLER balanced")])  # fmt: skip
def test_what_cannot_be_balanced_is_refused(make_config, key, what):
    config = make_config("nowhere", key, "DATA.BATCH=2")

    def refusal(source):
        with pytest.raises(DataError) as caught:
            train_loader(config, source, 0, 1)
            class_weights(config, source)
        return str(caught.value)

    assert f"{what} needs the labels of all images, which the reader folder does not" in refusal(Source(Items(), "L"))
    only_a = Source(Items(targets=[0] * 4), "L", ["a", "b"])
    assert f"{what}: 1 of 2 classes have no training image: b" in refusal(only_a)
    assert "image 2 has the label 2; with MODEL.NUM_CLASSES 2" in refusal(Source(Items(targets=[0, 1, 2, 0]), "L"))
