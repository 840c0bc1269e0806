"""Label maps of any kind: loading gives what a slow, obvious reader gives, or names the file; the check finds as much.

2,000 examples, always the same.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from elsa.core import UserError
from elsa.data.checks import check_ade20k
from elsa.data.label_maps import IGNORED, Labelling
from elsa.models.mm import operators

operators.provide()

from elsa.data.mm.maps import LoadCheckedAnnotations  # noqa: E402  after mmcv's operators

EXAMPLES = 2000
HEIGHT, WIDTH = 3, 4
# A PNG's colour type and bits a channel → channels.
PNGS = {(0, 1): 1, (0, 2): 1, (0, 4): 1, (0, 8): 1, (0, 16): 1, (3, 1): 1, (3, 2): 1, (3, 4): 1, (3, 8): 1,
        (2, 8): 3, (2, 16): 3, (4, 8): 2, (4, 16): 2, (6, 8): 4, (6, 16): 4}  # fmt: skip


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, colour: int, bits: int) -> bytes:
    """A file with these numbers, (H, W, channels), bit for bit."""
    rows = b""
    for row in values:
        text = "".join(format(int(number), f"0{bits}b") for number in row.ravel())
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[place : place + 8], 2) for place in range(0, len(text), 8))
    height, width, _ = values.shape
    palette = chunk(b"PLTE", bytes((7 * n) % 256 for n in range(3 * 2 ** min(bits, 8)))) if colour == 3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def slow(values: np.ndarray, colour: int, bits: int, labelling: Labelling) -> np.ndarray | None:
    """Labels, pixel by pixel; None of what is no label map."""
    height, width, channels = values.shape
    labels = np.zeros((height, width), np.uint8)
    if (height, width) != (HEIGHT, WIDTH) or (bits == 16 and channels > 1):
        return None
    for y in range(height):
        for x in range(width):
            pixel = [int(number) for number in values[y, x]]
            if colour in (4, 6) and pixel.pop() != 255:
                return None
            if len(set(pixel)) > 1:
                return None
            number = labelling.replaced.get(pixel[0], pixel[0])
            if number == IGNORED or (labelling.reduced and number == 0):
                labels[y, x] = IGNORED
            elif labelling.reduced and 1 <= number <= labelling.classes:
                labels[y, x] = number - 1
            elif not labelling.reduced and number < labelling.classes:
                labels[y, x] = number
            else:
                return None
    return labels


@st.composite
def maps(draw):
    """(numbers, colour type, bits, kept share of the file) of PNGs whose numbers are mostly labels."""
    colour, bits = draw(st.sampled_from(sorted(PNGS)))
    size = draw(st.sampled_from([(HEIGHT, WIDTH)] * 6 + [(WIDTH, HEIGHT), (HEIGHT, WIDTH + 1), (1, 1)]))
    few = st.lists(st.integers(0, 2**bits - 1) | st.sampled_from([0, 1, 2, 3, 255]), min_size=1, max_size=3)
    numbers = [number for number in draw(few) if number < 2**bits] or [0]
    seed, channels = draw(st.integers(0, 2**16)), PNGS[colour, bits]
    values = np.random.default_rng(seed).choice(numbers, (*size, channels if draw(st.booleans()) else 1))
    values = np.repeat(values, channels, 2) if values.shape[2] != channels else values
    if colour in (4, 6) and draw(st.booleans()):
        values[..., -1] = 255
    return values, colour, bits, draw(st.sampled_from([1.0] * 6 + [0.2, 0.6, 0.9]))


labellings = st.builds(
    Labelling,
    classes=st.integers(2, 5),
    reduced=st.booleans(),
    replaced=st.sampled_from([{}, {255: 1}, {7: 1, 200: 255}, {0: 1, 1: 0}, {40000: 1}]),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzzed")
    for what in ("images", "annotations"):
        (root / what / "training").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "images/training/a.png")
    return root


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(case=maps(), labelling=labellings)
def test_loading_against_a_slow_reader_and_the_check(root, case, labelling):
    values, colour, bits, share = case
    path, content = root / "annotations/training/a.png", png(values, colour, bits)
    path.write_bytes(content[: int(len(content) * share)])
    item = {
        "img_path": str(root / "images/training/a.png"),
        "seg_map_path": str(path),
        "ori_shape": (HEIGHT, WIDTH),
        "labelling": labelling,
        "seg_fields": [],
    }
    expected = slow(values, colour, bits, labelling)
    report = check_ade20k(root, labelling.classes, ("train",), reduced=labelling.reduced, replaced=labelling.replaced)
    found_by_check = str(path) in {finding.place for finding in report.findings}
    try:
        found = LoadCheckedAnnotations()(item)["gt_seg_map"]
    except UserError as error:
        assert str(path) in str(error)
        assert len(str(error).splitlines()) == 1
        assert expected is None or share < 1
        assert found_by_check
    else:
        assert expected is not None
        assert found.dtype == np.uint8
        assert np.array_equal(found, expected)
        assert not found_by_check
