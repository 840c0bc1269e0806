"""What ``pip install`` gives: every package, the recipes, the command ``elsa``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

PACKAGES = ("core", "kernels", "models", "data", "engine", "tools")
MISTAKES = {
    "trian": "did you mean train?",
    "check-dat": "did you mean check_data?",
    "--verison": "did you mean --version?",
    "xyz": "there are benchmark, check_data, ",
}
BY_NAME = (["train", "elsa_swin_tiny", "--print-config"], ["train", "mask_rcnn_elsa_swin_tiny_1x", "--print-config"])
DIGIT = Path(__file__).resolve().parents[1] / "docs/digit.png"
BY_MODEL = ["predict", "--model", "digits-classifier", str(DIGIT)]
CALLS = (
    ["--version"],
    ["--help"],
    [],
    ["train", "--help"],
    ["check-data", "--help"],
    *([verb] for verb in MISTAKES),
    *BY_NAME,
    ["zoo", "--task", "segmentation"],
    BY_MODEL,
)
# Calls what the console script calls, once for each command line; one process, as importing takes the most time.
CALLER = """
import contextlib, io, json, sys
from importlib.metadata import entry_points
(script,) = entry_points(group="console_scripts", name="elsa")
main, said = script.load(), []
for arguments in json.loads(sys.argv[1]):
    sys.argv, code, out, err = ["/bin/elsa", *arguments], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    said.append((code, out.getvalue(), err.getvalue()))
