"""WebDataset as a stream, of a command or an address: exact evaluation, whole epochs, and resuming."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import torch
from PIL import Image

from elsa.data import DataError, class_weights, eval_loader, open_splits, train_loader
from elsa.engine import load_config


def refusal(config, *names):
    with pytest.raises(DataError) as caught:
        open_splits(config, *(names or ("train", "val")))
    return str(caught.value)


@pytest.fixture
def shards(tmp_path, root):
    """12 training and 10 validation images in shards of at most 3; image n has the grey value 10 n."""

    class Shards:
        folder = tmp_path / "shards"

        @staticmethod
        def config(*overrides):
            place = f"pipe:cat {Shards.folder}"
            base = ["DATA.DATASET=wds/shards", f"DATA.ROOT={place}", "MODEL.NUM_CLASSES=3", "DATA.IMG_SIZE=8"]
            more = ["DATA.BATCH=4", "DATA.MEAN=[0,0,0]", "DATA.STD=[1,1,1]", "AUG.SCALE=[1,1]", "AUG.RATIO=[1,1]"]
            return load_config(root / "configs/classification/digits_elsa_swin_nano.yaml", [*base, *more, *overrides])

        @staticmethod
        def numbers(batches):
            """Which images the batches hold, by their grey values."""
            read = [batch.images for batch in batches if len(batch.targets)]
            if not read:
                return []
            images = torch.cat(read)
            return (images.mean((1, 2, 3)) * 25.5).round().long().tolist()

    Shards.folder.mkdir()
    info = {}
    for split, count in (("train", 12), ("validation", 10)):
        names, lengths = [], []
        for first in range(0, count, 3):
            names.append(f"{split}-{first:04d}.tar")
            lengths.append(min(3, count - first))
            with tarfile.open(Shards.folder / names[-1], "w") as archive:
                for number in range(first, first + lengths[-1]):
                    picture = io.BytesIO()
                    Image.new("RGB", (8, 8), (10 * number,) * 3).save(picture, "PNG")
                    for ending, content in (("png", picture.getvalue()), ("cls", str(number % 3).encode())):
                        entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                        entry.size = len(content)
                        archive.addfile(entry, io.BytesIO(content))
        info[split] = {"name": split, "num_samples": count, "filenames": names, "shard_lengths": lengths}
    (Shards.folder / "_info.json").write_text(json.dumps({"splits": info}))
    return Shards


@pytest.fixture
def as_process(monkeypatch):
    """``as_process(rank, world_size)`` makes readers believe that they run in a process group."""

    def pretend(rank, world_size):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: world_size)

    return pretend


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_webdataset_evaluation_sees_every_image_once(shards, workers):
    config = shards.config(f"DATA.WORKERS={workers}", "DATA.EVAL_BATCH=3")
    (source,) = open_splits(config, "val")
    loader = eval_loader(config, source, 0, 1)
    batches = list(loader)
    assert sorted(shards.numbers(batches)) == list(range(10))
    assert [number % 3 for number in shards.numbers(batches)] == torch.cat(
        [batch.targets for batch in batches]
    ).tolist()
    assert loader.total == 10
    assert sorted(shards.numbers(list(loader))) == list(range(10))


@pytest.mark.parametrize("world_size", [2, 3])
def test_webdataset_evaluation_is_exact_with_several_processes(shards, as_process, world_size):
    config = shards.config("DATA.EVAL_BATCH=3")
    seen = []
    for rank in range(world_size):
        as_process(rank, world_size)
        (source,) = open_splits(config, "val")
        loader = eval_loader(config, source, rank, world_size)
        assert loader.total == 10
        seen.extend(shards.numbers(list(loader)))
    assert sorted(seen) == list(range(10))


@pytest.mark.parametrize("workers", [0, 2])
def test_webdataset_training_takes_whole_batches(shards, workers):
    config = shards.config(f"DATA.WORKERS={workers}", "TRAIN.ACCUM=2")
    (source,) = open_splits(config, "train")
    loader = train_loader(config, source, 0, 1)
    assert loader.steps_per_epoch == 3
    for epoch in range(2):
        steps = list(loader.epoch(epoch))
        assert [[len(batch.targets) for batch in step] for step in steps] == [[2, 2]] * 3
        for step in steps:
            for batch in step:
                assert [number % 3 for number in shards.numbers([batch])] == batch.targets.tolist()


def test_webdataset_steps_are_whole_batches_of_the_images_there_are(shards):
    config = shards.config("DATA.BATCH=5")
    (source,) = open_splits(config, "train")
    assert train_loader(config, source, 0, 1).steps_per_epoch == 2  # 12 images


def test_webdataset_training_sees_every_image_in_an_epoch(shards):
    config = shards.config()
    (source,) = open_splits(config, "train")
    loader = train_loader(config, source, 0, 1)
    orders = []
    for epoch in range(2):
        orders.append(shards.numbers([batch for step in loader.epoch(epoch) for batch in step]))
        assert sorted(orders[-1]) == list(range(12))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("first_step", [1, 2])
def test_webdataset_training_resumes_where_it_was(shards, workers, first_step):
    config = shards.config(f"DATA.WORKERS={workers}", "DATA.BATCH=2", "AUG.HFLIP=0.5", "AUG.ERASE=0.5", "TRAIN.ACCUM=2")
    runs = []
    for begins in (0, first_step):
        (source,) = open_splits(config, "train")
        torch.manual_seed(begins)
        loader = train_loader(config, source, 0, 1)
        runs.append([torch.cat([batch.images for batch in step]) for step in loader.epoch(3, begins)])
    assert len(runs[1]) == 6 - first_step
    for whole, rest in zip(runs[0][first_step:], runs[1], strict=True):
        assert torch.equal(whole, rest)


def test_what_a_resumed_stream_has_behind_it_is_not_augmented(shards, monkeypatch):
    config = shards.config("DATA.WORKERS=1", "DATA.BATCH=2")
    (source,) = open_splits(config, "train")
    loader = train_loader(config, source, 0, 1)
    streamed, counts = loader.loader.dataset, torch.zeros(1).share_memory_()
    transform = streamed.transform
    monkeypatch.setattr(streamed, "transform", lambda image: (counts.add_(1), transform(image))[1])
    assert len(list(loader.epoch(0, 4))) == 2
    assert counts.item() == 4  # of 12 images


def test_webdataset_augmentation_differs_between_processes_and_epochs(shards, as_process):
    """Of images that are alike, which no order tells apart."""
    picture = io.BytesIO()
    Image.effect_noise((64, 64), 100).save(picture, "PNG")
    for path in shards.folder.glob("train-*.tar"):
        with tarfile.open(path, "w") as archive:
            for number in range(3):
                for ending, content in (("png", picture.getvalue()), ("cls", b"0")):
                    entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    config = shards.config("DATA.WORKERS=2", "AUG.SCALE=[0.1,0.9]")
    seen = []
    for rank in range(2):
        as_process(rank, 2)
        (source,) = open_splits(config, "train")
        loader = train_loader(config, source, rank, 2)
        for epoch in range(2):
            seen += [
                image.numpy().tobytes() for step in loader.epoch(epoch) for batch in step for image in batch.images
            ]
    assert len(set(seen)) == len(seen) == 24


def test_webdataset_training_with_several_processes_has_whole_epochs(shards, as_process):
    """The steps of an epoch are as many as with one process, and the processes see different images."""
    config = shards.config()
    seen = []
    for rank in range(2):
        as_process(rank, 2)
        (source,) = open_splits(config, "train")
        loader = train_loader(config, source, rank, 2)
        assert loader.steps_per_epoch == 3
        steps = list(loader.epoch(0))
        assert [[len(batch.targets) for batch in step] for step in steps] == [[2]] * 3
        seen.append(set(shards.numbers([batch for step in steps for batch in step])))
    assert not seen[0] & seen[1]


def test_webdataset_unreadable_image_is_skipped_and_counted(shards):
    path = shards.folder / "validation-0009.tar"  # holds the last image alone
    with tarfile.open(path, "w") as archive:
        for ending, content in (("png", b"broken"), ("cls", b"0")):
            entry = tarfile.TarInfo(f"000009.{ending}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    config = shards.config("DATA.MAX_BAD=1")
    (source,) = open_splits(config, "val")
    loader = eval_loader(config, source, 0, 1)
    batches = list(loader)
    assert sum(len(batch.targets) for batch in batches) == 9
    assert sum(len(batch.bad) for batch in batches) == 1


def test_webdataset_unknown_split_and_too_few_images(shards):
    said = refusal(shards.config("DATA.VAL_SPLIT=holdout"), "val")
    for word in ("wds/shards", "holdout", "validation"):
        assert word in said
    config = shards.config("DATA.BATCH=16")
    (source,) = open_splits(config, "train")
    with pytest.raises(DataError, match=r"12 images.*DATA\.BATCH is 16"):
        train_loader(config, source, 0, 1)


def test_missing_webdataset_is_named(shards, monkeypatch):
    from timm.data.readers import reader_wds

    monkeypatch.setattr(reader_wds, "wds", None)
    said = refusal(shards.config(), "train", "val")
    assert "webdataset" in said
    assert "wds/shards" in said


def test_webdataset_has_no_label_maps(shards):
    config = shards.config("TOKENS.ENABLED=true", "TOKENS.LABELS=labels")
    (source,) = open_splits(config, "train")
    with pytest.raises(DataError, match=r"TOKENS\.LABELS needs random access, which DATA\.DATASET wds/shards has not"):
        train_loader(config, source, 0, 1)


@pytest.mark.parametrize(("workers", "absent"), [(1, 0), (2, 0), (3, 2)])
def test_webdataset_images_that_an_epoch_lacks_are_as_many_as_the_start_says(shards, caplog, workers, absent):
    """4 shards of 3 for 3 loader processes: one reads 6 images, and all give 4."""
    config = shards.config(f"DATA.WORKERS={workers}", "DATA.BATCH=2")
    (source,) = open_splits(config, "train")
    seen = shards.numbers([batch for step in train_loader(config, source, 0, 1).epoch(0) for batch in step])
    assert (len(seen), 12 - len(set(seen))) == (12, absent)
    assert (f"up to {absent / 12:.0%} come twice and as many not at all" in caplog.text) == bool(absent)


@pytest.mark.parametrize("key", ["DATA.SAMPLER", "DATA.CLASS_WEIGHTS"])
def test_classes_of_a_stream_cannot_be_balanced(shards, key):
    config = shards.config(f"{key}=balanced")
    (source,) = open_splits(config, "train")
    with pytest.raises(DataError, match=f"{key} balanced needs the labels of all images, which the stream wds/shards"):
        train_loader(config, source, 0, 1)
        class_weights(config, source)
