"""Odd pictures: from a file to the pixels that people see, against a decoder that is slow and obvious."""

from __future__ import annotations

import functools
import io
import struct
import tarfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from elsa.data import (
    UnreadableImage,
    decode,
    eval_loader,
    eval_transform,
    open_splits,
    read_header,
    train_transform,
)
from elsa.data.decode import verify
from elsa.engine import load_config

SIZES = st.integers(1, 9)
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # PNG's colour types
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
WHITE = 255.0


def png(kind, depth, values, palette=None, alphas=None, key=None, orientation=1):
    """A PNG written by hand from (H, W, channels) values of ``depth`` bits."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, _ = values.shape
    rows = b""
    for row in values.reshape(height, -1):
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    if orientation != 1:
        tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
        parts.append(chunk(b"eXIf", tiff))
    if palette is not None:
        parts.append(chunk(b"PLTE", bytes(palette.astype(np.uint8).ravel())))
    if alphas is not None:
        parts.append(chunk(b"tRNS", bytes(alphas.astype(np.uint8))))
    if key is not None:
        parts.append(chunk(b"tRNS", struct.pack(f">{len(key)}H", *key)))
    parts += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def seen(kind, depth, values, palette=None, alphas=None, key=None, orientation=1):
    """What a viewer shows on white, pixel by pixel, (H, W, 3) in 0 … 255."""
    height, width, channels = values.shape
    top = 2**depth - 1
    shown = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            value = values[y, x].astype(float)
            alpha = 1.0
            if kind == 3:
                colour = palette[int(value[0])].astype(float)
                if alphas is not None and int(value[0]) < len(alphas):
                    alpha = alphas[int(value[0])] / 255
            else:
                scaled = value / top * 255 if depth < 16 else value // 256
                colour = scaled[:3] if channels >= 3 else scaled[:1].repeat(3)
                if channels in (2, 4):
                    alpha = scaled[-1] / 255
                if key is not None and tuple(values[y, x]) == tuple(key):
                    alpha = 0.0
            shown[y, x] = alpha * colour + (1 - alpha) * WHITE
    turns = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
             6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}  # fmt: skip
    return turns[orientation](shown)


@st.composite
def pictures(draw):
    """Arguments of ``png`` and ``seen``."""
    kind = draw(st.sampled_from(sorted(DEPTHS)))
    depth = draw(st.sampled_from(DEPTHS[kind]))
    height, width, seed = draw(SIZES), draw(SIZES), draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    colours = min(2**depth, draw(st.integers(1, 16))) if kind == 3 else 2**depth
    values = random.integers(0, colours, (height, width, CHANNELS[kind]))
    made = dict(kind=kind, depth=depth, values=values, orientation=draw(st.integers(1, 8)))
    if kind == 3:
        made["palette"] = random.integers(0, 256, (colours, 3))
        if draw(st.booleans()):
            made["alphas"] = random.integers(0, 256, draw(st.integers(1, colours)))
    elif kind in (0, 2) and depth in (8, 16) and draw(st.booleans()):
        made["key"] = values[0, 0].tolist()
    return made


def different_by_more_than(found, expected):
    return np.abs(np.asarray(found, float) - expected).max()


@settings(max_examples=2000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(pictures())
def test_every_kind_of_png_is_seen_as_a_viewer_shows_it(made):
    content = png(**made)
    expected = seen(**made)
    assert read_header(io.BytesIO(content)).size == expected.shape[1::-1]
    found = np.asarray(decode(io.BytesIO(content)))
    if made["depth"] == 16 and "key" in made and made["kind"] == 2:
        # Pillow keeps the upper half of 16-bit colours alone, so that near colours may be taken for the transparent one
        known = (made["values"] >> 8 != np.array(made["key"]) >> 8).any(-1)
        if made["orientation"] == 1:
            assert different_by_more_than(found[known], expected[known]) <= 1 if known.any() else True
        return
    assert different_by_more_than(found, expected) <= 1
    grey = np.asarray(decode(io.BytesIO(content), "L"))
    assert different_by_more_than(grey, expected @ [0.299, 0.587, 0.114]) <= 2


@settings(max_examples=2000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_picture_of_any_format_is_decoded_or_named(data):
    form, mode = data.draw(st.sampled_from(FORMS))
    content = bytearray(whole(form, mode))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    for _ in range(data.draw(st.integers(0, 6))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    for read in (decode, read_header, verify):
        stream = io.BytesIO(content)
        stream.name = "photo.jpg"
        try:
            found = read(stream)
        except UnreadableImage as error:
            assert str(error).startswith("photo.jpg cannot be read: ") and error.reason
        else:
            assert read is not decode or found.mode == "RGB"


@functools.cache
def whole(form, mode):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (23, 31, 3), dtype=np.uint8)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, form, exif=tag(6)) if form in ("JPEG", "PNG", "WEBP", "TIFF") else image.save(stream, form)
    return stream.getvalue()


def tag(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FORMS = [
    *(("JPEG", mode) for mode in ("RGB", "L", "CMYK")),
    *(("PNG", mode) for mode in ("RGB", "RGBA", "P", "1")),
    *(("TIFF", mode) for mode in ("RGB", "RGBA", "CMYK", "LAB", "I", "F", "1")),
    *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    *((form, "RGB") for form in ("GIF", "BMP", "ICO", "PCX", "TGA", "PPM", "DDS", "JPEG2000", "ICNS", "SGI", "QOI")),
    *((("AVIF", "RGB"),) if features.check("avif") else ()),
]


@pytest.mark.parametrize("form", ["TIFF", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_note_on_orientation_is_followed_once_in_every_format(form, orientation):
    pixels = np.zeros((16, 24, 3), np.uint8)
    pixels[:8, :8] = 250
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, exif=tag(orientation), quality=100)
    expected = seen(2, 8, pixels, orientation=orientation)
    assert different_by_more_than(decode(stream), expected) < 60
    stored = decode(stream, orientation="stored")
    assert stored.size == read_header(stream).stored == (24, 16)
    assert different_by_more_than(stored, pixels) < 60


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bits_have_no_known_range(tmp_path, mode):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).convert(mode).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match=r"a\.tif cannot be read: numbers of 32 bits"):
        decode(tmp_path / "a.tif")


def test_an_eps_is_not_handed_to_ghostscript(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) print\n%%EOF\n")
    with pytest.raises(UnreadableImage, match="cannot identify"):
        decode(tmp_path / "a.jpg")


def test_a_bomb_is_named_before_it_takes_memory(tmp_path):
    small = png(2, 8, np.zeros((1, 1, 3), int))
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:])
    with pytest.raises(UnreadableImage, match=r"a\.png cannot be read: more than 178956970 pixels"):
        decode(tmp_path / "a.png")


def test_damaged_notes_do_not_cost_the_picture(tmp_path):
    Image.new("RGB", (6, 4), (9, 9, 9)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\xff\xff broken")
    assert decode(tmp_path / "a.jpg").size == (6, 4)


@pytest.mark.parametrize("name", ["a.png", "no such file.png"])
def test_what_is_not_there_is_named(tmp_path, name):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(UnreadableImage, match=f"{name} cannot be read: "):
        decode(tmp_path / name)


@pytest.mark.parametrize(("size", "most"), [((4000, 200), 0.0), ((200, 4001), 0.02), ((333, 5), 0.08), ((1, 60), 0.0)])
def test_the_middle_of_a_strip_is_what_the_centre_crop_sees(root, size, most):
    config = load_config(root / "configs/classification/elsa_swin_tiny.yaml", ["DATA.IMG_SIZE=64", "DATA.ROOT=x"])
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(values)
    whole = eval_transform(config).transforms[1]  # without the cut
    assert (whole(image) - eval_transform(config)(image)).abs().max() <= most


def test_a_strip_of_one_pixel_width_does_not_take_gigabytes(root):
    config = load_config(root / "configs/classification/elsa_swin_tiny.yaml", ["DATA.ROOT=x"])
    image = Image.new("RGB", (20_000_000, 1), (255, 0, 0))
    assert eval_transform(config)(image).shape == train_transform(config)(image).shape == (3, 224, 224)


def test_images_of_a_stream_are_seen_as_all_others(root, tmp_path):
    """One image of each class: turned by a note, transparent, of 16 bits."""
    values = np.zeros((8, 8, 3), int)
    values[:, 4:] = 200
    files = [
        png(2, 8, values, orientation=6),
        png(4, 8, np.zeros((8, 8, 2), int)),
        png(0, 16, np.full((8, 8, 1), 25_700)),
    ]
    for split in ("train", "validation"):
        with tarfile.open(tmp_path / f"{split}-0.tar", "w") as archive:
            for number, content in enumerate(files):
                for ending, part in (("png", content), ("cls", str(number).encode())):
                    entry = tarfile.TarInfo(f"{number:06d}.{ending}")
                    entry.size = len(part)
                    archive.addfile(entry, io.BytesIO(part))
    settings = ["DATA.DATASET=wds/x", f"DATA.ROOT={tmp_path}", "DATA.VAL_SPLIT=validation-0.tar|3", "DATA.WORKERS=0"]
    plain = ["DATA.IMG_SIZE=8", "EVAL.CROP=1.0", "DATA.MEAN=[0,0,0]", "DATA.STD=[1,1,1]", "MODEL.NUM_CLASSES=3"]
    config = load_config(root / "configs/classification/digits_elsa_swin_nano.yaml", [*settings, *plain])
    (source,) = open_splits(config, "val")
    (batch,) = eval_loader(config, source, 0, 1)
    found = {int(target): image for image, target in zip(batch.images, batch.targets, strict=True)}
    assert found[0][:, :4].max() == 0
    assert found[0][:, 4:].min() > 0.7
    assert found[1].min() == 1
    assert torch.allclose(found[2], torch.tensor(100 / 255))
