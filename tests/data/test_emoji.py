"""Emoji of packages as a folder of classes: which, on which side, and what is no such package."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from elsa.core import DataError
from elsa.data import write_emoji

PERSONS = ("MAN", "WOMAN", "PERSON")


def emoji(name: str, code: str, subgroup: str, twitter: bool = True) -> dict:
    drawn = {"has_img_google": True, "has_img_twitter": twitter}
    return {"name": name, "image": f"{code}.png", "subcategory": subgroup, **drawn}


INDEX = [
    *(emoji(f"{who} NUMBER {n}", f"1f{n:03}{who[0].lower()}", "person-role") for n in range(10) for who in PERSONS),
    *(emoji(f"CLOUD {n}", f"2f{n:03}", "sky & weather") for n in range(25)),
    *(emoji(f"RARE {n}", f"3f{n:03}", "rare") for n in range(24)),
    emoji("NOT DRAWN BY ALL", "4f000", "rare", twitter=False),
]


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGBA", (4, 4), (shade, 0, 0, 128)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def packages(tmp_path) -> list[Path]:
    """google's as npm packs it, with a sheet that is not wanted, and twitter's as it is installed."""
    found = []
    for number, vendor in enumerate(("google", "twitter")):
        folder = tmp_path / f"emoji-datasource-{vendor}"
        (folder / f"img/{vendor}/64").mkdir(parents=True)
        (folder / f"img/{vendor}/sheets").mkdir()
        (folder / f"img/{vendor}/sheets/64.png").write_bytes(b"a sheet")
        (folder / "package.json").write_text(json.dumps({"name": folder.name}))
        (folder / "emoji.json").write_text(json.dumps(INDEX))
        for one in INDEX:
            (folder / f"img/{vendor}/64" / one["image"]).write_bytes(png(100 * number))
        found.append(folder)
    packed = tmp_path / "google.tgz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(found[0], "package")
    return [packed, found[1]]


def test_subgroups_of_enough_emoji_are_the_classes_and_no_motif_lies_on_both_sides(packages, tmp_path):
    root = write_emoji(packages, tmp_path / "emoji")
    found = {path.relative_to(root) for path in root.rglob("*.png")}
    assert {path.parts[1] for path in found} == {"person-role", "sky-and-weather"}
    assert len(found) == 2 * (30 + 25) and {path.parts[0] for path in found} == {"train", "val"}
    motifs = {split: {path.name.partition("-")[2][:5] for path in found if path.parts[0] == split}
              for split in ("train", "val")}  # fmt: skip
    assert not motifs["train"] & motifs["val"], "a man and a woman doing the same, or two drawings of one emoji"
    assert len([path for path in found if path.parts[:2] == ("val", "sky-and-weather")]) == 2 * 5
    assert len([path for path in found if path.parts[:2] == ("val", "person-role")]) == 2 * 2 * 3
    with Image.open(root / next(path for path in found if path.name.startswith("twitter"))) as image:
        assert image.getpixel((0, 0)) == (100, 0, 0, 128)


def test_the_same_again_and_nothing_else_is_touched(packages, tmp_path):
    root = write_emoji(packages, tmp_path / "emoji")
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.png")}
    assert write_emoji(packages[::-1], root) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == times
    with pytest.raises(FileExistsError):
        write_emoji(packages[:1], root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.png")} == times


@pytest.mark.parametrize("damage", ["absent", "no archive", "cut off", "no package", "apple", "a drawing is missing"])
def test_what_is_no_such_package_is_named(packages, tmp_path, damage):
    package, folder = packages
    if damage == "absent":
        package = tmp_path / "nothing.tgz"
    elif damage == "no archive":
        package.write_bytes(b"GIF89a")
    elif damage == "cut off":
        package.write_bytes(package.read_bytes()[:2000])
    elif damage == "no package":
        package = tmp_path
    elif damage == "apple":
        (folder / "package.json").write_text(json.dumps({"name": "emoji-datasource-apple"}))
        package = folder
    else:
        (folder / "img/twitter/64/2f003.png").unlink()
        package = folder
    with pytest.raises(DataError, match="package emoji-datasource-google or emoji-datasource-twitter") as told:
        write_emoji([package], tmp_path / "emoji")
    assert str(package) in str(told.value) and not (tmp_path / "emoji").exists()


def test_two_packages_of_one_vendor_are_refused(packages, tmp_path):
    with pytest.raises(DataError, match="twitter a second time"):
        write_emoji([packages[1], packages[1]], tmp_path / "emoji")
