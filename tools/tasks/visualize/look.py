"""The views of a network on images, for every task: attention, ghost head, receptive fields, Grad-CAM."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from elsa.core import ConfigError, DataError, check_writable, logger, make_folder
from elsa.data import UnreadableImage

from ..command import find_images
from ..pictures import save_figure
from . import draw, page
from .attention import Layer, choose, elsa_layers, watched, with_ghost_head
from .evidence import PACKAGE, Evidence, is_installed
from .field import receptive_fields, stage_maps

MOST = 8  # pictures
CHOICES = ("stage", "block", "head", "position")


@dataclass(frozen=True)
class Picture:
    """An image as a network sees it.

    Attributes:
        pixels: (H, W, 3), 0 … 255.
        images: (1, C, H', W'), the network's input; what was padded lies at the right and at the bottom.
    """

    path: Path
    pixels: np.ndarray
    images: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[:2]
        return height, width


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        name: of the network; backbone: what has the stages, in evaluation mode, without gradients of its own.
        explain: Grad-CAM of a picture.
    """

    name: str
    backbone: nn.Module
    pictures: Sequence[Picture]
    explain: Callable[[Picture], Evidence]


def add_options(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("images", type=Path, nargs="+", metavar="IMAGE|FOLDER")
    arguments.add_argument("--output", type=Path, default=Path("runs/visualize"), metavar="DIR")
    for name, of in (("stage", "network"), ("block", "stage"), ("head", "block")):
        which = "first" if name == "head" else "last with ELSA"
        arguments.add_argument(
            f"--{name}", type=int, metavar="N", help=f"of the {of}, from 1, in the PNG files; default: the {which}"
        )
    arguments.add_argument("--position", metavar="X,Y", help="a pixel of the picture as the network sees it, from 0, "
                           "in the PNG files; default: the middle")  # fmt: skip
    arguments.add_argument("--target", metavar="CLASS", help="name or number of the class that Grad-CAM is of")
    arguments.add_argument("--noise", type=int, metavar="N", help="receptive fields on N images of noise")


def check(args: argparse.Namespace) -> None:
    """Raises ConfigError where an option can be known to be wrong before any work."""
    check_writable(args.output)
    if args.noise is not None and args.noise < 1:
        raise ConfigError(f"--noise must be at least 1, got {args.noise}")
    if args.target is not None and not is_installed():
        raise ConfigError(f"--target {args.target}: {PACKAGE}")
    if args.position is not None:
        _pixel(args.position)


def open_pictures(places: Sequence[Path], load: Callable[[Path], Picture]) -> list[Picture]:
    """The images of files and folders, MOST at most; one that cannot be read is named and left out.

    Raises:
        DataError: there is none, or none can be read.
    """
    paths = find_images(places)
    pictures, last = [], ""
    for path in paths:
        if len(pictures) == MOST:
            logger.info("the first %d of %d images are shown", MOST, len(paths))
            break
        try:
            pictures.append(load(path))
        except UnreadableImage as error:
            logger.warning("skipping %s", error)
            last = error.reason
    if not pictures:
        raise DataError(f"none of the {len(paths)} images can be read: {last}")
    return pictures


def _pixel(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--position must be X,Y, two whole numbers of pixels such as 112,96, got {text!r}")
    return int(parts[0]), int(parts[1])


def position_in(picture: Picture, text: str | None) -> tuple[int, int]:
    """The pixel x, y that ``--position`` names; without it the middle one.

    Raises:
        ConfigError: it lies outside the picture.
    """
    height, width = picture.size
    x, y = (width // 2, height // 2) if text is None else _pixel(text)
    if x >= width or y >= height:
        raise ConfigError(
            f"--position {text} lies outside {picture.path} as the network sees it: X is 0 … {width - 1}, "
            f"Y is 0 … {height - 1}"
        )
    return x, y


def look(subject: Subject, args: argparse.Namespace) -> None:
    """Writes every view that there is of the network into ``args.output``.

    Raises:
        ConfigError: a stage, block, head or position that there is not.
    """
    layers = elsa_layers(subject.backbone)
    given = [name for name in CHOICES if getattr(args, name) is not None]
    if given and not layers:
        raise ConfigError(f"--{given[0]}: {subject.name} has no ELSA, and so no Hadamard attention to choose from")
    chosen = choose(layers, args.stage, args.block, args.head) if layers else None
    positions = [position_in(picture, args.position) for picture in subject.pictures]
    make_folder(args.output)
    written = []
    if chosen is None:
        logger.info("%s has no ELSA: it has no Hadamard attention and no ghost head to show", subject.name)
    else:
        written += _attention(subject, layers, *chosen, positions, args)
    written += _fields(subject, args)
    written += _evidence(subject, args)
    shown = len(subject.pictures)
    logger.info("%s: %s in %s", f"{shown} picture{'s' * (shown > 1)}", ", ".join(written), args.output)


def _attention(
    subject: Subject,
    layers: list[Layer],
    layer: Layer,
    head: int,
    positions: Sequence[tuple[int, int]],
    args: argparse.Namespace,
) -> Iterator[str]:
    share = page.MOST_BYTES // (len(layers) * len(subject.pictures))
    rows, pages = [], []
    run = stage_maps(subject.backbone)
    assert run is not None  # of networks with ELSA
    progress = tqdm(subject.pictures, desc="attention", unit="image", disable=None, leave=False)
    for picture, (x, y) in zip(progress, positions, strict=True):
        kept: list[dict] = []

        def note(seen: Layer, attention: Tensor, picture: Picture = picture, kept: list[dict] = kept,
                 place: tuple[int, int] = (x, y)) -> None:  # fmt: skip
            grid = seen.grid(*picture.size)
            inside = attention[0, : grid[0], : grid[1]]
            kept.append(page.quantised(inside, page.thinning(seen, grid, share)))
            if seen is layer:
                row, column = seen.cell(*place)
                shares = inside[row, column]
                parts = shares.cpu(), with_ghost_head(seen.module, shares).cpu()
                rows.append(draw.Attention(picture.path.name, picture.pixels, (row, column), *parts))

        with torch.no_grad(), watched(layers, note):
            run(picture.images)
        pages.append(page.of_picture(picture.pixels, picture.path.name, kept))
    save_figure(draw.attention(rows, layer, head, subject.name), args.output / "attention.png")
    yield "attention.png"
    if layer.module.ghost_head is None:
        logger.info("%s has no ghost head", layer.name)
    else:
        save_figure(draw.ghost_head(layer, subject.name), args.output / "ghost_head.png")
        yield "ghost_head.png"
    x, y = positions[0]
    first = {"stage": layer.stage, "layer": layers.index(layer), "head": head, "x": x, "y": y}
    content = {"network": subject.name, "checkpoint": args.checkpoint.name, "first": first, "pictures": pages,
               "layers": [page.about(one) for one in layers]}  # fmt: skip
    page.write_page(args.output / "attention.html", content)
    yield "attention.html"


def _fields(subject: Subject, args: argparse.Namespace) -> Iterator[str]:
    maps = stage_maps(subject.backbone)
    if maps is None:
        logger.info("%s does not tell the maps of its stages: no receptive fields", subject.name)
        return
    images = [(picture.images, picture.size) for picture in subject.pictures]
    if args.noise is not None:
        like, size = images[0]
        generator = torch.Generator().manual_seed(0)
        images = [(torch.randn(like.shape, generator=generator).to(like), size) for _ in range(args.noise)]
    on = f"{len(images)} image{'s' * (len(images) > 1)}" + " of noise" * (args.noise is not None)
    save_figure(draw.fields(receptive_fields(maps, images), subject.name, on), args.output / "receptive_field.png")
    yield "receptive_field.png"


def _evidence(subject: Subject, args: argparse.Namespace) -> Iterator[str]:
    if not is_installed():
        logger.info("no gradcam.png: %s", PACKAGE)
        return
    progress = tqdm(subject.pictures, desc="Grad-CAM", unit="image", disable=None, leave=False)
    found = [(picture.path.name, picture.pixels, subject.explain(picture)) for picture in progress]
    save_figure(draw.evidence(found, subject.name), args.output / "gradcam.png")
    yield "gradcam.png"
