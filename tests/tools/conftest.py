"""Running the tools as a user does, and a data set and configuration small enough for seconds."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from guarantees import BF16, DENSE_BF16, DENSE_KEYS, KEYS, LINEAR, Case
from launches import Launch
from PIL import Image
from running import Outcome, run_tool

from elsa.data import write_digits_ade
from elsa.engine import Trainer
from elsa.models.mm import operators

operators.provide()  # before a test imports mmdet or mmseg


@pytest.fixture
def tool(root):
    """``tool("train", *arguments)`` runs tools/train.py in this process: exit code and what it printed."""
    return functools.partial(run_tool, root)


@pytest.fixture
def start(root):
    """``start([prefix of the command], "train", *arguments)`` starts the tool in a process of its own."""
    processes = []

    def call(prefix: list[str], verb: str, *arguments: object) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, *prefix, str(root / "tools" / f"{verb}.py"), *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
        )  # fmt: skip
        processes.append(process)
        return process

    yield call
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def refused():
    """``refused(outcome, *parts)``: the tool told a mistake in one line with these parts, and left with code 2."""

    def call(outcome: Outcome, *parts: str) -> None:
        assert outcome.code == 2, outcome.err
        last = outcome.err.splitlines()[-1]
        assert last.startswith("error: ")
        for part in parts:
            assert part in last
        assert "Traceback" not in outcome.err

    return call


class Exploit:
    """Unpickling this runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def exploit():
    """``exploit(path)``: an object that writes ``path`` when it is unpickled."""
    return Exploit


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """Four classes of striped 16×16 images, 12 to train and 5 to validate each."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 5)):
        for label in range(4):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                stripes = np.add.outer(np.arange(16) * (label % 2), np.arange(16) * (label // 2)) * 40 % 255
                noisy = stripes[..., None] + random.integers(0, 60, (16, 16, 3))
                Image.fromarray(noisy.clip(0, 255).astype("uint8")).save(folder / f"{number}.png")
    return root


@pytest.fixture
def config(tmp_path, images) -> Path:
    """A very small ELSA-Swin on those images: 3 epochs of 6 steps."""
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""
MODEL: {{NAME: elsa_swin_nano, NUM_CLASSES: 4, DROP_PATH: 0.1,
        KWARGS: {{embed_dim: 8, num_heads: [1, 1, 2, 2], elsa_kernel: 3, window_size: 3}}}}
DATA: {{ROOT: {images}, IMG_SIZE: 32, BATCH: 8, EVAL_BATCH: 7, WORKERS: 0}}
TRAIN: {{EPOCHS: 3, WARMUP_EPOCHS: 1, COOLDOWN_EPOCHS: 0, LR: 3.0e-3, EMA_DECAY: 0.5}}
AMP: {{ENABLED: false}}
LOG: {{EVERY: 2, TENSORBOARD: false}}
"""
    )
    return path


DIGITS = tuple("0123456789")


@pytest.fixture(scope="session")
def coco(tmp_path_factory, write_coco) -> Path:
    """A data set of ten classes in COCO's layout: read only."""
    return write_coco(tmp_path_factory.mktemp("coco") / "digits", DIGITS)


@pytest.fixture
def detector(root, tmp_path, coco) -> Path:
    """The digits detector on that data set: 2 epochs of 4 steps, without pretrained weights."""
    path = tmp_path / "detector.py"
    path.write_text(
        f"""
_base_ = "{root}/configs/detection/mask_rcnn_elsa_swin_nano_digits.py"
embedded = None
data_root = "{coco}/"
model = dict(backbone=dict(pretrained=None, drop_path_rate=0.1))
train_dataloader = dict(dataset=dict(dataset=dict(data_root=data_root)))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val2017.json")
test_evaluator = val_evaluator
global_batch = 2
train_cfg = dict(max_epochs=2)
run = dict(log_every=2, max_bad=2)
"""
    )
    return path


@pytest.fixture(scope="session")
def ade(tmp_path_factory) -> Path:
    """A data set of ten digits and a texture in ADE20K's layout, 6 scenes to train and 3 to validate: read only."""
    return write_digits_ade(tmp_path_factory.mktemp("ade") / "digits", train=6, val=3)


