"""Pictures from files that nobody has vouched for: decoded with limits, resized, encoded.

Arrays are uint8: RGB [H,W,3], RGBA [H,W,4] with straight alpha, grey [H,W].
"""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rfft.data.cutout import DECODER_ERRORS, eight_bit, frame_count, resize_rgba

Pixels = NDArray[np.uint8]
Mode = Literal["RGB", "RGBA", "L"]

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # formats that are read at all
MAX_PIXELS = 50_000_000


class BrokenFile(Exception):
    """A file cannot be used; the message says why. It costs its sample, never the whole run."""


def read_header(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a picture that is not yet decoded: its format, mode and size are known, and the size is sane.

    Raises BrokenFile for what is no single picture of `max_pixels` at most.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(io.BytesIO(data), formats=tuple(EXTENSIONS))
        frames = frame_count(image)
    except Image.DecompressionBombError:
        raise BrokenFile(f"more than {max_pixels} pixels") from None
    except DECODER_ERRORS:
        raise BrokenFile("not a readable picture (JPEG, PNG or WebP)") from None
    if image.width * image.height > max_pixels:
        raise BrokenFile(f"more than {max_pixels} pixels: {image.width} x {image.height}")
    if frames > 1:
        raise BrokenFile(f"{frames} pictures in one file")
    return image


def decode(image: Image.Image, mode: Mode, size: tuple[int, int] | None = None) -> Pixels:
    """Return the pixels of what `read_header` returned, resized to `size` (width, height) if it is given.

    Raises BrokenFile for damaged data, and for RGBA if the picture has no transparency.
    """
    if mode == "RGBA" and not image.has_transparency_data:
        raise BrokenFile("no alpha channel (RGBA needed)")
    try:
        if size:
            image.draft(mode, size)  # JPEG: decoded at a half, a quarter, an eighth where that will do
        pixels = np.asarray(eight_bit(image).convert(mode))
    except DECODER_ERRORS as error:
        raise BrokenFile(f"damaged picture: {error}") from None
    return resize(pixels, size) if size else pixels


def resize(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize to a width and height; colours are weighted by alpha where there is one."""
    width, height = size
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        return np.rint(resize_rgba(pixels, width, height) * 255).astype(np.uint8)
    method = cv2.INTER_AREA if height < pixels.shape[0] else cv2.INTER_CUBIC
    return cv2.resize(pixels, size, interpolation=method).astype(np.uint8, copy=False)


def encode_png(pixels: Pixels) -> bytes:
    """Return a PNG file's bytes, made quickly rather than as small as can be."""
    return _encode(pixels, format="PNG", compress_level=1)


def encode_jpeg(pixels: Pixels) -> bytes:
    """Return a JPEG file's bytes, of high quality."""
    return _encode(pixels, format="JPEG", quality=95)


def _encode(pixels: Pixels, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **options)
    return buffer.getvalue()
