"""A product's pixels: load the cutout, put it on the canvas, find its edges, paste it back at full size.

Shapes: H W source pixels, S T height and width of the canvas.
Sources are uint8 [H,W,4] RGBA with straight alpha; tensors are channels first, in [0, 1].
Boxes are (left, top, right, bottom).
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from rfft.data.members import Source
from rfft.errors import UserError
from rfft.types import Size, sides

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF")  # Pillow knows more, and runs Ghostscript for one of them
LEAST_SIDE, MOST_ASPECT = (
    8,
    50,
)  # of a product, in pixels of its picture and as its longer over its shorter side
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    struct.error,
)  # what Pillow's decoders raise on broken files

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Placement:
    """Says which box of the source lies in which box of the canvas; `size` is the canvas's."""

    source: Box
    canvas: Box
    size: Size


def load_cutout(path: Source, white_level: int | None, max_pixels: int) -> Pixels:
    """Read a picture as RGBA [H,W,4]; raises UserError if it cannot be used.

    `white_level` is the official rule for pictures without alpha, or with one that is opaque throughout:
    where all three channels reach it (255 in the official code; JPEGs need less), the picture is transparent.
    If it is None, a picture without alpha is an error.
    """
    image = open_upright(path, max_pixels)
    if white_level is None and not image.has_transparency_data:
        raise UserError(
            f"{path}: image without alpha; cut the product out, or make white transparent with "
            "data.white_to_alpha=true (--white-to-alpha)"
        )
    source = _as(image, "RGBA", path)
    if white_level is not None and source[..., 3].min() == 255:
        colour = source[..., :3]
        alpha = np.where((colour >= white_level).all(axis=2), 0, 255).astype(np.uint8)
        source = np.dstack([colour, alpha])
    if not (source[..., 3] > 127).any():
        raise UserError(f"{path}: fully transparent: no pixel has an alpha above one half")
    return source


def _as(image: Image.Image, mode: str, path: Source) -> Pixels:
    try:
        return np.asarray(image.convert(mode))
    except ValueError as error:  # CIE Lab, for example
        raise UserError(f"{path}: {error}; save the picture as {mode}") from None


