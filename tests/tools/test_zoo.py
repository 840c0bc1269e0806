"""elsa zoo: the stored figures are complete, are what is computed, and are what the documents' tables say."""

from __future__ import annotations

import json

import pytest
import yaml

from elsa.core import ConfigError
from elsa.tools.tasks import zoo
from elsa.tools.tasks.command import shipped_recipes
from elsa.tools.tasks.zoo_tables import BRIEF, DOCUMENTS, braced, replace_tables


def test_every_recipe_has_its_figures():
    rows = zoo.read_zoo()
    assert list(rows) == list(shipped_recipes())
    for name, row in rows.items():
        assert row["parameters"] > 1e5 and row["multiply_adds"] > 1e6 and len(row["input"]) == 2, name
        assert name.endswith(("_384", "_448", "_512")) is (row["input"][0] in (384, 448) or row["input"] == [512, 512])


def test_published_figures():
    published = {name: row["published"] for name, row in zoo.read_zoo().items()}
    assert [published[f"elsa_swin_{size}"]["top1"] for size in ("tiny", "small", "base")] == [82.7, 83.5, 84.0]
    assert published["volo_d5_512"]["top1"] == 87.1
    cascade = published["cascade_mask_rcnn_elsa_swin_small_3x"]
    assert (cascade["box_ap"], cascade["mask_ap"]) == (52.3, 45.2)
    assert published["upernet_elsa_swin_small"]["miou"] == 50.4
    ours_alone = [name for name in published if "digits" in name or ("volo" in name and "rcnn" in name)]
    assert not any(published[name] for name in ours_alone)


@pytest.mark.parametrize(
    "name",
    ["digits_elsa_swin_nano", "elsa_swin_tiny", "swin_tiny", "volo_d1",
     "mask_rcnn_elsa_swin_nano_digits", "upernet_elsa_swin_nano_digits"],
)  # fmt: skip
def test_what_is_stored_is_what_is_computed(name):
    stored = zoo.read_zoo()[name]
    assert zoo.compute(shipped_recipes()[name]) == {key: stored[key] for key in zoo.COMPUTED}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_documents_tables_are_those_of_the_file(root, document):
    text = (root / document).read_text()
    assert replace_tables(text, document, zoo.read_zoo()) == text


def test_the_readmes_lines_are_of_recipes_that_exist():
    assert {name for table in BRIEF.values() for names in table.values() for name in names} <= set(shipped_recipes())


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a_b"], "a_b"),
        (["swin_tiny", "swin_base"], "swin_{tiny,base}"),
        (["m_swin_tiny_1x", "m_swin_small_1x"], "m_swin_{tiny,small}_1x"),
        (["d5", "d5_448", "d5_512"], "d5{,_448,_512}"),
    ],
)
def test_names_in_short(names, short):
    assert braced(names) == short


def test_the_command_prints_a_line_of_each_recipe(tool):
    outcome = tool("zoo")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(shipped_recipes())
    assert next(line for line in lines if line.startswith("elsa_swin_tiny ")).split()[1:5] == [
        "224×224", "29.1", "4.6", "82.7",
    ]  # fmt: skip


def test_one_task_for_machines_and_for_documents(tool):
    rows = json.loads(tool("zoo", "--task", "segmentation", "--json").out)
    assert {row["task"] for row in rows.values()} == {"segmentation"} and "upernet_swin_tiny" in rows
    table = tool("zoo", "--task", "segmentation", "--markdown").out
    assert len(table.splitlines()) == len(rows) + 2
    assert "| `upernet_elsa_swin_tiny` | 512×2048 |" in table


def test_mistakes(tool, refused):
    refused(tool("zoo", "--task", "detecton"), "did you mean detection?")
    refused(tool("zoo", "--update", "--task", "detection"), "leave out --task")


@pytest.fixture
def small_zoo(monkeypatch, tmp_path):
    """Two recipes, of which the file has one, and a README beside it."""
    recipes = {name: shipped_recipes()[name] for name in ("digits_elsa_swin_nano", "digits_elsa_volo_nano")}
    by_hand = {"task": "classification", "published": {}, "measured": {"top1": 99.0}}
    figures = tmp_path / "configs" / "zoo.yaml"
    figures.parent.mkdir()
    figures.write_text(yaml.safe_dump({"digits_elsa_swin_nano": by_hand}))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/zoo.md").write_text("# x\n\n<!-- elsa zoo: all -->\nold\n<!-- end of it -->\nafter\n")
    monkeypatch.setattr(zoo, "FIGURES", figures)
    monkeypatch.setattr(zoo, "CONFIGS", figures.parent)
    monkeypatch.setattr(zoo, "shipped_recipes", lambda: recipes)
    return figures


def test_update_computes_and_keeps_what_was_written_by_hand(small_zoo):
    with pytest.raises(ConfigError, match="has no input, parameters, multiply_adds of digits_elsa_swin_nano"):
        zoo.read_zoo()
    zoo.update()
    rows = zoo.read_zoo()
    assert list(rows) == ["digits_elsa_swin_nano", "digits_elsa_volo_nano"]
    assert rows["digits_elsa_swin_nano"]["measured"] == {"top1": 99.0}
    assert rows["digits_elsa_swin_nano"]["input"] == [56, 56]
    document = (small_zoo.parents[1] / "docs/zoo.md").read_text()
    assert document.startswith("# x\n\n") and document.endswith("-->\nafter\n") and "old" not in document
    assert "| `digits_elsa_swin_nano` | 56×56 | 1.5 | 0.021 | – | 99.0 |" in document


def test_a_row_without_a_recipe(small_zoo):
    with small_zoo.open("a") as text:
        text.write("digits_elsa_swin_nana: {}\n")
    for call in (zoo.read_zoo, zoo.update):
        with pytest.raises(
            ConfigError, match=r"digits_elsa_swin_nana, which is no shipped recipe; did you mean digits"
        ):
            call()
