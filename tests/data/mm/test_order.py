"""The order of detection's and segmentation's samples: a function of seed and epoch, whatever the processes."""

from __future__ import annotations

import numpy as np
import pytest

from elsa.data.mm.loaders import Orders
from elsa.data.order import TrainSampler


class Pictures:
    """Sizes of pictures: ``tall`` says which are higher than wide."""

    def __init__(self, tall):
        self.tall = tall

    def __len__(self):
        return len(self.tall)

    def get_data_info(self, index):
        return dict(width=48, height=72) if self.tall[index] else dict(width=72, height=48)


def steps(order, count, batch, accum=1, world_size=1, epoch=0, first_step=0, interleaved=False):
    """The images of each step, those of all processes and micro-batches together."""
    samplers = [TrainSampler(order, count, batch, accum, rank, world_size, interleaved) for rank in range(world_size)]
    for sampler in samplers:
        sampler.epoch, sampler.first_step = epoch, first_step
    parts = [list(sampler) for sampler in samplers]
    assert {epoch} == {key[0] for part in parts for micro in part for key in micro}
    return [
        sorted(key[1] for part in parts for micro in part[s * accum : (s + 1) * accum] for key in micro)
        for s in range(len(parts[0]) // accum)
    ]


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize(("accum", "world_size"), [(2, 1), (1, 2), (2, 2), (1, 4), (4, 1)])
def test_a_step_sees_the_same_images_for_any_number_of_processes_and_micro_batches(group, accum, world_size):
    tall = np.random.default_rng(0).random(37) < 0.4
    order = Orders(Pictures(tall), seed=3, group=group)
    alone = steps(order, 37, 8)
    divided = steps(order, 37, 8, accum, world_size)
    assert divided == alone == steps(order, 37, 8, accum, world_size, interleaved=True)
    assert len(alone) == 37 // 8
    assert steps(order, 37, 8, accum, world_size, first_step=2) == steps(order, 37, 8, accum, world_size)[2:]


def test_groups_are_of_like_orientation_and_every_image_comes_once():
    tall = np.random.default_rng(0).random(101) < 0.3
    order = Orders(Pictures(tall), seed=0, group=2)
    for epoch in range(3):
        found = order(epoch)
        assert sorted(found) == list(range(101))
        mixed = [pair for pair in zip(found[::2], found[1::2], strict=False) if tall[pair[0]] != tall[pair[1]]]
        assert len(mixed) <= 1
    assert order(0) != order(1)
    assert order(1) == Orders(Pictures(tall), seed=0, group=2)(1)
    assert order(1) != Orders(Pictures(tall), seed=1, group=2)(1)


def test_what_remains_and_makes_a_whole_batch_is_no_loss():
    """Three tall and one wide of four: mmdet's own sampler leaves such a batch out, but counts it."""
    order = Orders(Pictures([True, True, True, False]), seed=0, group=4)
    assert steps(order, 4, 4) == [[0, 1, 2, 3]]


def test_neighbours_part_or_stay_together():
    """Interleaved they part, as mmengine's samplers have it; else a process's images are neighbours: one group."""
    order = Orders(Pictures([False] * 8), seed=0, group=1)
    found = order(0)
    for interleaved, mine in ((True, found[1:4:2]), (False, found[2:4])):
        sampler = TrainSampler(order, 8, 4, 1, 1, 2, interleaved)
        assert [index for _, index in next(iter(sampler))] == mine
