"""One way from a file to pixels: what people see, the same for all tasks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from elsa.data import DataError, UnreadableImage, decode, decode_labels
from elsa.data.images.folders import FolderImages
from elsa.data.images.sources import Source
from elsa.data.mm.decoding import DecodeImage, with_our_decoder


@pytest.fixture
def turned(tmp_path):
    """A picture 6 wide and 4 high with a red left edge, stored lying on its side with a note to turn it."""
    seen = np.zeros((4, 6, 3), np.uint8)
    seen[:, 0] = (255, 0, 0)
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    Image.fromarray(np.rot90(seen)).save(folder / "turned.png", exif=exif)
    return folder / "turned.png", seen


def test_the_orientation_that_a_camera_notes_is_applied_in_every_task(turned):
    path, seen = turned
    assert np.array_equal(np.asarray(decode(path)), seen)
    source = Source(FolderImages(path.parents[1], ["a"]), "RGB", ["a"], files=True)
    assert np.array_equal(np.asarray(source.load(0)[0]), seen)
    loaded = DecodeImage().transform({"img_path": str(path)})
    assert np.array_equal(loaded["img"][..., ::-1], seen)
    assert loaded["ori_shape"] == loaded["img_shape"] == (4, 6)


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "deep.png")
    for mode in ("RGB", "L"):
        pixels = np.asarray(decode(tmp_path / "deep.png", mode)).reshape(8, 8, -1)[..., 0]
        assert np.array_equal(pixels, (values >> 8).astype(np.uint8))


def test_what_cannot_be_decoded_is_one_of_the_known_errors(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8 cut")
    with pytest.raises(UnreadableImage, match=r"cut\.jpg cannot be read"):
        decode(tmp_path / "cut.jpg")


def test_label_maps_keep_their_numbers(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(labels).save(tmp_path / "map.png")
    assert np.array_equal(decode_labels(tmp_path / "map.png")[0], labels)


def test_every_pipeline_gets_our_decoder_and_keeps_the_rest():
    ours = dict(type="DecodeImage", orientation="turned")
    pipeline = [dict(type="mmdet.LoadImageFromFile", to_float32=False), dict(type="Resize", scale=(8, 8))]
    nested = dict(pipeline=[dict(type="TestTimeAug", transforms=[[dict(type="LoadImageFromFile")]])], size=(1, 2))
    assert with_our_decoder(pipeline) == [ours, dict(type="Resize", scale=(8, 8))]
    changed = with_our_decoder(nested)
    assert changed["pipeline"][0]["transforms"] == [[ours]]
    assert changed["size"] == (1, 2)
    asked = [dict(type="DecodeImage", orientation="stored"), dict(type="LoadImageFromFile")]
    assert with_our_decoder(asked)[0] == asked[0]
    assert with_our_decoder(asked[1:], "stored") == [asked[0]]


def test_annotations_for_the_stored_pixels_are_refused_or_served(turned):
    path, seen = turned  # 6 × 4 as people see it, 4 × 6 in the file
    annotated = {"img_path": str(path), "width": 4, "height": 6}
    with pytest.raises(DataError, match=r"turned\.png is 6×4.*annotations are for 4×6.*image_orientation=stored"):
        DecodeImage().transform(dict(annotated))
    loaded = DecodeImage("stored").transform(dict(annotated))
    assert np.array_equal(loaded["img"][..., ::-1], np.rot90(seen))
    with pytest.raises(DataError, match="image_orientation=turned"):
        DecodeImage("stored").transform({"img_path": str(path), "width": 6, "height": 4})
    with pytest.raises(UnreadableImage, match="it is 6×4, its annotations are for 9×9"):
        DecodeImage().transform({"img_path": str(path), "width": 9, "height": 9})
