"""Every command that a page shows can be given as it stands."""

from __future__ import annotations

import pytest
from shown_commands import Command, commands, flags, mistakes

PAGES = ["README.md", "CONTRIBUTING.md", "docs"]


def pages(root):
    return [
        page
        for name in PAGES
        for page in ([root / name] if name.endswith(".md") else sorted((root / name).glob("*.md")))
    ]


def test_what_pages_name_exists(root):
    shown = [command for page in pages(root) for command in commands(page)]
    assert len(shown) > 40
    assert {"train", "evaluate", "predict", "plan", "benchmark", "export"} <= {command.verb for command in shown}
    assert [f"{command}: {found}" for command in shown for found in mistakes(command)] == []


@pytest.mark.parametrize(
    "verb, words, told",
    [
        ("trian", (), "no verb trian"),
        ("train", ("elsa_swin_tiny", "--outptu", "DIR"), "no option --outptu"),
        (
            "train",
            ("configs/classification/elsa_swin_huge.yaml",),
            "no recipe configs/classification/elsa_swin_huge.yaml",
        ),
        ("plan", ("elsa_swin_huge", "--gpus", "8"), "no recipe elsa_swin_huge"),
        ("train", ("CONFIG", "--set", "TRAIN.RATE=1"), "no key TRAIN.RATE"),
    ],
)
def test_a_mistake_in_a_page_is_found(verb, words, told):
    assert mistakes(Command("page.md", 1, verb, words)) == [told]


def test_commands_are_read_in_all_their_forms(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# T\n\n    python tools/plan.py A --gpus 8   # why\n\n"
        "```bash\nHEAD=x scripts/train_nodes.sh B \\\n  --output D\n"
        "elsa export C --output F && echo done\n```\n\n```python\nelsa = 1\n```\n"
    )
    found = [(one.line, one.verb, one.words) for one in commands(page)]
    assert found == [
        (3, "plan", ("A", "--gpus", "8")),
        (6, "train", ("B", "--output", "D")),
        (8, "export", ("C", "--output", "F")),
    ]


def test_options_are_those_of_the_verb():
    assert {"--output", "--set", "--resume"} <= flags("train")
    assert "--resume" not in flags("evaluate")
