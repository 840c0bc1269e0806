"""Licence, citation, version and metadata say the same, wherever they stand."""

from __future__ import annotations

import re

import pytest
import yaml
from packaging.requirements import Requirement

from elsa.core import __version__
from elsa.tools.tasks.doctor.dense import TESTED

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
AUTHORS = ["Zhou, Jingkai", "Wang, Pichao", "Wang, Fan", "Liu, Qiong", "Li, Hao", "Jin, Rong"]
TITLE = "ELSA: Enhanced Local Self-Attention for Vision Transformer"


@pytest.fixture
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture
def citation(root):
    return yaml.safe_load((root / "CITATION.cff").read_text())


def requirements(path) -> dict[str, Requirement]:
    """{name: what is asked for}, with the files that the file names."""
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    found = {one.name: one for one in (Requirement(line) for line in lines if line and not line.startswith("-r "))}
    for line in lines:
        if line.startswith("-r "):
            found |= requirements(path.parent / line.removeprefix("-r "))
    return found


def test_the_version_stands_in_one_place(root, project, citation):
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "core.version.__version__"}
    assert "version" in project["project"]["dynamic"]
    assert citation["version"] == __version__
    headings = re.findall(r"^## \[(.+?)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert __version__ == next(heading for heading in headings if heading != "Unreleased")


def test_licence_and_names(root, project, citation):
    about = project["project"]
    text = (root / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert about["license"] == citation["license"] == "Apache-2.0"
    assert about["license-files"] == ["LICENSE"]
    assert [author["name"] for author in about["authors"]] == [author["name"] for author in citation["authors"]]
    assert about["description"].startswith(f"{TITLE}.") and citation["title"].startswith(TITLE)
    assert "urls" not in about and not [name for name in about["classifiers"] if name.startswith("License")]


def test_python_is_the_same_everywhere(project):
    oldest = re.fullmatch(r">=3\.(\d+)", project["project"]["requires-python"])[1]
    versions = [name.rpartition(".")[2] for name in project["project"]["classifiers"] if ":: 3." in name]
    assert versions[0] == oldest
    assert project["tool"]["mypy"]["python_version"] == f"3.{oldest}"
    assert project["tool"]["ruff"]["target-version"] == f"py3{oldest}"


def test_the_paper_is_cited_alike_for_people_and_machines(root, citation):
    paper, text = citation["preferred-citation"], (root / "README.md").read_text()
    assert [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]] == AUTHORS
    assert (paper["title"], paper["year"]) == (TITLE, 2021)
    entry = dict(re.findall(r"^ +(\w+) += \{(.+)\},?$", text[text.index("@article") :], re.MULTILINE))
    assert entry["author"].split(" and ") == AUTHORS
    assert entry["title"].replace("{", "").replace("}", "") == TITLE
    assert (entry["journal"], entry["year"]) == (paper["journal"], "2021")


def test_dependencies_are_ranges_and_the_tested_versions_lie_in_them(root):
    tested = requirements(root / "requirements/tested.txt")
    assert all(next(iter(pin.specifier)).operator == "==" for pin in tested.values())
    asked = {}
    for name in ("requirements.txt", "requirements/dense.txt", "requirements/test.txt"):
        asked |= requirements(root / name)
    assert set(requirements(root / "requirements.txt")) <= set(tested) <= set(asked)
    for name, requirement in asked.items():
        assert "==" not in str(requirement.specifier), f"{requirement} is no range"
        if name in tested:
            assert next(iter(tested[name].specifier)).version in requirement.specifier, tested[name]


def test_the_doctor_knows_the_tested_mm_packages(root):
    pinned = {name: str(pin.specifier) for name, pin in requirements(root / "requirements/dense_mm.txt").items()}
    assert pinned == {name: f"=={version}" for name, version in TESTED.values()}
