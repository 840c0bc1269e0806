"""Imports point one way, tools are thin, and what the README names exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

# Each package may import these; tools are the only place where all meet.
MAY_IMPORT = {
    "core": {"core"},
    "kernels": {"kernels", "core"},
    "models": {"models", "kernels", "core"},
    "data": {"data", "core"},
    "engine": {"engine", "core"},
    "tools": {"tools", "kernels", "models", "data", "engine", "core"},
}
DENSE = {"mmengine", "mmcv", "mmdet", "mmseg"}


def imported(path: Path, root: Path):
    """Full names of what a file imports, relative imports resolved: ``from ..models import x`` in ``engine/a.py``
    is ``elsa.models``."""
    package = ["elsa", *path.relative_to(root).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*start, *filter(None, [node.module])])
            # "from elsa import models", "from .. import models" name packages, too
            yield from (f"{name}.{alias.name}" for alias in node.names) if name in ("elsa", "") else (name,)


def knows_dense(path: Path, root: Path) -> bool:
    """Whether the file may import mm packages: below a folder mm/, or the file of a dense task."""
    parts = path.relative_to(root).parts
    return "mm" in parts[:-1] or (
        parts[:2] == ("tools", "tasks") and parts[2].startswith(("detection", "segmentation"))
    )


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(root, package):
    for path in (root / package).rglob("*.py"):
        for name in imported(path, root):
            top, *rest = name.split(".")
            if top == "elsa":
                assert rest and rest[0] in MAY_IMPORT[package], f"{path} imports {name}"
            assert top not in MAY_IMPORT, f"{path} imports {name} past the package elsa: a second copy"
            assert top not in DENSE or knows_dense(path, root), f"{path} imports {name}"


def test_a_relative_import_is_read_too(tmp_path):
    (tmp_path / "engine").mkdir()
    path = tmp_path / "engine" / "a.py"
    path.write_text("from ..models import x\nfrom . import b\nfrom .c import d\nfrom .. import data\nimport elsa.core")
    assert list(imported(path, tmp_path)) == ["elsa.models", "elsa.engine", "elsa.engine.c", "elsa.data", "elsa.core"]


def test_tools_are_thin(root):
    """One verb a file, at most 60 lines, no helpers beside them; and every verb is a command of ``elsa``."""
    for path in (root / "tools").glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 60, path
        assert path.name.startswith("__") or "def main() -> None:" in text, path


def test_tests_patch_no_import_path(root):
    patched = re.compile(r"sys\.path\.(insert|append)|syspath_prepend")
    assert not [
        path
        for path in (root / "tests").rglob("*.py")
        if path != Path(__file__).resolve() and patched.search(path.read_text())
    ]


def test_classification_imports_no_dense_package(root):
    names = "elsa.core, elsa.kernels, elsa.models, elsa.data, elsa.engine, elsa.tools.tasks.classification"
    code = f"import sys, {names}; print({DENSE} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.strip() == "set()"


def test_importing_a_package_is_quiet_and_registers_names(root):
    code = "import timm, elsa.models; print(sorted(timm.list_models('elsa_*')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    assert done.stderr == ""
    assert "elsa_swin_tiny" in done.stdout


def test_what_the_readme_names_exists(root):
    text = (root / "README.md").read_text()
    links = {link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link}
    paths = set(re.findall(r"\b(?:scripts|tools|configs)/[\w/]+\.(?:sh|py|yaml)", text))
    assert {"scripts/quickstart.sh", "scripts/test.sh"} <= paths
    assert [name for name in links | paths if not (root / name).exists()] == []
    assert len(text.splitlines()) <= 200
