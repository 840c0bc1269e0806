"""Training samples as a model gets them: augmented, mixed, and with the targets that its loss has."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from elsa.core import ConfigError, check_writable, logger, make_folder, seed_everything
from elsa.data import Batch, build_mix, build_mix_token, token_targets, train_loader
from elsa.engine import Runtime, TokenLabelLoss

from ..gallery import exchanged, mixed_text
from ..networks import create_network, open_data, token_grid
from ..pictures import NAME, add_legend, denormalised, grid, plain, save_figure

BATCH = 4  # of which mixup, cutmix and mix-token pair the images
LEAST = 128  # pixels of a picture's longer side
MOST_COLOURS = 19  # of the 20 that a palette has; the last is of all other classes
PALETTE = colormaps["tab20"]


def add_options(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--output", type=Path, required=True, metavar="FILE.png")
    arguments.add_argument("--count", type=int, default=16, metavar="N", help="samples that are drawn; default 16")


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError where an option can be known to be wrong before any work."""
    if args.output.suffix != ".png":
        raise ConfigError(f"--output must be a .png, got {args.output}")
    if not 1 <= args.count <= 200:
        raise ConfigError(f"--count must be between 1 and 200, got {args.count}")
    check_writable(args.output.parent)


def write_sheet(figure: Figure, args: argparse.Namespace, shown: int) -> None:
    make_folder(args.output.parent)
    save_figure(figure, args.output)
    logger.info("%s: %d samples", args.output, shown)


def show_batches(config: CfgNode, args: argparse.Namespace, runtime: Runtime) -> None:
    """The first samples of a training's first epoch, mixed within small batches, so that several mixtures are seen.

    Raises:
        DataError: see ``train_loader``.
    """
    [source] = open_data(config, runtime, "train")
    planned = config.clone()
    planned.defrost()
    planned.DATA.BATCH, planned.TRAIN.ACCUM, planned.DATA.WORKERS = BATCH, 1, 0
    planned.freeze()
    names = getattr(source, "classes", []) or [str(number) for number in range(config.MODEL.NUM_CLASSES)]
    samples = TokenSamples(planned, names) if config.TOKENS.ENABLED else Samples(planned, names)
    for step, [batch] in enumerate(train_loader(planned, source, 0, 1).epoch(0)):
        seed_everything(config.TRAIN.SEED, 0, step)  # as a training's steps
        samples.add(batch)
        if len(samples.cells) >= args.count:
            break
    shown = min(args.count, len(samples.cells))
    write_sheet(samples.draw(shown, f"{config.MODEL.NAME}: training samples"), args, shown)


class Samples:
    """Samples with their classes, after mixup and cutmix with the shares of both."""

    def __init__(self, config: CfgNode, names: Sequence[str]) -> None:
        self.config, self.names = config, names
        self.mix = build_mix(config, BATCH)
        self.cells: list[tuple[Image.Image, str]] = []

    def add(self, batch: Batch) -> None:
        images, texts = batch.images, [plain(self.names[target], NAME) for target in batch.targets.tolist()]
        if self.mix is not None:
            images, targets = self.mix(images, batch.targets)
            texts = [mixed_text(self.names, row) for row in targets]
        self.cells += [(self.picture(image), text) for image, text in zip(images, texts, strict=True)]

    def picture(self, image: Tensor) -> Image.Image:
        """(C, H, W) as the model gets it, a small one with pixels that are seen."""
        picture = denormalised(image, self.config.DATA.MEAN, self.config.DATA.STD).convert("RGB")
        factor = -(-LEAST // max(picture.size))
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)

    def draw(self, count: int, title: str) -> Figure:
        cells = [(picture, text, "black") for picture, text in self.cells[:count]]
        return grid(cells, title, columns=8 if count > 4 else 4, cell=(1.7, 2.1))


class TokenSamples(Samples):
    """Samples with the target of the class token, and beside each picture the class that each patch token is most of,
    pale where that is little."""

    def __init__(self, config: CfgNode, names: Sequence[str]) -> None:
        super().__init__(config, names)
        with torch.device("meta"):
            network = create_network(config)
        self.grid, self.stride = token_grid(config, network), network.token_stride
        self.draw_box = build_mix_token(config, BATCH, self.grid)
        self.loss = TokenLabelLoss(ground_truth=config.TOKENS.GROUND_TRUTH)
        self.tokens: list[tuple[Tensor, Tensor]] = []  # share and class of each token, (rows, columns)

    def add(self, batch: Batch) -> None:
        classes, smoothing = self.config.MODEL.NUM_CLASSES, self.config.AUG.SMOOTHING
        targets = token_targets(batch.tokens, batch.targets, classes, self.grid, smoothing)
        images, of_tokens = batch.images, targets[2].unflatten(1, self.grid).permute(0, 3, 1, 2)
        kept = 1.0
        if self.draw_box is not None:
            box = self.draw_box()
            top, left, bottom, right = box.tolist()
            kept = 1 - (bottom - top) * (right - left) / targets[2].shape[1]
            images, of_tokens = exchanged(images, box * self.stride), exchanged(of_tokens, box)
        texts = [mixed_text(self.names, row, ", ") for row in self.loss.target_of_class(targets, kept)]
        self.cells += [(self.picture(image), text) for image, text in zip(images, texts, strict=True)]
        self.tokens += zip(*of_tokens.max(1), strict=True)

    def draw(self, count: int, title: str) -> Figure:
        colours = _colours(torch.stack([classes for _, classes in self.tokens[:count]]))
        cells = []
        for (picture, text), (share, classes) in zip(self.cells[:count], self.tokens, strict=False):
            cells.append((_beside(picture, share, classes, colours), text, "black"))
        figure = grid(cells, f"{title}, and the classes of their tokens (pale: less sure)", columns=4, cell=(3.3, 2.0))
        texts = {label: plain(self.names[label], NAME) if label >= 0 else "others" for label in colours}
        patches = [Patch(color=colour) for colour in colours.values()]
        style = dict(loc="outside lower center", ncols=min(10, len(texts)), fontsize=8)
        add_legend(figure, patches, list(texts.values()), **style)
        return figure


def _colours(classes: Tensor) -> dict[int, tuple[float, ...]]:
    """A colour for each class, the most frequent first; −1 stands for all others where they are too many."""
    counted = [label for label, _ in Counter(classes.flatten().tolist()).most_common()]
    colours = {label: PALETTE(place)[:3] for place, label in enumerate(counted[:MOST_COLOURS])}
    return colours | ({-1: PALETTE(MOST_COLOURS)[:3]} if len(counted) > MOST_COLOURS else {})


def _beside(picture: Image.Image, share: Tensor, label: Tensor, colours: dict[int, tuple[float, ...]]) -> Image.Image:
    """The picture, and to the right of it its map of tokens, (rows, columns) each."""
    tones = np.array([[colours.get(one, colours.get(-1)) for one in line] for line in label.tolist()])
    strength = share.numpy()[..., None]
    pixels = (255 * (1 - strength * (1 - tones))).round().astype(np.uint8)
    tokens = Image.fromarray(pixels).resize(picture.size, Image.Resampling.NEAREST)
    both = Image.new("RGB", (2 * picture.width + 6, picture.height), "white")
    both.paste(picture, (0, 0))
    both.paste(tokens, (picture.width + 6, 0))
    return both
