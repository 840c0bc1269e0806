"""Loading measured, stage by stage and as a whole, against the model's own speed."""

from __future__ import annotations

import argparse
import io
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from elsa.core import ConfigError, check_writable, setup_logging
from elsa.data import TrainLoader, decode
from elsa.data.workers import Loader
from elsa.engine import TrainState, choose_parallel, distributed

from .. import command
from . import machine
from .data_report import tell
from .timm_loader import compare_decoding, timm_loader

STAGES = ("read", "decode", "augment", "collate", "transfer")
MARGIN = 1.1  # by which loading ought to be faster than the model, which a slow moment would stop
Seconds = dict[str, float]


def benchmark_data(args: argparse.Namespace) -> None:
    """Measures, tells, and writes data.json and data.png.

    Raises:
        ConfigError: a folder that cannot be written, or data without random access.
    """
    check_writable(args.output)
    setup_logging(0)
    task, recipe = command.read(command.find_recipe(args.config), args.overrides)
    cores = len(machine.cores())
    with distributed(args.device) as runtime:
        training = task.build(recipe, runtime, None, False)
        batches = training.batches
        if batches.sampler is None:
            raise ConfigError(f"{args.config}: its data are a stream; what is measured here needs random access")
        rivals = {"elsa": lambda workers: our_loader(batches, workers)}
        if theirs := timm_loader(recipe.config, batches):
            rivals["timm"] = theirs
        counts = args.workers or tuple(sorted({0, 1, *(2**n for n in range(1, 10) if 2**n < cores), cores}))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as in a loader process
        stages = measure_stages(batches, runtime.device, args.seconds)
        decoding = compare_decoding(batches, args.seconds)
        loading = [measure_loading(rivals, workers, batches.sampler, args.seconds) for workers in counts]
        torch.set_num_threads(threads)
        model = measure_step(training, runtime, args.seconds)
    result = {"recipe": str(args.config), "device": str(runtime.device), "cores": cores,
              "micro_batch": training.plan.micro_batch, "milliseconds": stages,
              "images_per_s_per_core": 1e3 / sum(stages[name] for name in stages if name != "transfer"),
              "decoding": decoding, "loading": loading, "model_images_per_s": model}  # fmt: skip
    tell({**result, "advice": advise(result, cores)}, args.output)


def measure_stages(batches: TrainLoader, device: torch.device, seconds: float) -> Seconds:
    """Milliseconds of each stage per image, in one process."""
    dataset, loader, spent, count = batches.loader.dataset, batches.loader, defaultdict(float), 0
    load = _classified if hasattr(dataset, "source") else _dense
    began = time.perf_counter()
    for keys in _endless_keys(batches.sampler):
        if count and time.perf_counter() - began > seconds:
            break
        rows = []
        for key in keys:
            load(dataset, key, spent)
            rows.append(dataset[key])  # whole, with what stands in for an image that cannot be used
        batch = _timed(spent, "collate", lambda rows=rows: loader.collate_fn(rows))
        _timed(spent, "transfer", lambda batch=batch: _move(batch, device))
        count += len(rows)
    return {name: 1e3 * spent[name] / count for name in STAGES if name in spent}


