"""Which steps a profile is of."""

from __future__ import annotations

import logging

import pytest
import torch

from elsa.engine import ConfigError
from elsa.engine.profile import Profile, parse_steps


def test_steps_are_those_of_this_launch():
    assert parse_steps("10:15", done=100, total=200, evaluate_every=50) == (10, 15, False)
    assert parse_steps("1:1:all", done=199, total=200, evaluate_every=50) == (1, 1, True)
    assert parse_steps("41:50", done=100, total=200, evaluate_every=50) == (41, 50, False)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("config.yaml", "must be FIRST:LAST, steps of this launch such as 10:15, got 'config.yaml'"),
        ("15:10", "must be FIRST:LAST"),
        ("0:4", "must be FIRST:LAST"),
        ("10:15:some", "must be FIRST:LAST"),
        ("95:101", "this launch has 100 steps"),
        ("45:55", "an evaluation comes after step 50 of this launch"),
        ("1:5000", "5000 steps are too many"),
    ],
)
def test_what_cannot_be_profiled_is_refused(text, part):
    with pytest.raises(ConfigError) as caught:
        parse_steps(text, done=100, total=200, evaluate_every=50)
    assert part in str(caught.value)


def test_a_profile_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    (tmp_path / "profile").write_text("a file where the folder would be")
    profile = Profile(tmp_path, 1, 1, 0, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            profile.begin()
            torch.ones(2).sum()
            profile.end()
    assert [record.getMessage()[:31] for record in caplog.records] == ["the profile cannot be written: "]


def test_a_launch_that_ends_before_says_so(tmp_path, caplog):
    profile = Profile(tmp_path, 5, 6, 0, torch.device("cpu"))
    profile.begin()
    profile.end()
    with caplog.at_level(logging.WARNING):
        profile.close()
    assert [record.getMessage() for record in caplog.records] == ["--profile: this launch ended before step 5"]
    assert not (tmp_path / "profile").exists()