def open_upright(path: Source, max_pixels: int) -> Image.Image:
    """Decode a picture and turn it upright; nothing is decoded before its size is known to be sane.

    Raises UserError for what is no single picture of `max_pixels` at most.
    """
    try:
        if isinstance(path, Path) and not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError
        file = path if isinstance(path, Path) else io.BytesIO(path.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit follows
            image = Image.open(file, formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise UserError(f"{path}: {width} x {height} pixels are more than max_pixels={max_pixels}")
        if (frames := frame_count(image)) > 1:
            raise UserError(f"{path}: {frames} pictures in one file; save the one that is meant by itself")
        return eight_bit(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise UserError(f"{path}: no such image") from None
    except Image.DecompressionBombError:
        raise UserError(f"{path}: far more pixels than max_pixels={max_pixels}") from None
    except DECODER_ERRORS:
        raise UserError(f"{path}: not a readable image") from None


def frame_count(image: Image.Image) -> int:
    """Return how many pictures a file holds: frames of an animation, or pages."""
    # A JPEG with more than one is what cameras write; the first one is the photo, the others its previews.
    return 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)


def refuse_sliver(source: Pixels, path: Source) -> None:
    """Raise UserError if the visible part of a product [H,W,4] is too small or too thin to be shown."""
    left, top, right, bottom = bounds(source[..., 3] > 127)
    width, height = right - left, bottom - top
    shorter, longer = sorted((width, height))
    if shorter < LEAST_SIDE or longer > MOST_ASPECT * shorter:
        raise UserError(
            f"{path}: the product is {width} x {height} pixels; a side needs {LEAST_SIDE} at least, the "
            f"longer one may have {MOST_ASPECT} times as many as the shorter one"
        )


def read_middle(path: Path, size: Size, max_pixels: int) -> Tensor:
    """Read the middle of a picture, resized: uint8 [3,H,W]; more than max_pixels are refused."""
    image = open_upright(path, max_pixels)
    height, width = sides(size)
    try:
        middle = ImageOps.fit(image.convert("RGB"), (width, height))
    except ValueError as error:  # CIE Lab, for example
        raise UserError(f"{path}: {error}; save the picture as RGB") from None
    return torch.from_numpy(np.array(middle)).permute(2, 0, 1)


def eight_bit(image: Image.Image) -> Image.Image:
    """Turn 16-bit grey into 8 bits; Pillow's own conversions make all but its darkest tones white."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def place_on_canvas(
    source: Pixels, size: Size, scale: float | None, matting: bool = False
) -> tuple[Tensor, Placement]:
    """Put a product on a transparent canvas; returns the canvas [4,S,T] and where on it the product lies.

    The official golden-ratio zoom: the product, cropped to where its alpha is above one half, is scaled until
    it takes the share `scale` of the canvas's height or width, and stands in the middle. `scale=None` keeps
    the picture's own framing; so does `matting` for a product that is cut off by its picture's border.
    """
    height, width = source.shape[:2]
    box = bounds(source[..., 3] > 127)
    if matting and (box[0] == 0 or box[1] == 0 or box[2] == width or box[3] == height):
        scale = None
    if scale is None:
        box, scale = (0, 0, width, height), 1.0
    left, top, right, bottom = box
    canvas_height, canvas_width = sides(size)
    ratio = min(canvas_height * scale / (bottom - top), canvas_width * scale / (right - left))
    new_width, new_height = (max(1, round(ratio * side)) for side in (right - left, bottom - top))
    x, y = (canvas_width - new_width) // 2, (canvas_height - new_height) // 2
    canvas = np.zeros((canvas_height, canvas_width, 4), np.float32)
    canvas[y : y + new_height, x : x + new_width] = resize_rgba(
        source[top:bottom, left:right], new_width, new_height
    )
    placement = Placement(box, (x, y, x + new_width, y + new_height), size)
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous(), placement


def bounds(mask: NDArray[np.bool_]) -> Box:
    """Return the smallest box around what is true in a mask [H,W] that is not empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def resize_rgba(rgba: Pixels, width: int, height: int) -> NDArray[np.float32]:
    """Resample RGBA to [height,width,4] in [0, 1]; alpha weights the colours: no hidden one bleeds in."""
    straight = rgba.astype(np.float32) / np.float32(255)
    if rgba.shape[:2] == (height, width):
        return straight
    straight[..., :3] *= straight[..., 3:]
    method = cv2.INTER_AREA if height < rgba.shape[0] else cv2.INTER_CUBIC
    resized = cv2.resize(straight, (width, height), interpolation=method).astype(np.float32, copy=False)
    alpha = resized[..., 3:].clip(0, 1)
    colour = np.divide(resized[..., :3], alpha, out=np.zeros_like(resized[..., :3]), where=alpha > 1e-3)
    return np.dstack([colour.clip(0, 1), alpha])


def edges(product: Tensor, low: int = 100, high: int = 200) -> Tensor:
    """Return Canny edges c [3,S,T] (0 or 1, equal channels) of a canvas [4,S,T], as in the official code."""
    visible = (product[:3] * (product[3:] >= 0.5)).mul(255).round().byte()
    picture = np.ascontiguousarray(visible.permute(1, 2, 0).cpu().numpy())
    found = torch.from_numpy(cv2.Canny(picture, low, high)).float().div(255)
    return found.expand(3, -1, -1).clone()


def paste_back(result: Tensor, source: Pixels, placement: Placement, max_pixels: int) -> Pixels:
    """Return the generated picture [3,S,T] at the product's resolution with its pixels, uint8 [H',W',3].

    The background is enlarged until the product on it has its source size; then the source is laid over it
    through its alpha. Products smaller than on the canvas, and results beyond max_pixels, are resampled.
    """
    cutout, (x, y), (height, width) = _full_size(source, placement, max_pixels)
    background = result.clamp(0, 1).float().permute(1, 2, 0).cpu().numpy()
    if (height, width) != sides(placement.size):
        background = cv2.resize(background, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    window = background[y : y + cutout.shape[0], x : x + cutout.shape[1]]
    window += cutout[..., 3:] * (cutout[..., :3] - window)
    return np.rint(background * 255).astype(np.uint8)


def product_layer(source: Pixels, placement: Placement, max_pixels: int) -> Pixels:
    """Return what `paste_back` lays over the picture: uint8 [H',W',4], transparent but for the product."""
    cutout, (x, y), shape = _full_size(source, placement, max_pixels)
    layer = np.zeros((*shape, 4), np.uint8)
    layer[y : y + cutout.shape[0], x : x + cutout.shape[1]] = np.rint(cutout * 255)
    return layer


def _full_size(
    source: Pixels, placement: Placement, max_pixels: int
) -> tuple[NDArray[np.float32], tuple[int, int], tuple[int, int]]:
    """Return the product in [0, 1] at its own resolution, its left upper corner, and the picture's shape."""
    left, top, right, bottom = placement.source
    x0, y0, x1, y1 = placement.canvas
    own = max(right - left, bottom - top) / max(x1 - x0, y1 - y0)  # source pixels per canvas pixel
    canvas = sides(placement.size)
    ratio = max(1.0, min(own, (max_pixels / (canvas[0] * canvas[1])) ** 0.5))
    shape = round(canvas[0] * ratio), round(canvas[1] * ratio)
    width, height = (max(1, round(length * ratio / own)) for length in (right - left, bottom - top))
    cutout = resize_rgba(source[top:bottom, left:right], width, height)
    x = _centred((x0 + x1) / 2 * ratio, width, shape[1])
    y = _centred((y0 + y1) / 2 * ratio, height, shape[0])
    return cutout, (x, y), shape


def _centred(centre: float, length: int, side: int) -> int:
    return min(max(0, round(centre - length / 2)), side - length)
