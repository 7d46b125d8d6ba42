"""Bytes of a file to an upright RGB image: the one place where pictures are decoded.

What is done with each kind of file, always the same way:

- EXIF orientation is applied, so that an image stands as a viewer shows it. An orientation that cannot be read counts
  as none.
- Grey, grey + alpha, palette, RGBA, CMYK and YCbCr become RGB by Pillow's conversion, as in torchvision's default image
  loader: an alpha channel is dropped, nothing is composited, the colours stored under transparent pixels stay.
- 16-bit grey is scaled, round(v / 257), never clipped. Pillow itself brings 16-bit colour down to 8 bit.
- Integers beyond 16 bit and floats have no stated range and are refused.
- JPEG is decoded at full size; the decoder's reduced sizes ("draft mode") are inexact and never asked for.
- Only raster formats that Pillow decodes by itself are tried: a PostScript file named .jpg starts no interpreter.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from evalkit.errors import BrokenImage

SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
    ".jpe", ".jfif", ".jif", ".apng", ".pnm", ".pbm", ".dib", ".gif", ".jp2", ".j2k", ".jpx", ".jpc", ".j2c",
)  # fmt: skip
"""File names that count as images, in lower case: those of torchvision's ImageFolder, and the other names of `FORMATS`."""

FOREIGN = (
    ".avif", ".heic", ".heif", ".hif", ".jxl", ".svg", ".psd", ".tga", ".ico", ".icns", ".exr", ".hdr", ".dds", ".qoi", ".pcx",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf",
)  # fmt: skip
"""File names of images that are not read: beside the others they are an error, never left out without a word."""

_BEGINNINGS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xffO\xffQ", b"8BPS", b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
)  # fmt: skip


def looks_like_one(head: bytes) -> bool:
    """Whether the first 16 bytes of a file are an image's, whatever it is called."""
    boxed = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"hevc", b"mif1", b"msf1")
    return head.startswith(_BEGINNINGS) or boxed or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000")
"""Pillow's names of the formats that are tried, whatever the file is called."""

_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def decode(data: bytes, name: str) -> Image.Image:
    """The image that a file's bytes hold: mode RGB, upright, full size, detached from the bytes.

    name: what messages call it. Raises BrokenImage, which names it and the cause: no image, truncated, more pixels than
    Pillow's limit against decompression bombs, no stated range of values.
    """
    with _broken(data, name), _quiet(), Image.open(BytesIO(data), formats=FORMATS) as image:
        image.load()
        decoded = _rgb(_upright(image))
    return decoded


def stored(data: bytes, name: str) -> Image.Image:
    """The image as it is in the file, in its own mode and not turned: for masks, whose palette index is the content.

    Raises BrokenImage as `decode`, but for the range of values.
    """
    with _broken(data, name), _quiet(), Image.open(BytesIO(data), formats=FORMATS) as image:
        image.load()
    return image


def size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) in pixels as stored, before any rotation, from the header alone. Raises BrokenImage."""
    with _broken(data, name), _quiet(), Image.open(BytesIO(data), formats=FORMATS) as image:
        stored = image.size
    return stored


def upright_size(data: bytes, name: str) -> tuple[int, int]:
    """(width, height) in pixels as `decode` gives the image, from the header alone. Raises BrokenImage."""
    with _broken(data, name), _quiet(), Image.open(BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        turned = _orientation(image, data) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def indices(data: bytes, name: str, *, grey: bool = False) -> np.ndarray:
    """(H, W) uint8, uint16 or int32: what a mask file stores per pixel, a palette's index or a grey value, upright.

    grey: take a colour image too whose red, green and blue are equal everywhere, and leave out an alpha channel. Raises
    BrokenImage for what `decode` refuses, for other colours (a class has a number, not a colour) and for JPEG, whose
    compression changes numbers.
    """
    image = stored(data, name)
    if image.format == "JPEG":
        raise BrokenImage(f"{name}: a JPEG cannot be a mask: its compression changes class numbers; save masks as PNG")
    upright = _upright(image)
    if grey and (upright.mode in ("LA", "PA") or _same_bands(upright)):
        upright = upright.getchannel(0)
    if upright.mode not in _INDEXED:
        raise BrokenImage(f"{name}: {_no_index(upright)}")
    values: np.ndarray = np.asarray(upright)
    return values.astype(np.uint8) if values.dtype == bool else values


_INDEXED = ("1", "L", "P", *_SIXTEEN_BIT)


def _no_index(image: Image.Image) -> str:
    reason = f"is a picture of mode {image.mode} where an index mask is needed: one channel that holds class numbers"
    if image.mode not in ("RGB", "RGBA"):
        return reason
    if _same_bands(image):
        return f"{reason}; its three colour channels are equal, so save one of them"
    colours = len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3)[:1_000_000], axis=0))
    return f"{reason}; it has {colours:,} colour(s), which must be replaced by the numbers that they stand for"


def _same_bands(image: Image.Image) -> bool:
    """Whether a colour image is a grey one: red, green and blue are equal everywhere."""
    if image.mode not in ("RGB", "RGBA"):
        return False
    red, green, blue = (np.asarray(image.getchannel(band)) for band in range(3))
    return np.array_equal(red, green) and np.array_equal(red, blue)


def _orientation(image: Image.Image, data: bytes) -> int:
    """As EXIF has it, 1 to 8; 1 where there is none. A PNG is only searched where it may say one: that decodes it."""
    if image.format == "PNG" and not any(mark in data for mark in (b"eXIf", b"Raw profile type", b"adobe.xmp")):
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, ArithmeticError):
        return 1


@contextmanager
def _broken(data: bytes, name: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as cause:  # decoders raise nearly anything on hostile bytes
        raise BrokenImage(f"{name}: {_reason(cause, data)}") from cause


@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow warns of damaged EXIF, which counts as none, and of images between its pixel limit and twice that limit,
    which are refused here. Both filters are narrow: where threads overlap, one may outlive its block."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, ArithmeticError):
        return image
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode in _SIXTEEN_BIT:
        return Image.fromarray(_eight_bit(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise ValueError("its values are floats, whose range is not stated")
    if image.mode in ("P", "PA"):  # Pillow warns of some transparent palettes on the direct way; the colours are equal
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _eight_bit(values: np.ndarray) -> np.ndarray:
    """(H, W) integers in [0, 65535] to uint8 in [0, 255], rounded to nearest. Raises ValueError beyond that range."""
    wide = values.astype(np.int64)
    if wide.size and (wide.min() < 0 or wide.max() > 65535):
        raise ValueError("its values do not fit 16 bit, and a wider range is not stated")
    return ((wide + 128) // 257).astype(np.uint8)


def _reason(cause: Exception, data: bytes) -> str:
    if not data:
        return "cannot be decoded: the file is empty"
    if isinstance(cause, UnidentifiedImageError):
        return f"is no image: it begins with {data[:12]!r}"
    if isinstance(cause, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"has more pixels than the limit of {Image.MAX_IMAGE_PIXELS:,}"
    return f"cannot be decoded: {cause or type(cause).__name__}"
