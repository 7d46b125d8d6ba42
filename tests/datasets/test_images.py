"""Every kind of file becomes an upright RGB image, or a BrokenImage that names it."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from dataset_makers import encoded, plain
from PIL import Image

from evalkit.datasets.images import decode, size
from evalkit.errors import BrokenImage


def pixels(data: bytes) -> np.ndarray:
    image = decode(data, "x.png")
    assert image.mode == "RGB"
    return np.asarray(image)


def gradient() -> Image.Image:
    ramp = np.add.outer(np.arange(40), np.arange(60)).astype(np.uint8)
    return Image.fromarray(np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1))


def test_rgb_png_is_exact() -> None:
    assert np.array_equal(pixels(encoded(gradient())), np.asarray(gradient()))


def test_jpeg_is_decoded_at_full_size_as_pillow_does() -> None:
    data = encoded(gradient(), "JPEG", quality=90)
    assert np.array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (12_000, 3), (3, 12_000)])
def test_any_size(width: int, height: int) -> None:
    assert pixels(encoded(plain(width, height), "JPEG")).shape == (height, width, 3)


def test_grey_is_repeated() -> None:
    assert (pixels(encoded(Image.new("L", (3, 2), 77))) == 77).all()


def test_one_bit_becomes_black_and_white() -> None:
    assert set(np.unique(pixels(encoded(Image.new("1", (3, 2), 1))))) == {255}


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_dropped_not_composited(mode: str) -> None:
    colour = (200, 100, 50, 0) if mode == "RGBA" else (200, 0)
    expected = (200, 100, 50) if mode == "RGBA" else (200, 200, 200)
    assert (pixels(encoded(Image.new(mode, (2, 2), colour))) == expected).all()


def test_palette_gives_its_colours() -> None:
    assert np.array_equal(pixels(encoded(gradient().quantize(8))), np.asarray(gradient().quantize(8).convert("RGB")))


def test_transparent_palette_keeps_the_colours_below() -> None:
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert (pixels(encoded(image, transparency=b"\xff\x00")) == (10, 20, 30)).all()


def test_cmyk_jpeg() -> None:
    found = pixels(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100))
    assert np.abs(found.astype(int) - (0, 255, 255)).max() <= 3


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (128, 0), (129, 1), (257, 1), (32768, 128), (65535, 255)])
def test_sixteen_bit_is_scaled_not_clipped(value: int, expected: int) -> None:
    assert (pixels(encoded(Image.fromarray(np.full((2, 3), value, np.uint16)))) == expected).all()


def test_sixteen_bit_tiff_of_either_byte_order() -> None:
    for order in ("<u2", ">u2"):
        data = encoded(Image.fromarray(np.full((2, 3), 25700, order)), "TIFF")
        assert (pixels(data) == 100).all(), order


def test_wide_integers_and_floats_are_refused() -> None:
    with pytest.raises(BrokenImage, match=r"x\.png.*16 bit"):
        pixels(encoded(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"))
    with pytest.raises(BrokenImage, match=r"x\.png.*floats"):
        pixels(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = gradient()
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(turn[orientation]) if orientation in turn else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, "PNG", exif=exif)
    assert np.array_equal(pixels(data), np.asarray(upright))
    assert size(data, "x") == stored.size


def test_exif_orientation_of_a_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pixels(encoded(plain(8, 6), "JPEG", exif=exif)).shape == (8, 6, 3)


def test_unreadable_exif_counts_as_none() -> None:
    data = encoded(plain(), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff\x00\x00")
    assert pixels(data).shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "the file is empty"),
        (b"these are words, not an image", "is no image"),
        # with Pillow's reader of PostScript the cause would be its interpreter
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "is no image"),
        (b"\xff\xd8", "is no image"),
    ],
    ids=["empty", "text", "postscript", "two bytes"],
)
def test_what_is_no_image_is_named(data: bytes, cause: str) -> None:
    with pytest.raises(BrokenImage, match=rf"birds/one\.jpg: .*{cause}"):
        decode(data, "birds/one.jpg")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF"])
def test_a_truncated_file_is_broken(format: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, format)
    with pytest.raises(BrokenImage, match=r"cut\.jpg: cannot be decoded"):
        decode(data[: len(data) // 2], "cut.jpg")


def _png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 30_000], ids=["pillow warns", "pillow raises"])
def test_a_decompression_bomb_is_broken_without_a_warning(side: int) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(BrokenImage, match="more pixels than the limit"):
            decode(_png_of(side, side), "bomb.png")
    assert not seen
