"""Pictures from untrusted files: limits hold, numbers come out right."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rfft.data.pictures import BrokenFile, decode, encode_jpeg, encode_png, read_header, resize


def png(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def bomb(side):
    """A PNG that claims side x side pixels in a hundred bytes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [8000, 30_000])  # above our limit; above Pillow's own
def test_a_bomb_is_refused_before_it_is_decoded(side):
    with pytest.raises(BrokenFile, match="more than 50000000 pixels"):
        read_header(bomb(side))


def test_what_is_no_picture_is_said_to_be_none():
    gif = io.BytesIO()
    Image.new("RGB", (8, 8)).save(gif, format="GIF")
    for data in (b"", b"no picture", gif.getvalue()):  # GIF: a format that nobody needs is not opened
        with pytest.raises(BrokenFile, match="not a readable picture"):
            read_header(data)


def test_half_a_picture_is_damaged():
    data = png(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    with pytest.raises(BrokenFile, match="damaged picture"):
        decode(read_header(data[: len(data) // 2]), "RGB")


def test_pixels_survive():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    assert np.array_equal(decode(read_header(encode_png(pixels)), "RGBA"), pixels)
    with pytest.raises(BrokenFile, match="no alpha"):
        decode(read_header(encode_png(pixels[..., :3])), "RGBA")
    flat = np.full((64, 64, 3), (200, 100, 50), np.uint8)
    assert np.abs(decode(read_header(encode_jpeg(flat)), "RGB").astype(int) - flat).max() <= 2


def test_sixteen_bit_depth_keeps_its_upper_byte():
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    assert decode(read_header(png(deep)), "L").tolist() == [[0, 0, 1, 255]]


def test_resizing_averages_and_hidden_colours_do_not_bleed():
    grey = np.array([[0, 100], [200, 100]], np.uint8)
    assert resize(grey, (1, 1)).tolist() == [[100]]
    rgba = np.array([[[255, 0, 0, 255], [0, 255, 0, 0]]] * 2, np.uint8)  # red, beside invisible green
    assert resize(rgba, (1, 1)).tolist() == [[[255, 0, 0, 128]]]


def test_a_large_jpeg_is_read_small():
    picture = np.zeros((256, 128, 3), np.uint8)
    picture[:128] = 240
    small = decode(read_header(encode_jpeg(picture)), "RGB", (32, 32))
    assert small.shape == (32, 32, 3)
    assert small[:14].min() >= 238 and small[18:].max() <= 2
