"""AUG.AUTO_AUGMENT: what is allowed is what timm takes, and of that only what has an effect."""

from __future__ import annotations

import pytest
from PIL import Image
from timm.data import create_transform

from elsa.engine.augment_policy import fault


def timm_policy(text: str):
    """What timm makes of a policy string."""
    transform = create_transform((3, 32, 32), is_training=True, auto_augment=text, use_prefetcher=False)
    return transform.transforms[2]


TAKEN = """rand-m9-mstd0.5-inc1 rand-m7-n3-p0.5-mmax12 rand-mstd101-tweights rand-t3a-inc0 rand-t3aw rand-p1.0
rand-p0.25 augmix augmix-m5-w4-d2-a0.5-b1-mstd1 original-mstd0.5 originalr v0 v0r 3a"""
# Policy → what of it is refused.
REFUSED = {
    "none": "'none'", "Rand-m9": "'Rand'", "rand_m9": "'rand_m9'", "randaugment": "'randaugment'", "3aw": "'3aw'",
    "rand-": "has ''", "rand--m9": "has ''", "rand-m": "has 'm'", "rand-m9.5": "'m9.5'", "rand-m9-n2-m5": "m twice",
    "rand-n0": "'n0'", "rand-p0": "'p0'", "rand-p0.0": "'p0.0'", "rand-p5": "'p5'", "rand-p.5": "'p.5'",
    "rand-inc2": "'inc2'", "rand-mmax0": "'mmax0'", "rand-tweight": "'tweight'", "rand-w0": "'w0'",
    "augmix-w0": "'w0'", "augmix-a0.0": "'a0.0'", "augmix-d-1": "'d'", "augmix-n2": "'n2'", "v0-m9": "'m9'",
}  # fmt: skip


@pytest.mark.parametrize("policy", TAKEN.split())
def test_timm_builds_the_policies_that_are_allowed(policy):
    assert fault(policy) is None
    image = Image.new("RGB", (32, 32), (200, 30, 90))
    assert timm_policy(policy)(image).size == (32, 32)


@pytest.mark.parametrize(("policy", "part"), REFUSED.items())
def test_policies_of_which_timm_takes_less_than_all(policy, part):
    assert part in fault(policy)