@pytest.fixture
def segmentor(root, tmp_path, ade) -> Path:
    """The digits segmentor on that data set: 6 steps, 3 an epoch, without pretrained weights."""
    path = tmp_path / "segmentor.py"
    path.write_text(
        f"""
_base_ = "{root}/configs/segmentation/upernet_elsa_swin_nano_digits.py"
embedded = None
data_root = "{ade}/"
model = dict(backbone=dict(pretrained=None, drop_path_rate=0.1), decode_head=dict(channels=16))
train_dataloader = dict(dataset=dict(dataset=dict(data_root=data_root)))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
global_batch = 2
train_cfg = dict(max_iters=6, val_interval=4)
run = dict(log_every=2, max_bad=2)
"""
    )
    return path


@pytest.fixture
def signal_at(monkeypatch):
    """``signal_at(step, number)`` has this process sent a signal in that step of a training; called again, in another;
    without arguments, in none."""
    count, wanted = Trainer.count, []

    def count_and_send(self, record):
        count(self, record)
        if wanted and self.state.step == wanted[0]:
            os.kill(os.getpid(), wanted[1])

    monkeypatch.setattr(Trainer, "count", count_and_send)

    def call(*arguments: int) -> None:
        wanted[:] = arguments

    return call


@pytest.fixture(scope="session")
def plain_norms():
    """``plain_norms(model configuration)``: the same with BN for SyncBN, which needs a GPU."""

    def call(node):
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
            if isinstance(value, dict) and value.get("type") == "SyncBN":
                value["type"] = "BN"
            call(value)
        return node

    return call


# Task → the fixtures of its recipe and its data, images to validate, the metric of the best checkpoint.
CASES = {
    "classification": ("config", "images", 20, "top1"),
    "detection": ("detector", "coco", 3, "coco/bbox_mAP"),
    "segmentation": ("segmentor", "ade", 3, "single_scale/mIoU"),
}


@pytest.fixture(params=CASES)
def task(request) -> Case:
    """The small recipe of each task, with an average of the weights: 18, 8 and 6 steps in 3, 2 and 2 epochs, with 3, 2
    and 2 evaluations."""
    name = request.param
    recipe, data, images, metric = CASES[name]
    recipe, data = request.getfixturevalue(recipe), request.getfixturevalue(data)
    if name == "classification":
        return Case(name, recipe, metric, data, images, KEYS, BF16)
    with recipe.open("a") as text:
        text.write('run["ema_decay"] = 0.5\n')
        if name == "detection":  # a second evaluation, and steps large enough for the average to find something
            text.write('train_cfg["val_interval"] = 1\noptim_wrapper = dict(optimizer=dict(lr=5e-3))\n')
    single = ["--scales", "single"] if name == "segmentation" else []
    return Case(name, recipe, metric, data, images, DENSE_KEYS, DENSE_BF16, single)


@pytest.fixture
def linear(task) -> Case:
    """The same without what depends on how a batch is divided: see LINEAR."""
    text = task.recipe.read_text()
    if task.task == "classification":
        text = text.replace("DROP_PATH: 0.1", "DROP_PATH: 0.0").replace("LR: 3.0e-3", "LR: 0.05, OPTIMIZER: sgd")
    task.recipe.write_text(text + LINEAR[task.task])
    return task


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(task, whole_runs, tool) -> Path:
    """The folder of an uninterrupted run of the task, saving every 2 steps, the same for all tests: read only."""
    folder = whole_runs / task.task
    if not folder.exists():
        outcome = tool("train", task.recipe, "--output", folder, *task.set(save=2))
        assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def launch(root, tmp_path):
    """``launch("kill:3", "train", *arguments, processes=1)`` starts the tool in processes of its own, in one of which
    that goes wrong."""
    launches: list[Launch] = []

    def call(fault: str, verb: str, *arguments: object, processes: int = 1) -> Launch:
        folder = tmp_path / f"launch{len(launches)}"
        launches.append(Launch(root / "tools" / f"{verb}.py", fault, arguments, folder, processes))
        return launches[-1]

    yield call
    for one in launches:
        one.kill()
