"""Scenes and digits are drawn where a recipe says so, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from elsa.core import ConfigError, DataError
from elsa.data import open_splits, write_digits, write_digits_ade
from elsa.engine import Runtime, load_config
from elsa.tools.tasks.mm.recipe import read_recipe
from elsa.tools.tasks.mm.session import draw_embedded

RUNTIME = Runtime(0, 1, torch.device("cpu"))
SMALL = ["embedded.train=2", "embedded.val=1"]


@pytest.fixture
def recipe(root):
    return root / "configs/segmentation/upernet_elsa_swin_nano_digits.py"


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_drawn_where_root_and_data_root_agree(recipe, tmp_path):
    there = tmp_path / "scenes"
    config = read_recipe(recipe, [*SMALL, f"data_root={there}", f"embedded.root={there}/"]).config
    draw_embedded(config, RUNTIME)
    assert len(files(there)) == 7
    draw_embedded(config, RUNTIME)
    (there / "images/training/mine.jpg").write_bytes(b"mine")
    draw_embedded(config, RUNTIME)  # what it wants is there
    bigger = read_recipe(recipe, [*SMALL, f"data_root={there}", f"embedded.root={there}/", "embedded.train=3"]).config
    with pytest.raises(ConfigError, match=r"holds other data than embedded.type digits-ade; .* embedded = None"):
        draw_embedded(bigger, RUNTIME)
    assert len(files(there)) == 8


@pytest.mark.parametrize("there", ["absent", "empty", "mine"])
def test_another_data_root_is_never_filled(recipe, tmp_path, there):
    folder = tmp_path / there
    if there != "absent":
        folder.mkdir()
    if there == "mine":
        (folder / "a.jpg").write_bytes(b"mine")
    before = files(tmp_path)
    (tmp_path / "derived.py").write_text(f"_base_ = '{recipe}'\ndata_root = '{folder}/'\n")
    for config in (read_recipe(recipe, [f"data_root={folder}"]), read_recipe(tmp_path / "derived.py", SMALL)):
        with pytest.raises(ConfigError, match=r"data_root \S+ is not embedded.root datasets/digits-ade/") as caught:
            draw_embedded(config.config, RUNTIME)
        assert "embedded = None" in str(caught.value)
        assert "remove" not in str(caught.value)
    assert [name for name in files(tmp_path) if name != "derived.py"] == before
    assert folder.exists() == (there != "absent")


def test_data_of_ones_own_in_the_place_is_left_alone(recipe, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(b"mine")
    config = read_recipe(recipe, [*SMALL, f"data_root={tmp_path}", f"embedded.root={tmp_path}"]).config
    with pytest.raises(ConfigError, match=r"holds other data than embedded.type digits-ade; to use them set"):
        draw_embedded(config, RUNTIME)
    assert files(tmp_path) == ["mine.jpg"]


@pytest.mark.parametrize("none", ["None", "null", "none"])
def test_turned_off(recipe, tmp_path, none):
    draw_embedded(read_recipe(recipe, [f"embedded={none}", f"data_root={tmp_path}/absent"]).config, RUNTIME)
    assert files(tmp_path) == []


def test_a_place_that_cannot_be_written(recipe, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below", tmp_path / ("x" * 300)):
        config = read_recipe(recipe, [*SMALL, f"data_root={place}", f"embedded.root={place}"]).config
        with pytest.raises(ConfigError, match=r"embedded.root|holds other data") as caught:
            draw_embedded(config, RUNTIME)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        *("embedded.train=-1", "embedded.train=0", "embedded.seed=None", "embedded.type=digits", "embedded.type=[]"),
        *("embedded.root=None", "embedded.root=3", "embedded={'type': 'digits-ade', 'rooot': 'x'}"),
        *("embedded.train=9999999", "embedded={'train': 3}", "embedded.val=None"),
    ],
)
def test_values_that_it_cannot_have(recipe, tmp_path, override):
    there = tmp_path / "scenes"
    with pytest.raises(ConfigError, match="embedded"):
        overrides = [*SMALL, f"data_root={there}", f"embedded.root={there}", override]
        draw_embedded(read_recipe(recipe, overrides).config, RUNTIME)
    assert files(tmp_path) == []


# ---- the stamp and the digits --------------------------------------------------------------------------------------


def test_a_set_with_files_beside_is_not_replaced(tmp_path):
    root = write_digits_ade(tmp_path / "scenes", 2, 1)
    (root / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        write_digits_ade(root, 3, 1)
    (root / "notes.txt").unlink()
    (root / ".DS_Store").write_text("")
    assert len(files(write_digits_ade(root, 3, 1))) == 9


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return write_digits(tmp_path_factory.mktemp("digits") / "digits")


@pytest.mark.parametrize("entry", ["train/cat/1.png", "notes.txt", "train/0/mine.jpg", "test/0/1.png"])
def test_digits_with_anything_beside_them_are_refused(digits, root, tmp_path, entry):
    import shutil

    mine = tmp_path / "mine"
    shutil.copytree(digits, mine)
    (mine / ".DS_Store").write_text("")
    config = load_config(root / "configs/classification/digits_elsa_swin_nano.yaml", [f"DATA.ROOT={mine}"])
    assert len(open_splits(config, "val")[0]) == 360
    (mine / entry).parent.mkdir(parents=True, exist_ok=True)
    (mine / entry).write_text("mine")
    with pytest.raises(DataError, match=r"holds other data than DATA.DATASET digits.* DATA.DATASET=folder"):
        open_splits(config, "train")
    assert (mine / entry).read_text() == "mine"
