"""Memory of loader processes: what they share with the training process stays shared, however long they read."""

from __future__ import annotations

import gc
import os
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from torch.utils.data import Dataset

from elsa.data import Source
from elsa.data.flat import Texts
from elsa.data.images.folders import ListedFiles
from elsa.data.workers import Loader

COUNT = 200_000
MB = 2**20
GROWTH = 10 * MB  # of a loader process; as Python's lists these names take 40, and the dictionaries below 60

needs_smaps = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="the system tells no private memory (/proc/PID/smaps_rollup)"
)


def files():
    return ((f"n{number // 1300:08d}/n{number // 1300:08d}_{number}.JPEG", number // 1300) for number in range(COUNT))


class Names(Dataset):
    """What a training asks of an index, for every image, without reading the image."""

    def __init__(self, items):
        self.source = Source(items, "RGB")

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        path, label = self.source.items[index]
        assert len(path) > 20
        assert label == index // 1300
        return os.getpid()


class Collecting(Dataset):
    """One whose process collects garbage, as Python does now and then."""

    def __len__(self):
        return 2 * 4096

    def __getitem__(self, index):
        if index == 4096:
            gc.collect()
        return os.getpid()


def private(process):
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Private_"))


def growth(dataset):
    """By how many bytes the private memory of a loader process grows over an epoch."""
    batches = iter(Loader(dataset, batch_size=4096, num_workers=1, prefetch_factor=1, batch_bytes=0, setting="WORKERS"))
    process = next(batches)[0].item()
    before = after = private(process)
    for batch in batches:
        after = private(process) if len(batch) == 4096 else after  # with the last batch it may be gone
    return after - before


@needs_smaps
def test_an_index_is_not_copied_into_loader_processes():
    names = Names(ListedFiles(Path("/data/train"), files()))
    assert growth(names) < GROWTH


@needs_smaps
def test_what_is_measured_is_the_copy_of_a_list():
    """The same with Python's objects: the bound above can fail."""
    assert growth(Names([(f"/data/train/{name}", label) for name, label in files()])) > 2 * GROWTH


@needs_smaps
def test_garbage_collection_does_not_copy_what_loader_processes_were_born_with():
    """An evaluator holds a million annotations as dictionaries: visiting each would copy them all."""
    held = [dict(id=number, bbox=[number]) for number in range(COUNT)]
    assert growth(Collecting()) < GROWTH
    assert len(held) == COUNT


def test_a_process_that_is_spawned_gets_an_index_by_shared_memory():
    texts = Texts(name for name, _ in files())
    sent = ForkingPickler.dumps(texts)
    assert len(sent) < 10_000
    assert list(ForkingPickler.loads(sent)) == list(texts)


def test_names_come_back_as_they_were():
    names = ["a/b.png", "", "日本語/ä.jpg", "not utf-8: \udcff", "a" * 5000]
    texts = Texts(names)
    assert list(texts) == [texts[index] for index in range(5)] == names
    assert (texts[-1], len(texts), "日本語/ä.jpg" in texts, list(Texts([]))) == (names[-1], 5, True, [])
    with pytest.raises(IndexError):
        texts[5]
