"""Processes in which something goes wrong, for the suite of guarantees."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path

import torch
import yaml

from elsa.data import TrainLoader
from elsa.engine import Step, Trainer

# Forked from a server that has imported everything, a process starts in a moment.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("elsa.models.mm", "elsa.data.mm.loaders", "elsa.data.mm.maps", "mmdet.models", "mmseg.models"),
        *(f"elsa.tools.tasks.{task}" for task in ("classification", "detection", "segmentation")),
        *("mmdet.evaluation", "mmseg.evaluation", "launches"),
    ]
)


class Launch:
    """A tool in processes of its own, as a launcher starts them; ``fault`` happens in one of them.

    Args:
        fault: KIND:NUMBER or KIND:FILE:NUMBER, and @RANK where that is not 0; see ``arm``.
        folder: for what the processes say and note.
    """

    def __init__(self, script: Path, fault: str, arguments: tuple[object, ...], folder: Path, count: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.count = folder, count
        folder.mkdir(exist_ok=True)
        given = (str(script), fault, [str(argument) for argument in arguments], folder)
        self.processes = [SERVER.Process(target=_play, args=(*given, rank, count, port)) for rank in range(count)]
        for rank, process in enumerate(self.processes):
            (folder / f"said.{rank}").touch()
            process.start()

    def wait(self, seconds: float = 120) -> list[int | None]:
        """Exit codes, of ranks in order; None for what is still alive and was killed."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.kill()
        return codes

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def said(self, rank: int = 0) -> str:
        return (self.folder / f"said.{rank}").read_text()

    def seen(self) -> dict[int, list[int]]:
        """Step → fingerprints of the augmented images that it saw in all processes, sorted."""
        steps: dict[int, list[int]] = {}
        for rank in range(self.count):
            for line in (self.folder / f"seen.{rank}").read_text().splitlines():
                step, images = json.loads(line)
                steps.setdefault(step, []).extend(images)
        return {step: sorted(images) for step, images in steps.items()}


def _play(script: str, fault: str, arguments: list[str], folder: Path, rank: int, count: int, port: int) -> None:
    """The tool in this process."""
    with (folder / f"said.{rank}").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as where nobody is forked from a server
    if count > 1:
        torch.set_num_threads(1)  # as torchrun has it
        place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        os.environ.update({name: str(value) for name, value in place.items()})
    note_images(folder / f"seen.{rank}")
    sys.argv = [script, *arguments]
    what, _, sufferer = fault.partition("@")
    if rank == int(sufferer or 0):
        arm(*what.split(":"))
    runpy.run_path(script, run_name="__main__")


def note_images(path: Path) -> None:
    """Has every step write down what images it sees."""
    epoch = TrainLoader.epoch

    def noted(self, number, first_step=0):
        with path.open("a") as notes:
            for step, batches in enumerate(epoch(self, number, first_step), number * self.steps_per_epoch + first_step):
                images = itertools.chain(*(b["inputs"] if isinstance(b, dict) else b.images for b in batches))
                prints = [zlib.crc32(image.contiguous().numpy().tobytes()) for image in images]
                print(json.dumps([step, prints]), file=notes, flush=True)
                yield batches

    TrainLoader.epoch = noted


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def arm(kind: str, *where: str) -> None:
    """Has this process suffer a fault.

    In a step: ``kill``, ``begin`` (killed as it begins), ``hang``, ``freeze`` (SIGSTOP), ``stop`` (SIGTERM) and
    ``job`` (SIGTERM, to all loader processes too); ``loss`` and ``gradient``: not finite, ``losses`` and
    ``gradients``: from that step on; ``update``: the weights are not after it. ``blind``: the data of
    classification are not there; ``evaluate``: killed with the second batch of an evaluation; ``write``: killed
    with half of a file written; ``rename``: killed before a file gets its name. The last part is which step,
    evaluation or writing of the file, from 1 and in this process.
    """
    if kind == "none":
        return
    if kind == "blind":
        sys.argv += ["--set", f"DATA.ROOT={yaml.safe_load(Path(sys.argv[1]).read_text())['DATA']['ROOT']}-gone"]
        return
    *file, number = where
    {"write": _in_write, "rename": _in_rename, "evaluate": _in_evaluation}.get(kind, _in_step)(kind, int(number), *file)


def _in_step(kind: str, number: int) -> None:
    count, agree, call = Trainer.count, Trainer.agree, Step.__call__
    steps = itertools.count(1)

    def counted(self, record):
        count(self, record)
        if self.state.step == number:
            {"kill": die, "hang": hang, "freeze": freeze}.get(kind, int)()

    def agreed(self, stop, record):
        if kind == "stop" and self.state.step + 1 == number:
            os.kill(os.getpid(), signal.SIGTERM)
        if kind == "job" and self.state.step + 1 == number:
            subprocess.run(["kill", "-TERM", *(str(process.pid) for process in multiprocessing.active_children())])
            os.kill(os.getpid(), signal.SIGTERM)
        return agree(self, stop, record)

    def broken(loss, terms):
        return loss * float("nan"), terms

    def hang():
        print("hangs", file=sys.stderr, flush=True)
        time.sleep(600)

    def stepped(self, micro_batches):
        step = next(steps)
        if step != number and not (kind in ("losses", "gradients") and step > number):
            return call(self, micro_batches)
        if kind == "begin":
            die()
        weight = next(parameter for parameter in self.source.parameters() if parameter.requires_grad)
        loss, hook = self.loss, None
        if kind.startswith("loss"):
            self.loss = lambda batch: broken(*loss(batch))
        if kind.startswith("gradient"):
            hook = weight.register_hook(lambda gradient: gradient * float("nan"))
        record = call(self, micro_batches)
        self.loss = loss
        if hook is not None:
            hook.remove()
        if kind == "update":
            weight.data.fill_(float("nan"))
        return record

    Trainer.count, Trainer.agree, Step.__call__ = counted, agreed, stepped


def _in_evaluation(_: str, number: int) -> None:
    evaluate, evaluations = Trainer.evaluate_and_save, itertools.count(1)

    def evaluated(self):
        if next(evaluations) == number:
            batches = itertools.count(1)
            self.evaluated.register_forward_pre_hook(lambda *_: die() if next(batches) == 2 else None)
        evaluate(self)

    Trainer.evaluate_and_save = evaluated


def _in_write(_: str, number: int, file: str) -> None:
    save, saves = torch.save, itertools.count(1)

    def half(content, path):
        save(content, path)
        if Path(path).name.startswith(f".{file}.") and next(saves) == number:
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    torch.save = half


def _in_rename(_: str, number: int, file: str) -> None:
    replace, renames = Path.replace, itertools.count(1)

    def replaced(self, target):
        if Path(target).name == file and next(renames) == number:
            die()
        return replace(self, target)

    Path.replace = replaced
