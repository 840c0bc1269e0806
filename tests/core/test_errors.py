"""A refusal is one line, whatever it quotes."""

from __future__ import annotations

import pytest

from elsa.core import ConfigError, DataError, one_line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("DATA.ROOT a\nb\t\0c does not exist", r"DATA.ROOT a\nb\t\x00c does not exist"),
        ("名前 é × … “x”", "名前 é × … “x”"),
        (b"br\xff.png".decode(errors="surrogateescape"), r"br\udcff.png"),
        ("Caught DataError in worker 0.\nOriginal Traceback …:\n  File\nelsa.core.errors.DataError: a: b", "a: b"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text, told):
    assert str(ConfigError(text)) == str(DataError(text)) == one_line(text) == told


def test_the_middle_of_a_long_message_is_left_out():
    text = "MODEL.NAME " + "x" * 5000 + " is no model"
    told = str(ConfigError(text))
    assert len(told) < 1500
    assert told.startswith("MODEL.NAME xxx")
    assert told.endswith("xxx is no model")