def _timed(spent: Seconds, stage: str, call: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    result = call()
    spent[stage] += time.perf_counter() - start
    return result


def _classified(dataset: Any, key: tuple[int, int], spent: Seconds) -> None:
    """An image of classification on its way."""
    source = dataset.source
    content = _timed(spent, "read", lambda: _content(source.items[key[1]][0]))
    try:
        image = _timed(spent, "decode", lambda: decode(content, source.mode))
    except ValueError:  # counted where it is trained on
        return
    _timed(spent, "augment", lambda: dataset.transform(image))


def _content(item: Any) -> Any:
    """A file's bytes in memory, so that reading is not part of decoding; or pixels as they are."""
    return io.BytesIO(Path(item).read_bytes()) if isinstance(item, str) else item


def _dense(dataset: Any, key: tuple[int, int], spent: Seconds) -> None:
    """An image of detection or segmentation: reading is part of decoding, annotations are part of augmentation."""
    entry = dataset.get_data_info(key[1])
    for step in dataset.dataset.pipeline.transforms:
        stage = "decode" if type(step).__name__ == "DecodeImage" else "augment"
        entry = _timed(spent, stage, lambda step=step, entry=entry: step(entry))
        if entry is None:  # the crop left no object
            return


def _move(batch: Any, device: torch.device) -> None:
    """The images of a batch to the device, and waits for them."""
    images = batch["inputs"] if isinstance(batch, dict) else batch.images
    for part in [images] if isinstance(images, Tensor) else images:
        part.to(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def our_loader(batches: TrainLoader, workers: int) -> DataLoader:
    """The loader of the training with another number of processes."""
    loader = batches.loader
    return Loader(loader.dataset, batch_sampler=batches.sampler, num_workers=workers, collate_fn=loader.collate_fn,
                  worker_init_fn=loader.worker_init_fn, pin_memory=loader.pin_memory, batch_bytes=0,
                  setting="--workers")  # fmt: skip


def _endless_keys(sampler: Any) -> Iterator[list[tuple[int, int]]]:
    for epoch in itertools.count():
        sampler.epoch = epoch
        yield from sampler


def _endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader


def measure_loading(rivals: dict[str, Callable], workers: int, sampler: Any, seconds: float) -> dict[str, float]:
    """Images per second of each, which take turns: batch by batch in one process; with loader processes, which work
    ahead, one after the other, twice, and the faster time counts."""
    size = len(next(iter(sampler)))
    rates, rounds = dict.fromkeys(rivals, 0.0), 1 if workers == 0 else 2
    if workers == 0:
        loaders = {name: _endless(make(0)) for name, make in rivals.items()}
        for loader in loaders.values():
            next(loader)
        spent, turns = dict.fromkeys(rivals, 0.0), 0
        while sum(spent.values()) < seconds * len(rivals) or turns < 2:
            for name, loader in loaders.items():
                _timed(spent, name, loader.__next__)
            turns += 1
        return {"workers": 0, **{name: turns * size / spent[name] for name in rivals}}
    for name, make in list(rivals.items()) * rounds:
        loader = _endless(make(workers))
        for _ in range(2 * workers + 1):  # what was loaded ahead while processes started
            next(loader)
        began, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - began) < seconds or not count:
            next(loader)
            count += size
        rates[name] = max(rates[name], count / passed)
        loader.close()
    return {"workers": workers, **rates}


def measure_step(training: Any, runtime: Any, seconds: float) -> float:
    """Images per second of training steps on one batch that is there: the model's own speed."""
    parallel = choose_parallel(training.options.parallel, runtime)
    spread = parallel.spread(training.model, training.optimizer, None)
    scaler = training.precision.grad_scaler(training.model, training.optimizer)
    state = TrainState(model=training.model, optimizer=training.optimizer, scaler=scaler, ema=None,
                       schedule=training.schedule)  # fmt: skip
    step = training.make_step(spread, state, parallel)
    micro_batches = next(training.batches.epoch(0))
    began = count = 0.0
    for number in itertools.count():
        record = step(micro_batches)
        record.loss.item()  # waits for a GPU
        if number == 0:
            began = time.perf_counter()  # the first one prepares
            continue
        count += record.images
        if time.perf_counter() - began > seconds:
            return count / (time.perf_counter() - began)
    raise AssertionError("unreachable")


def advise(result: dict[str, Any], cores: int) -> dict[str, Any]:
    """How many loader processes, what holds training up, and what to do."""
    model, per_core, stages = result["model_images_per_s"], result["images_per_s_per_core"], result["milliseconds"]
    enough = [row["workers"] for row in result["loading"] if row["elsa"] >= MARGIN * model]
    needed = min(enough) if enough else math.ceil(MARGIN * model / per_core)
    slowest = max(("read", "decode", "augment"), key=lambda name: stages.get(name, 0.0))
    if stages.get("transfer", 0.0) > 1e3 / model:
        return {"workers": needed, "bottleneck": "transfer", "do": "the device's link is slower than its arithmetic"}
    if enough or needed <= cores:
        return {"workers": needed, "bottleneck": "model", "do": "loading keeps up"}
    cures = {
        "read": "reading takes longest: shards (tools/make_shards.py) on a disk of this machine",
        "decode": "decoding takes longest: images saved smaller, their short side a little above what is trained on",
        "augment": "augmentation takes longest: a lighter one, or images saved smaller",
    }
    share = max((row["elsa"] for row in result["loading"]), default=per_core) / model
    do = f"{needed} cores would be needed, there are {cores}; loading gives {share:.0%} of the images. {cures[slowest]}"
    return {"workers": cores, "bottleneck": slowest, "do": do}
