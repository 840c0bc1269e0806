"""The one way from a file to pixels: training, evaluation, prediction, pictures and checks all see the same."""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from elsa.core import DataError, without_warnings

BACKGROUND = (255, 255, 255)  # what shows through where an image is transparent
TURNED, STORED = "turned", "stored"  # as people see it; as the file holds it, before a camera's note on orientation
ORIENTATIONS = (TURNED, STORED)
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
ORIENTATION_TAG = 0x0112
_TURN = Image.Transpose
# The camera's note → what brings the stored pixels before people's eyes, and what takes a turn back.
TURNS = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE,
         6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90}  # fmt: skip
BACK = {_TURN.ROTATE_270: _TURN.ROTATE_90, _TURN.ROTATE_90: _TURN.ROTATE_270}
SPREAD = {"L;2": 85, "L;4": 17}
BECAUSE = " cannot be read: "
# Formats that Pillow only knows by name, or hands to another program (Ghostscript runs what is in an EPS).
NOT_READ = frozenset(("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"))
USUAL = ("JPEG", "PNG", "WEBP")  # each begins with bytes that no other format has
File = str | Path | io.IOBase | Image.Image


class UnreadableImage(DataError):
    """An image that cannot be decoded; the message names file and reason."""

    @property
    def reason(self) -> str:
        return str(self).rpartition(BECAUSE)[2]


@dataclass(frozen=True)
class Header:
    """What a file says of its image before a pixel is read.

    Attributes:
        size: (width, height) as people see it; stored: as the file holds it.
        orientation: the camera's note, 1 … 8; 1 where there is none.
        mode, form: Pillow's names, "RGB" and "JPEG".
        transparent: whether parts of it may show what is behind.
    """

    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int
    mode: str
    form: str
    transparent: bool


def read_header(file: File) -> Header:
    """
    Raises:
        UnreadableImage: it is no image.
    """
    try:
        with without_warnings():
            return _header(_open(file))
    except Exception as error:  # Pillow's readers raise whatever their format makes them stumble over
        raise _unreadable(file, error) from error


def decode(file: File, mode: str = "RGB", orientation: str = TURNED) -> Image.Image:
    """An image file as people see it.

    The orientation that a camera notes (EXIF) is applied, 16 bits are scaled to 8, what is transparent shows
    BACKGROUND, grey, palettes and CMYK are converted; of an animation the first picture counts.

    Args:
        file: path, open file, or an image of Pillow's that may not be loaded yet.
        mode: "RGB" or "L".
        orientation: "turned", or "stored" where annotations were made without regard to the camera's note.

    Raises:
        UnreadableImage: it cannot be decoded, or its numbers have no known range (32 bits).
    """
    try:
        with without_warnings():
            image = _open(file)
            turn = TURNS.get(noted_orientation(image))
            image.load()  # this turns a TIFF, and nothing else
            is_turned = image.format == "TIFF"
            image = _opaque(image)
            if turn is not None and is_turned != (orientation == TURNED):
                image = image.transpose(BACK.get(turn, turn) if is_turned else turn)
            if image.mode == mode:  # Pillow's convert would copy it
                return image
            return image.convert(mode) if image.mode in ("1", "L", "P") else image.convert("RGB").convert(mode)
    except Exception as error:  # see read_header
        raise _unreadable(file, error) from error


def verify(file: File, mode: str = "RGB") -> Header:
    """The header of an image whose data were all read.

    A JPEG is decoded at an eighth of its size: every byte is still read, in less time.

    Raises:
        UnreadableImage: as ``decode``.
    """
    header = read_header(file)
    try:
        with without_warnings():
            image = _open(file)
            image.draft(None, (max(header.stored[0] // 8, 1), max(header.stored[1] // 8, 1)))
            image.load()
            _opaque(image).convert("RGB").convert(mode)
    except Exception as error:  # see read_header
        raise _unreadable(file, error) from error
    return header


def decode_labels(file: str | Path, colours: bool = False) -> tuple[np.ndarray, str]:
    """A label map as it is stored, (H, W), or (H, W, channels) of what is none, and Pillow's name of its mode; of more
    than a channel of 16 bits, whose lower half Pillow drops, the mode ends in ";16".

    Args:
        colours: colours are meant: of a palette those that it shows instead of their numbers, grey as colours, too.

    Raises:
        UnreadableImage: it cannot be decoded.
    """
    try:
        with without_warnings(), _open(file) as image:
            layout = image.tile[0][3] if image.tile else ""  # of (codec, box, offset, arguments)
            packed = str(layout[0] if isinstance(layout, tuple) and layout else layout)
            if colours and image.mode in ("1", "L", "P"):
                shown = image.convert("RGBA" if _is_transparent(image) else "RGB")
                return np.asarray(shown), shown.mode
            values = np.asarray(image)
            if ";16" in packed and values.ndim == 3:
                return values, f"{image.mode};16"
            return values // SPREAD.get(packed[:3], 1), image.mode  # grey of 2 and 4 bits is spread over 0 … 255
    except Exception as error:  # see read_header
        raise _unreadable(file, error) from error


def _open(file: File) -> Image.Image:
    if isinstance(file, io.IOBase):
        file.seek(0)
    if isinstance(file, Image.Image):
        return file
    return Image.open(file, formats=formats())  # type: ignore[arg-type]  # any binary stream


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, in the order in which a file is tried: the usual ones first."""
    Image.init()
    return (*USUAL, *(name for name in Image.ID if name not in (*USUAL, *NOT_READ)))


def noted_orientation(image: Image.Image) -> int:
    """The camera's note, 1 … 8; 1 where there is none, or one that makes no sense."""
    try:
        noted = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # notes that are damaged say nothing; the picture may be sound
        return 1
    return noted if noted in range(1, 9) else 1


def _header(image: Image.Image) -> Header:
    orientation = noted_orientation(image)
    size = stored = image.size
    if orientation >= 5:  # Pillow gives the size of a TIFF as people see it
        size, stored = (size, size[::-1]) if image.format == "TIFF" else (size[::-1], size)
    return Header(size, stored, orientation, image.mode, image.format or "", _is_transparent(image))


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _opaque(image: Image.Image) -> Image.Image:
    """Eight bits a channel, nothing transparent."""
    if image.mode == "I" and image.format in ("PNG", "PPM"):  # 16 bits, held in 32
        return _eight_bits(image, np.asarray(image).clip(0, 65535).astype(np.uint16))
    if image.mode in SIXTEEN_BITS:
        return _eight_bits(image, np.asarray(image).astype(np.uint16))
    if image.mode in ("I", "F"):
        raise ValueError("numbers of 32 bits, which have no known range: save it with 8 or 16 bits")
    if not _is_transparent(image):
        return image
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, (*BACKGROUND, 255)), over).convert("RGB")


def _eight_bits(image: Image.Image, values: np.ndarray) -> Image.Image:
    """A grey image of 16 bits, (H, W), scaled; one grey level may stand for transparency."""
    scaled = (values >> 8).astype(np.uint8)
    if isinstance(level := image.info.get("transparency"), int):
        scaled = np.where(values == level, np.uint8(BACKGROUND[0]), scaled)
    return Image.fromarray(scaled, "L")


def _unreadable(file: File, error: Exception) -> UnreadableImage:
    name = getattr(file, "filename", "") or getattr(file, "name", "") if not isinstance(file, (str, Path)) else file
    if isinstance(error, Image.DecompressionBombError):
        reason = f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels"
    else:
        reason = str(error).partition("\n")[0] or type(error).__name__
    return UnreadableImage(f"{name or 'an image'}{BECAUSE}{reason}")
