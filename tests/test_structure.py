"""Imports point one way, and what the README names exists."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

# Each package may import these; tools are the only place where all meet.
MAY_IMPORT = {
    "kernels": {"elsa.kernels"},
    "models": {"elsa.models", "elsa.kernels"},
    "data": {"elsa.data"},
    "engine": {"elsa.engine"},
    "tools": {"elsa.kernels", "elsa.models", "elsa.data", "elsa.engine"},
}
DENSE = {"mmengine", "mmcv", "mmdet", "mmseg"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(root, package):
    for path in (root / package).rglob("*.py"):
        for name in imported(path):
            top = name.split(".")[0]
            if top == "elsa":
                assert ".".join(name.split(".")[:2]) in MAY_IMPORT[package], f"{path} imports {name}"
            assert top not in MAY_IMPORT, f"{path} imports {name} past the package elsa: a second copy"
            assert top not in DENSE or path.stem.lstrip("_").startswith("dense"), f"{path} imports {name}"


def test_classification_imports_no_dense_package(root):
    code = f"import sys, elsa.kernels, elsa.models, elsa.data, elsa.engine; print({DENSE} & set(sys.modules))"
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
    assert len(text.splitlines()) <= 300