print(json.dumps([main.__code__.co_filename, said]))
"""


@pytest.fixture(scope="module")
def installed(root, tmp_path_factory):
    """The wheel's content in a folder; built from a copy, where torch cannot be imported, hence without kernels."""
    place = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__")

    def left_out(folder, names):
        """What a checkout gathers, at its top runs and downloads too."""
        return {*ignored(folder, names), *({"runs", "datasets", "weights"} if Path(folder) == root else ())}

    shutil.copytree(root, place / "source", ignore=left_out)
    (place / "hidden").mkdir()
    (place / "hidden/torch.py").write_text("raise ImportError('hidden')")
    environment = {**os.environ, "ELSA_CUDA": "auto", "PYTHONPATH": str(place / "hidden")}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    command = [*pip, "--no-build-isolation", "-w", str(place), "."]
    done = subprocess.run(command, cwd=place / "source", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    return place


@pytest.fixture(scope="module")
def elsa(installed):
    """``elsa(*arguments)``: exit code, output and errors of the installed command, called in an empty folder."""
    (installed / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CALLER, json.dumps(CALLS)],
        cwd=installed / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(installed / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, said = json.loads(done.stdout)
    assert file == str(installed / "site/elsa/tools/__main__.py")
    return lambda *arguments: said[CALLS.index(list(arguments))]


def test_every_module_recipe_and_type_marker_is_in_the_wheel_and_nothing_else(installed):
    source, site = installed / "source", installed / "site/elsa"
    shipped = {path for package in PACKAGES for path in (source / package).rglob("*.py")}
    shipped |= {path for path in (source / "configs").rglob("*") if path.is_file()}
    expected = {str(path.relative_to(source)) for path in shipped} | {f"{package}/py.typed" for package in PACKAGES}
    found = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    assert found == expected | {"kernels/_build.json", "tools/tasks/visualize/page.html"}
    (licence,) = site.parent.glob("*.dist-info/licenses/LICENSE")
    assert licence.read_text() == (source / "LICENSE").read_text()
    assert (site.parent / "elsa_mm.pth").read_text() == (source / "models/mm/elsa_mm.pth").read_text()


def test_the_command_tells_its_version_and_its_verbs(root, elsa, installed):
    (metadata,) = installed.glob("site/*.dist-info/METADATA")
    version = next(line.split(": ")[1] for line in metadata.read_text().splitlines() if line.startswith("Version: "))
    assert elsa("--version") == [0, f"elsa {version}\n", ""]
    code, told, _ = elsa("--help")
    assert code == 0
    for path in (root / "tools").glob("[!_]*.py"):
        first = path.read_text().split('"""')[1].splitlines()[0]
        assert f"  {path.stem} " in told and first in told
    assert elsa() == elsa("--help")


def test_a_verb_runs_under_its_own_name(elsa):
    assert elsa("train", "--help")[1].startswith("usage: elsa train ")
    assert elsa("check-data", "--help")[1].startswith("usage: elsa check_data ")


@pytest.mark.parametrize(("mistake", "hint"), MISTAKES.items())
def test_a_misspelt_verb(elsa, mistake, hint):
    code, out, error = elsa(mistake)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"error: {mistake!r} is no verb of elsa; {hint}")


@pytest.mark.parametrize("call", BY_NAME)
def test_a_shipped_recipe_is_found_by_name_from_any_folder(elsa, call):
    code, out, error = elsa(*call)
    assert (code, error) == (0, "")
    assert "elsa_swin_tiny" in out


def test_figures_and_weights_are_found_from_any_folder(elsa, installed):
    code, out, error = elsa("zoo", "--task", "segmentation")
    assert (code, error) == (0, "")
    assert "upernet_elsa_swin_tiny" in out
    code, _, error = elsa(*BY_MODEL)
    assert code == 0, error
    (found,) = json.loads((installed / "elsewhere/runs/predict/predictions.json").read_text())
    assert found["top"][0]["class"] == "4"


# ---- the package alone, without the extras


def needed(root) -> set[str]:
    """Distributions that requirements/base.txt asks for, and those that they ask for."""
    lines = (root / "requirements/base.txt").read_text().splitlines()
    waiting = [Requirement(line).name for line in lines if line and not line.startswith("#")]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        try:
            asked = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system
            continue
        found.add(name)
        wanted = [one for one in map(Requirement, asked) if one.marker is None or one.marker.evaluate({"extra": ""})]
        waiting += [one.name for one in wanted if one.name not in found]
    return found


@pytest.fixture(scope="module")
def alone(root, installed):
    """``alone(*arguments)``: Python with the wheel and what its plain installation brings, and nothing else."""
    packages = installed / "packages"
    packages.mkdir()
    for name in needed(root):
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    path = os.pathsep.join(map(str, (installed / "site", packages)))

    def call(*arguments):
        command = [sys.executable, "-S", *arguments]  # -S: without the packages that are installed here
        place = installed / "site"
        return subprocess.run(
            command, cwd=place, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )

    return call


def test_a_plain_installation_has_operator_module_and_models(alone):
    code = """
import importlib.util, sys, torch, timm
import elsa.kernels, elsa.models
assert importlib.util.find_spec("yacs") is None and importlib.util.find_spec("matplotlib") is None
layer = elsa.models.ELSA(dim=16, num_heads=2, kernel_size=3)
layer(torch.randn(1, 5, 6, 16)).sum().backward()
print(timm.create_model("elsa_swin_nano", num_classes=3)(torch.randn(2, 3, 64, 64)).shape)
"""
    done = alone("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "torch.Size([2, 3])"


def test_a_plain_installation_names_the_extra_that_trains(alone):
    done = alone("-m", "elsa.tools", "train", "elsa_swin_tiny")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: elsa train needs yacs, tensorboard, matplotlib, scikit-learn, not installed")
    assert done.stderr.endswith("pip install 'elsa-attention[train]'\n")
    assert alone("-m", "elsa.tools", "--version").returncode == 0


def test_extras_ask_for_what_the_files_name(installed, root):
    (place,) = installed.glob("site/*.dist-info")
    (distribution,) = metadata.distributions(path=[str(place.parent)], name="elsa-attention")
    asked = list(map(Requirement, distribution.requires))
    by_extra = {
        extra: {one.name for one in asked if one.marker and one.marker.evaluate({"extra": extra})}
        for extra in ("train", "dense", "export", "launch", "visualize", "all")
    }
    assert {one.name for one in asked if one.marker is None} == {"torch", "timm", "numpy", "safetensors", "tqdm"}
    assert {"yacs", "matplotlib"} <= by_extra["train"] and "pycocotools" in by_extra["dense"]
    assert by_extra.pop("all") == set().union(*by_extra.values())
