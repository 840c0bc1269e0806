"""Emoji as an ImageNet-style folder: a few thousand colour pictures of some twenty classes, from packages of npm.

The packages emoji-datasource-google and emoji-datasource-twitter (64×64 PNG, MIT; the drawings are Noto's, Apache-2.0,
and Twemoji's, CC-BY 4.0) name for each emoji the subgroup that Unicode puts it in, which is its class here.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from elsa.core import DataError, write_folder

from ..listing import files_below

FEWEST = 25  # emoji of a class
HELD_OUT = 5  # one of so many is for validation
INDEX, VENDORS = "emoji.json", ("google", "twitter")
PERSONS = re.compile(r"\b(WOMAN|WOMEN|MAN|MEN|PERSON|PEOPLE|BOY|GIRL|MALE|FEMALE)\b")


def write_emoji(packages: Sequence[Path], root: Path) -> Path:
    """Writes ``root/{train,val}/CLASS/VENDOR-CODE.png``, unless it is there. The folder appears whole or not at all.

    Classes are the subgroups with FEWEST emoji or more, without their variants of skin. Every fifth emoji of a class
    is for validation, in an order by the hash of its name; the drawings of all vendors, and those of a woman, a man and
    a person doing the same, lie on one side.

    Args:
        packages: what ``npm pack`` wrote (.tgz), or a package's folder; each of one vendor.

    Raises:
        DataError: a place that is no such package.
        FileExistsError: something else lies at ``root``.
    """
    contents: dict[Path, bytes] = {}
    seen: set[str] = set()
    for package in packages:
        vendor, drawings = _read(package)
        if vendor in seen:
            raise DataError(f"{package} holds the drawings of {vendor} a second time")
        seen.add(vendor)
        contents |= drawings

    def fill(folder: Path) -> None:
        for place, content in contents.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(content)

    def is_complete(folder: Path) -> bool:
        return folder.is_dir() and {path.relative_to(folder) for path in files_below(folder)} == set(contents)

    return write_folder(root, is_complete, fill)


def _places(index: Sequence[Mapping[str, Any]], vendor: str) -> Iterator[tuple[str, Path]]:
    """(name of the image, where it goes) of the emoji that this vendor has drawn."""
    members: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in index:
        if all(one.get(f"has_img_{name}") for name in VENDORS):  # the same emoji of every vendor
            motif = " ".join(PERSONS.sub("", one["name"]).split()) or one["name"]
            members[one["subcategory"]][motif].append(one["image"])
    for subgroup, motifs in sorted(members.items()):
        if sum(map(len, motifs.values())) < FEWEST:
            continue
        label = subgroup.replace(" & ", "-and-").replace(" ", "-")
        order = sorted(motifs, key=lambda motif: hashlib.sha256(motif.encode()).digest())
        for number, motif in enumerate(order):
            split = "val" if number % HELD_OUT == 0 else "train"
            for image in motifs[motif]:
                yield image, Path(split, label, f"{vendor}-{image}")


def _read(package: Path) -> tuple[str, dict[Path, bytes]]:
    """The vendor of a package, and its drawings by where they go.

    Raises:
        DataError: none that may be used freely, or it is no such package.
    """
    wanted = "a package emoji-datasource-google or emoji-datasource-twitter, as npm pack writes it or npm installs it"
    try:
        files = dict(_wanted_files(package))
        name, index = str(json.loads(files["package.json"])["name"]), json.loads(files[INDEX])
        vendor = name.removeprefix("emoji-datasource-")
        places = _places(index, vendor) if vendor in VENDORS else ()
        drawings = {place: files[f"img/{vendor}/64/{image}"] for image, place in places}
    except (OSError, EOFError, LookupError, ValueError, TypeError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{package} is not {wanted}: {type(error).__name__}, {error}") from error
    if vendor not in VENDORS:
        raise DataError(f"{package} is {name}, not {wanted}; other drawings are not under a free licence")
    return vendor, drawings


def _wanted_files(package: Path) -> Iterator[tuple[str, bytes]]:
    """In one pass, for an archive cannot go back."""
    if package.is_dir():
        for path in (package / "package.json", package / INDEX, *package.glob("img/*/64/*.png")):
            yield path.relative_to(package).as_posix(), path.read_bytes()
        return
    with tarfile.open(package, "r|gz") as archive:
        for member in archive:
            name = member.name.partition("/")[2]  # all lies in a folder "package"
            if name in ("package.json", INDEX) or re.fullmatch(r"img/\w+/64/[\w-]+\.png", name):
                stream = archive.extractfile(member)
                yield name, stream.read() if stream else b""
