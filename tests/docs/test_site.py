"""The documentation is a site without a broken link, and says of the code what is there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

BUILD = [sys.executable, "-m", "mkdocs", "build", "-f"]


@pytest.fixture(scope="module")
def site(root, tmp_path_factory):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    place = tmp_path_factory.mktemp("site")
    done = subprocess.run([*BUILD, root / "docs/site/mkdocs.yml", "-d", place], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.mark.parametrize("link", ["models/elsas.py", "docs/trainig.md", "docs/data.md#no-such-heading"])
def test_a_broken_link_is_an_error(root, tmp_path, link):
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    shutil.copytree(root / "docs/site", tmp_path / "docs/site")
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (tmp_path / name).write_text("# Page\n")
    (tmp_path / "docs/data.md").write_text("# Data\n")
    settings = tmp_path / "docs/site/mkdocs.yml"
    settings.write_text(settings.read_text().partition("nav:")[0])
    command = [*BUILD, settings, "-d", tmp_path / "site"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    (tmp_path / "README.md").write_text(f"# Page\n\n[link]({link})\n")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert link.removeprefix("docs/").partition("#")[0] in done.stdout + done.stderr


def test_it_is_built_without_a_broken_link(site):
    first = (site / "index.html").read_text()
    assert "Hadamard" in first and 'href="training.html"' in first and 'href="source/models/elsa.py.html"' in first
    assert (site / "digits_coco.jpg").stat().st_size > 10_000


def test_a_line_of_the_code_can_be_led_to(site):
    lines = set(re.findall(r'href="source/models/elsa\.py\.html#(L-\d+)"', (site / "paper.html").read_text()))
    source = (site / "source/models/elsa.py.html").read_text()
    assert len(lines) > 5 and all(f'id="{line}"' in source for line in lines)


def test_nothing_is_fetched_from_elsewhere(site):
    text = (site / "index.html").read_text()
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', text)


def test_every_page_is_in_the_navigation(site, root):
    navigation = (root / "docs/site/mkdocs.yml").read_text().partition("nav:")[2]
    assert [page.name for page in (root / "docs").glob("*.md") if page.name not in navigation] == []


def test_the_map_of_the_paper_quotes_the_code(root):
    rows = re.findall(
        r"\[([\w/.]+):(\d+)\]\(\.\./([\w/.]+)#L(\d+)\) \| `(.+)` \|$", (root / "docs/paper.md").read_text(), re.M
    )
    assert len(rows) >= 15
    for shown, number, path, anchor, quoted in rows:
        assert (shown, number) == (path, anchor)
        assert quoted in (root / path).read_text().splitlines()[int(number) - 1], f"{path}:{number} is not: {quoted}"
