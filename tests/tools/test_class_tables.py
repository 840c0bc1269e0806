"""Names, tables and pictures of classes, whatever the classes are called and however many they are."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from elsa.engine import Predictions, calibrate, count_classes
from elsa.tools.tasks.class_pictures import draw_calibration, draw_confusion
from elsa.tools.tasks.class_tables import confusion_lines, distinct_names, write_predictions


def predictions(targets, predicted):
    """Of certain predictions, of images of a stream."""
    columns = (np.array(targets), np.array(predicted)[:, None], np.ones((len(targets), 1), np.float32))
    return Predictions(np.full(len(targets), -1), *columns)


def test_names_that_classes_share_are_told_apart():
    assert distinct_names(["crane", "cat", "crane"], 3) == ["crane (0)", "cat", "crane (2)"]
    assert distinct_names([], 3) == ["0", "1", "2"]


def test_images_without_a_path_are_numbered_in_the_order_of_their_stream(tmp_path):
    write_predictions(tmp_path / "a.csv", predictions([1, 0, 1], [1, 1, 0]), object(), ["a, b", "c"])
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["image", "true", "predicted", "probability"],
                    ["0", "c", "c", "1"], ["1", "a, b", "c", "1"], ["2", "c", "a, b", "1"]]  # fmt: skip


def test_the_log_has_the_matrix_of_few_classes_and_of_many_the_most_confused_pairs():
    counts = count_classes(predictions([0, 0, 1, 1], [0, 1, 1, 1]), 3)
    table = [line.split() for line in confusion_lines(counts, ["a", "b", "c"])]
    assert table == [["true", "\\", "predicted", "a", "b", "c", "right"], ["a", "1", "1", "·", "50.00", "%"],
                     ["b", "·", "2", "·", "100.00", "%"], ["c", "·", "·", "·", "–"]]  # fmt: skip
    counts = count_classes(predictions([0, 0, 0, 5, 5, 7], [1, 1, 0, 6, 5, 7]), 11)
    names = [f"n{number}" for number in range(11)]
    assert list(confusion_lines(counts, names)) == ["n0 taken for n1: 2 of 3", "n5 taken for n6: 1 of 2"]


@pytest.mark.parametrize(("classes", "right"), [(1, True), (3, False), (21, True), (1000, False)])
def test_pictures_are_made_of_any_number_of_classes(tmp_path, classes, right):
    """Of a readable size, with names that are no mathematics, and without mistakes too."""
    targets = np.arange(3 * classes) % classes
    found = predictions(targets, targets if right else (targets + 1) % classes)
    names = [f"$class_{number}$ {'long' * 20}" for number in range(classes)]
    draw_confusion(count_classes(found, classes), names, tmp_path / "confusion.png", "title")
    draw_calibration(calibrate(found), tmp_path / "calibration.png", "title")
    for name in ("confusion.png", "calibration.png"):
        image = Image.open(tmp_path / name)
        assert max(image.size) < 1700
        assert (np.asarray(image.convert("L")) < 250).mean() > 0.02
