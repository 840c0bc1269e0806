"""Every key of classification's table with every kind of value, as YAML and as --set: read, or refused in a line."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from elsa.core import UserError
from elsa.engine import load_recipe, restore_recipe
from elsa.engine.schema import SCHEMA

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs/classification/digits_elsa_swin_nano.yaml"
WORDS = ["", " ", "null", "None", "é", "数字", "a\0b", "x" * 5000, "../..", "1e-3", "010", "1:30", "true", "[1"]
NUMBERS = [0, -1, 1, 10**9, 10**30, -(10**30), 0.0, -0.5, 0.3, 1.5, 1e300, float("nan"), float("inf"), -float("inf")]
LEAVES = st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.sampled_from(WORDS)
SHIPPED = "the value of the recipe"
VALUES = st.one_of(
    LEAVES,
    st.just(SHIPPED),
    st.lists(LEAVES, max_size=3),
    st.dictionaries(st.sampled_from(["a", "é", "lam", 3]), LEAVES, max_size=2),
    st.just([]), st.just({}), st.just([[[]]]), st.just({"a": {"b": [{"c": None}]}}),
)  # fmt: skip
TEXTS = st.one_of(
    st.sampled_from([*WORDS, "!!int x", "{",
                     "{a: 1", "&a [*a]", "2020-99-99", "!!timestamp x", "!!python/name:os.system",
                     "9" * 5000, "[" * 2000, "? [a]", "<<: 3", "0x10", "1_0", "-.inf", "- a", "a: b", "|", "@", "`"]),
    st.text(max_size=6),
)  # fmt: skip
NAMES = st.sampled_from(list(SCHEMA))
MUTATED = st.tuples(NAMES, st.integers(0, 24), st.sampled_from(["", ".", "X", "é", " ", "="])).map(
    lambda drawn: drawn[0][: drawn[1]] + drawn[2] + drawn[0][drawn[1] + 1 :]
)
EXAMPLES = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@cache
def shipped():
    return load_recipe(RECIPE).values


def tried(read):
    """Whether it was taken; a refusal is one line."""
    try:
        recipe = read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500, str(error)
        return False
    json.dumps(recipe.values, allow_nan=False)  # nothing that no file could hold
    assert recipe.differences(recipe.values) == []
    return True


def test_every_key_with_every_value_in_a_file(tmp_path):
    taken = []

    @settings(EXAMPLES, max_examples=900)
    @given(NAMES, VALUES, st.booleans())
    def fuzz(name, value, alone):
        section, key = name.split(".")
        content = {section: {key: shipped()[name] if value == SHIPPED else value}}
        path = tmp_path / "fuzzed.yaml"
        path.write_text(yaml.safe_dump(content if alone else {"BASE": str(RECIPE), **content}), encoding="utf-8")
        if tried(lambda: load_recipe(path)):
            taken.append(name)

    fuzz()
    assert 40 < len(taken) < 860


def test_every_key_with_every_text_on_the_command_line():
    taken = []

    @settings(EXAMPLES, max_examples=700)
    @given(st.lists(st.tuples(NAMES | MUTATED, TEXTS).map("=".join), min_size=1, max_size=2))
    def fuzz(overrides):
        if tried(lambda: load_recipe(RECIPE, overrides)):
            taken.append(overrides)

    fuzz()
    assert len(taken) > 2
    for odd in (
        "",
        "=",
        "=1",
        "a",
        "TRAIN",
        "TRAIN=1",
        "TRAIN.=1",
        ".LR=1",
        "TRAIN.LR.x=1",
        "MODEL.KWARGS.a.b=1",
        "é=1",
    ):
        with pytest.raises(UserError):
            load_recipe(RECIPE, [odd])


def test_every_key_with_every_value_in_a_checkpoint():
    taken = []

    @settings(EXAMPLES, max_examples=400)
    @given(NAMES | MUTATED, VALUES)
    def fuzz(name, value):
        if tried(lambda: restore_recipe({**shipped(), **({} if value == SHIPPED else {name: value})}, "last.pt")):
            taken.append(name)

    fuzz()
    assert len(taken) > 8


def test_a_stored_recipe_is_the_recipe():
    assert restore_recipe(shipped(), "last.pt").text == load_recipe(RECIPE).text


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
def test_a_byte_order_mark_is_passed_over(tmp_path, mark):
    (tmp_path / "a.yaml").write_text(f"BASE: {RECIPE}\nTRAIN: {{SEED: 7}}  # Übung\n", encoding=mark)
    assert load_recipe(tmp_path / "a.yaml").config.TRAIN.SEED == 7


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "a.yaml").write_bytes("# Übung\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.yaml cannot be read: .*utf-8"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(f"BASE: {RECIPE}\n", encoding="utf-16")
    with pytest.raises(UserError, match=r"b.yaml cannot be read: .*utf-8"):
        load_recipe(tmp_path / "b.yaml")


@settings(EXAMPLES, max_examples=300)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_as_a_file(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    tried(lambda: load_recipe(path))
