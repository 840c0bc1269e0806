"""The embedded digits: complete, split cleanly, written once and whole."""

from __future__ import annotations

import fcntl
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from elsa.data import write_digits
from elsa.data.embedded import digits as digits_module
from elsa.data.embedded.digits import DIGITS_COUNT


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*/*.png"))}


def test_every_digit_is_there_once_with_its_pixels(digits_folder):
    source = load_digits()
    assert sum(DIGITS_COUNT.values()) == len(source.images)
    seen = Counter()
    for path in digits_folder.glob("*/*/*.png"):
        number = int(path.stem)
        seen[number] += 1
        assert path.parent.name == str(source.target[number])
        picture = Image.open(path)
        assert (picture.mode, picture.size) == ("L", (8, 8))
        assert np.abs(np.asarray(picture) / (255 / 16) - source.images[number]).max() < 0.5
    assert seen == Counter(range(len(source.images)))


def test_the_split_keeps_the_shares_of_the_classes(digits_folder):
    for split, count in DIGITS_COUNT.items():
        assert len(list((digits_folder / split).glob("*/*.png"))) == count
    for label in map(str, range(10)):
        train, val = (len(list((digits_folder / split / label).iterdir())) for split in ("train", "val"))
        assert val / (train + val) == pytest.approx(0.2, abs=0.01)


def test_no_picture_is_in_both_splits(digits_folder):
    pixels = {
        split: {np.asarray(Image.open(path)).tobytes() for path in (digits_folder / split).glob("*/*.png")}
        for split in DIGITS_COUNT
    }
    assert not pixels["train"] & pixels["val"]
    assert {split: len(pictures) for split, pictures in pixels.items()} == DIGITS_COUNT


def test_the_same_everywhere(digits_folder, tmp_path):
    again = write_digits(tmp_path / "elsewhere" / "again")
    assert contents(again) == contents(digits_folder)


def test_a_second_call_writes_nothing(tmp_path, monkeypatch):
    folder = write_digits(str(tmp_path / "digits"))
    monkeypatch.setattr(digits_module.Image.Image, "save", None)
    assert write_digits(folder) == folder
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["digits"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "digits").mkdir()
    assert len(contents(write_digits(tmp_path / "digits"))) == sum(DIGITS_COUNT.values())


@pytest.mark.parametrize("entry", ["notes.txt", "train/cat/1.png"])
def test_another_folder_is_refused_and_left_alone(tmp_path, entry):
    path = tmp_path / "mine" / entry
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="mine"):
        write_digits(tmp_path / "mine")
    assert path.read_text() == "mine"
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_an_incomplete_folder_is_refused(digits_folder, tmp_path):
    incomplete = tmp_path / "digits"
    (incomplete / "train" / "0").mkdir(parents=True)
    (incomplete / "train" / "0" / "0000.png").write_bytes(b"")
    with pytest.raises(FileExistsError):
        write_digits(incomplete)


def test_an_interrupted_call_leaves_nothing(tmp_path, monkeypatch):
    save, calls = Image.Image.save, []

    def save_some(self, *arguments, **keywords):
        calls.append(1)
        if len(calls) > 20:
            raise KeyboardInterrupt
        save(self, *arguments, **keywords)

    monkeypatch.setattr(digits_module.Image.Image, "save", save_some)
    with pytest.raises(KeyboardInterrupt):
        write_digits(tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_visible_before_all_is_written(tmp_path, monkeypatch):
    save, visible = Image.Image.save, []

    def look_and_save(self, *arguments, **keywords):
        visible.append((tmp_path / "digits").exists())
        save(self, *arguments, **keywords)

    monkeypatch.setattr(digits_module.Image.Image, "save", look_and_save)
    write_digits(tmp_path / "digits")
    assert len(visible) == sum(DIGITS_COUNT.values())
    assert not any(visible)


def test_another_process_may_be_first(tmp_path, monkeypatch):
    """Without locks, two runs that start together write the same digits; the later one finds them there."""
    save, calls = Image.Image.save, []

    def no_lock(*arguments):
        raise OSError("this file system has no locks")

    monkeypatch.setattr(fcntl, "flock", no_lock)

    def save_while_another_finishes(self, *arguments, **keywords):
        save(self, *arguments, **keywords)
        calls.append(1)
        if len(calls) == 1:
            write_digits(tmp_path / "digits")

    monkeypatch.setattr(digits_module.Image.Image, "save", save_while_another_finishes)
    assert len(contents(write_digits(tmp_path / "digits"))) == sum(DIGITS_COUNT.values())
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]
