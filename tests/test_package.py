"""What ``pip install`` gives: every package, the recipes, the command ``elsa``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

PACKAGES = ("core", "kernels", "models", "data", "engine", "tools")


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory):
    """The wheel's content in a folder; built from a copy, where no compiler is found, hence without kernels."""
    place = tmp_path_factory.mktemp("package")
    kept = shutil.ignore_patterns(
        ".*", "build", "dist", "runs", "datasets", "*.so", "*.egg-info", "__pycache__", "tests"
    )
    shutil.copytree(root, place / "source", ignore=kept)
    compiler = place / "no-compiler"
    compiler.write_text("#!/bin/sh\nexit 1\n")
    compiler.chmod(0o755)
    environment = {**os.environ, "ELSA_CUDA": "0", "CXX": str(compiler), "CC": str(compiler)}
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
    ]
    done = subprocess.run([*pip, "-w", str(place), "."], cwd=place / "source", env=environment, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place / "site"


@pytest.fixture
def elsa(installed, tmp_path):
    """``elsa(*arguments)`` runs the command of the installed package in an empty folder."""

    def call(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(installed)}
        command = [sys.executable, "-m", "elsa.tools", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return call


def test_every_package_recipe_and_command_is_there(root, installed):
    for package in PACKAGES:
        for path in (root / package).rglob("*.py"):
            assert (installed / "elsa" / path.relative_to(root)).is_file(), path
        assert (installed / "elsa" / package / "py.typed").is_file()
    for path in (root / "configs").rglob("*.*"):
        if path.suffix in (".py", ".yaml"):
            assert (installed / "elsa" / path.relative_to(root)).is_file(), path
    (entry,) = installed.glob("*.dist-info/entry_points.txt")
    assert "elsa = elsa.tools.__main__:main" in entry.read_text()
    assert not (installed / "elsa" / "tests").exists()


def test_the_command_tells_its_version_and_its_verbs(root, elsa, installed):
    (metadata,) = installed.glob("*.dist-info/METADATA")
    version = next(line.split(": ")[1] for line in metadata.read_text().splitlines() if line.startswith("Version: "))
    assert elsa("--version").stdout == f"elsa {version}\n"
    told = elsa("--help").stdout
    for path in (root / "tools").glob("[!_]*.py"):
        assert f"  {path.stem} " in told


def test_a_misspelt_verb(elsa):
    done = elsa("trian", "x")
    assert done.returncode == 2
    assert done.stderr == "error: 'trian' is no verb of elsa; did you mean train?\n"


@pytest.mark.parametrize("recipe", ["elsa_swin_tiny", "mask_rcnn_elsa_swin_tiny_1x"])
def test_shipped_recipes_are_found_by_name_from_any_folder(elsa, recipe):
    done = elsa("train", recipe, "--print-config")
    assert done.returncode == 0, done.stderr
    assert "elsa_swin_tiny" in done.stdout
    assert elsa("train", "--help").stdout.startswith("usage: elsa train")
