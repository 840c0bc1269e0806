"""Images and label maps that belong together by their names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .listing import endings, files_below, left_out

MAP_ENDINGS = (".png", ".tif", ".tiff", ".bmp")  # of formats that lose nothing


@dataclass(frozen=True)
class Pairs:
    """Images and their label maps, by the names that they share.

    Attributes:
        both: name → (image, map).
        images, maps: name → file, of those without a partner.
        doubles: (name, its files) where several claim it.
        counts: how many images and maps there are.
        unused: how many other files lie beside the images and beside the maps, by ending.
    """

    both: dict[str, tuple[str, str]]
    images: dict[str, str]
    maps: dict[str, str]
    doubles: list[tuple[str, list[str]]]
    counts: tuple[int, int]
    unused: tuple[dict[str, int], dict[str, int]]


def find_pairs(images: Path, maps: Path, image_suffix: str | None = None, map_suffix: str | None = None) -> Pairs:
    """Images below a folder and the label maps below another; a folder that is not there holds none.

    Names are paths below the folder without the ending, so that files of one name in two folders stay two.

    Args:
        image_suffix, map_suffix: what the files end with; None: as any image does, or any map of a lossless format.

    Raises:
        DataError: a folder that cannot be entered.
    """
    own, doubles, unused = [], [], []
    for folder, suffix, known in ((images, image_suffix, endings()), (maps, map_suffix, MAP_ENDINGS)):
        named: dict[str, list[Path]] = {}
        for path in files_below(folder) if os.path.isdir(folder) else ():
            if path.name.endswith(suffix) if suffix else path.suffix.lower() in known:
                name = path.relative_to(folder).as_posix().removesuffix(suffix or path.suffix)
                named.setdefault(name, []).append(path)
        doubles += [(name, [str(path) for path in files]) for name, files in named.items() if len(files) > 1]
        used = [path for files in named.values() for path in files]
        unused.append(left_out(folder, used) if os.path.isdir(folder) else {})
        own.append({name: str(files[0]) for name, files in named.items()})
    mine, theirs = own
    return Pairs(
        both={name: (mine[name], theirs[name]) for name in sorted(mine.keys() & theirs.keys())},
        images={name: mine[name] for name in sorted(mine.keys() - theirs.keys())},
        maps={name: theirs[name] for name in sorted(theirs.keys() - mine.keys())},
        doubles=doubles,
        counts=(len(mine), len(theirs)),
        unused=(unused[0], unused[1]),
    )
