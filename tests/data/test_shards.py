"""WebDataset shards on a disk: what folders guarantee, they guarantee too."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from elsa.data import DataError, eval_loader, open_splits, train_loader
from elsa.data.flat import Integers, Texts
from elsa.data.images import shards as shards_module
from elsa.data.images.shards import ShardImages, index_path, open_shards, read_index, write_index

COUNT, PER_SHARD = 13, 3


@pytest.fixture
def write(tmp_path):
    """``write("train", 13)``: shards of three samples; image n has the grey value 10 n and the label n % 2."""

    def call(split, count):
        for first in range(0, count, PER_SHARD):
            with tarfile.open(tmp_path / f"{split}-{first // PER_SHARD}.tar", "w") as archive:
                for number in range(first, min(first + PER_SHARD, count)):
                    picture = io.BytesIO()
                    Image.new("RGB", (8, 8), (10 * number,) * 3).save(picture, "PNG")
                    for ending, content in (("cls", b"%d\n" % (number % 2)), ("PNG", picture.getvalue())):
                        entry = tarfile.TarInfo(f"some/{number:03d}.{ending}")
                        entry.size = len(content)
                        archive.addfile(entry, io.BytesIO(content))
        return sorted(tmp_path.glob(f"{split}-*.tar"))

    return call


@pytest.fixture
def config(tmp_path, make_config, write):
    def call(*overrides):
        plain = ["DATA.MEAN=[0,0,0]", "DATA.STD=[1,1,1]", "AUG.SCALE=[1,1]", "AUG.RATIO=[1,1]"]
        splits = ["DATA.TRAIN_SPLIT=train-{0..4}.tar", "DATA.VAL_SPLIT=validation-{0..2}.tar"]
        return make_config(tmp_path, "DATA.DATASET=wds/x", "DATA.BATCH=6", *plain, *splits, *overrides)

    write("train", COUNT)
    write("validation", 9)
    return call


def numbers(batches):
    """Which images, by their grey values."""
    return [round(float(image.mean()) * 25.5) for batch in batches for image in batch.images]


def epoch_of(config, epoch=0, first_step=0, world_size=1):
    (source,) = open_splits(config, "train")
    ranks = [train_loader(config, source, rank, world_size).epoch(epoch, first_step) for rank in range(world_size)]
    return [numbers(batch for rank in step for batch in rank) for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_an_epoch_has_every_sample_once_for_any_number_of_processes(config, world_size, workers):
    """Also for more processes than there are shards."""
    alone = epoch_of(config(), 1)
    divided = epoch_of(config(f"DATA.WORKERS={workers}"), 1, world_size=world_size)
    assert divided == alone
    seen = [number for step in alone for number in step]
    assert len(set(seen)) == len(seen) == 12  # 13 samples in batches of 6
    assert set(seen) <= set(range(COUNT))


def test_samples_have_their_labels_and_names(config, tmp_path):
    (train,) = open_splits(config(), "train")
    assert len(train) == COUNT
    for number in range(COUNT):
        image, label = train.load(number)
        assert (image.getpixel((0, 0)), label) == ((10 * number,) * 3, number % 2)
        assert train.name(number) == f"{tmp_path}/train-{number // 3}.tar/some/{number:03d}.png"
        assert train.relative_name(number) == f"some/{number:03d}"


def test_a_resumed_epoch_goes_on_where_it_was(config):
    made = config("DATA.BATCH=2")
    assert epoch_of(made, 3)[2:] == epoch_of(made, 3, first_step=2)
    assert epoch_of(made, 3) != epoch_of(made, 4)
    assert epoch_of(made, 3) != epoch_of(config("DATA.BATCH=2", "TRAIN.SEED=5"), 3)


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_evaluation_sees_every_sample_once(config, world_size):
    made = config("DATA.EVAL_BATCH=2")
    (source,) = open_splits(made, "val")
    seen = [number for rank in range(world_size) for number in numbers(eval_loader(made, source, rank, world_size))]
    assert sorted(seen) == list(range(9))


def test_an_unreadable_image_is_named_and_replaced(config, tmp_path):
    path = tmp_path / "train-1.tar"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"IHDR", b"XXXX", 1))
    made = config()
    (source,) = open_splits(made, "train")
    loader = train_loader(made, source, 0, 1)
    for epoch in range(4):
        assert all(len(step[0].targets) == 6 for step in loader.epoch(epoch))
    assert list(loader.bad.names) == [f"{path}/some/003.png"]


def test_a_shard_that_vanishes_is_named(config, tmp_path):
    (source,) = open_splits(config(), "train")
    (tmp_path / "train-1.tar").unlink()
    with pytest.raises(DataError, match=r"train-1\.tar/some/004\.png cannot be read: .*No such file"):
        source.load(4)
    assert source.load(0)[1] == 0


def test_few_files_are_open_at_a_time(write, monkeypatch):
    monkeypatch.setattr(shards_module, "WINDOW", 1)
    images, _ = open_shards(write("train", 12), None, "png", "", 0)
    for index in (0, 11, 3, 0, 6, 9, 1):
        assert Image.open(images[index][0]).getpixel((0, 0))[0] == 10 * index
        assert len(images._files) <= 2


def test_the_order_reads_a_window_of_shards_at_a_time():
    """Ten times 32 shards of 5 samples: every run of 160 positions is of 32 shards, which and how differs by seed."""
    shards = 320
    starts = Integers(torch.arange(0, 5 * shards + 1, 5))
    column = Integers(torch.zeros(5 * shards, dtype=torch.int64))
    images = ShardImages([None] * shards, starts, Texts([]), column, column, column)
    one, other = (images.order(torch.Generator().manual_seed(seed)) for seed in range(2))
    for order in (one, other):
        assert torch.equal(order.sort().values, torch.arange(5 * shards))
        for window in order.split(160):
            assert len((window // 5).unique()) == 32
        neighbours = (order[1:] // 5 == order[:-1] // 5).float().mean()
        assert neighbours < 0.06  # by chance 1 in 40
    assert not torch.equal(one, other)
    assert set((one[:160] // 5).tolist()) != set((other[:160] // 5).tolist())


def test_an_index_is_as_good_as_the_shards(write, tmp_path):
    paths = write("train", COUNT)
    images, total = open_shards(paths, None, "png", "", 2)
    assert total == COUNT
    path = index_path(tmp_path, "train")
    write_index(path, images)
    again, _ = open_shards(paths, path, "png", "", 0)
    assert list(again.names) == list(images.names)
    for index in range(COUNT):
        assert (again[index][0].getvalue(), again[index][1]) == (images[index][0].getvalue(), images[index][1])


def test_an_index_of_other_shards_is_not_used(write, tmp_path, caplog):
    paths = write("train", COUNT)
    path = index_path(tmp_path, "train")
    write_index(path, open_shards(paths, None, "png", "", 0)[0])
    assert read_index(path, paths[1:]) is None
    paths[0].write_bytes(paths[0].read_bytes() + bytes(512))
    images, _ = open_shards(paths, path, "png", "", 0)
    assert len(images) == COUNT
    assert "is the index of other shards" in caplog.text


@pytest.mark.parametrize("content", [b"", b"no index", "cut"])
def test_a_broken_index_is_named(write, tmp_path, content):
    paths = write("train", COUNT)
    path = index_path(tmp_path, "train")
    write_index(path, open_shards(paths, None, "png", "", 0)[0])
    path.write_bytes(path.read_bytes()[:-60] if content == "cut" else content)
    with pytest.raises(DataError, match=r"index of shards .*_index-train\.npz cannot be read.*without it"):
        open_shards(paths, path, "png", "", 0)


def test_an_index_holds_no_objects(write, tmp_path):
    """It is read without unpickling anything."""
    path = index_path(tmp_path, "train")
    write("train", COUNT)
    np.savez(path, shards=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read: Object arrays cannot be loaded when allow_pickle=False"):
        read_index(path, [])
