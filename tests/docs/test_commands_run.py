"""Every command that a page shows runs, on small data, or its page says why no test runs it.

Those of your-data.md are in tests/tools/test_your_data.py, those with --model in tests/tools/test_shipped_weights.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from made_runs import write_run
from PIL import Image
from running import run_tool
from shown_commands import NOT_RUN, Command, commands

from elsa.data import write_digits

ELSEWHERE = {"your-data.md": "test_your_data.py", "zoo.md": "test_shipped_weights.py"}  # in tests/tools
DIGITS = "configs/classification/digits_elsa_swin_nano.yaml"
ONE_EPOCH = ["TRAIN.EPOCHS=1", "TRAIN.WARMUP_EPOCHS=0", "LOG.EVERY=8", "DATA.BATCH=64", "DATA.IMG_SIZE=32"]
STANDS_FOR = {  # what a reader puts in the place of a word
    "IMAGE|FOLDER": ["docs/digit.png"],
    "IMAGE": ["docs/digit.png"],
    "FOLDER": ["few"],
    "…": [],
    "CONFIG": [DIGITS],
    "CHECKPOINT": ["runs/quickstart/best.pt"],
    "[CONFIG]": [],
    "[--pictures": ["--pictures"],
    "N]": ["2"],
    "[--predictions": ["--predictions"],
    "FILE.csv]": ["out/predictions.csv"],
    "[--tta": ["--tta"],
    "VIEWS]": ["flip"],
    "elsa_swin_tiny": ["small.yaml"],
}
DRAWINGS = ("architecture.md",)  # of a run's way, whose first word is a verb


def shown(root: Path) -> list[Command]:
    pages = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    return [one for page in pages for one in commands(page) if page.name not in DRAWINGS]


ROOT = Path(__file__).resolve().parents[2]
RUN = [one for one in shown(ROOT) if not one.not_run and one.page not in ELSEWHERE]


@pytest.fixture(scope="module")
def place(root, tmp_path_factory):
    """A folder as a checkout after the quick start, with two classes for ImageNet, and a detector's run to compare."""
    place = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "docs", "tools", "scripts"):
        (place / name).symlink_to(root / name)
    write_digits(place / "datasets/digits")
    for split, count in (("train", 6), ("val", 2)):
        lines = []
        for label, number in ((label, number) for label in range(2) for number in range(count)):
            path = place / "datasets/imagenet" / split / f"n0{label}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (99 * label, 20 * number, 9)).save(path)
            lines.append(f"{path} {label}")
        (place / f"{split}.txt").write_text("\n".join(lines))
    (place / "few").symlink_to(place / "datasets/digits/val/3")
    (place / "small.yaml").write_text(
        "MODEL: {NAME: elsa_swin_nano, NUM_CLASSES: 2}\nDATA: {IMG_SIZE: 32, BATCH: 4, WORKERS: 0}\n"
        "TRAIN: {EPOCHS: 1, WARMUP_EPOCHS: 0, COOLDOWN_EPOCHS: 0}\n"
    )
    before = Path.cwd()
    os.chdir(place)
    try:
        done = run_tool(root, "train", DIGITS, "--output", "runs/quickstart", "--set", *ONE_EPOCH)
        assert done.code == 0, done.err
        write_run(place / "runs/imagenet/first", "classification", "top1", [70.0, 80.0])
        write_run(place / "runs/coco/second", "detection", "coco/bbox_mAP_50", [0.3, 0.4])
        yield place
    finally:
        os.chdir(before)


def words_of(command: Command, place: Path) -> list[str]:
    own = f"out/{command.page}-{command.line}"
    places = {"DIR": ["datasets/imagenet" if command.verb == "new" else own], "FILE": [f"{own}.onnx"]}
    stands_for = {**STANDS_FOR, **places, "FILE.onnx": places["FILE"]}
    words = [part for word in command.words for part in stands_for.get(word, [word])]
    words = [word.replace("/fast/", f"{place}/fast/").replace("/shared/", f"{place}/shared/") for word in words]
    if command.verb == "train" and "small.yaml" not in words:
        words += ["--set", *(ONE_EPOCH[:-1] if "volo" in words[0] else ONE_EPOCH)]
    return words


def test_there_are_such_commands():
    assert {"predict", "visualize", "export", "new", "train", "evaluate", "plot", "make_shards"} <= {
        command.verb for command in RUN
    }


@pytest.mark.parametrize("command", RUN, ids=str)
def test_it_runs(root, place, command):
    done = run_tool(root, command.verb, *words_of(command, place))
    looks = command.verb == "doctor"  # this machine may have problems
    assert done.code == 0 or looks, f"{command}\n{done.err[-2000:]}"


def test_each_reason_is_of_commands(root):
    """A comment that is no block's says nothing, and a page whose commands all run elsewhere has that test."""
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        reasons = {one.not_run for one in commands(page)} - {""}
        assert set(NOT_RUN.findall(page.read_text())) == reasons, page
    for name in ELSEWHERE.values():
        assert (root / "tests/tools" / name).is_file()
    for words in (reason.split() for one in shown(root) for reason in [one.not_run]):
        assert all((root / word).exists() for word in words if word.startswith("tests/"))
