"""Sizes of canvases: one for all products, or for each the nearest of a few, its bucket."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from PIL import ExifTags, Image

from rfft.data.cutout import DECODER_ERRORS, FORMATS
from rfft.data.members import Source
from rfft.errors import UserError
from rfft.types import Size, sides

COARSE, FINE = 64, 16  # auto's sides are multiples of it, from LARGE pixels on and below
LARGE = 512**2
MOST_ASPECT = 2.0  # of auto, a canvas's longer over its shorter side
T = TypeVar("T")


def as_size(setting: int | Sequence[int]) -> Size:
    """Return the size that data.image_size names: a side, or [height, width]."""
    if isinstance(setting, int):
        return setting
    height, width = setting
    return height if height == width else (height, width)


def as_buckets(setting: str | Sequence[Sequence[int]] | None, size: Size) -> tuple[Size, ...]:
    """Return the sizes that data.buckets names, beside data.image_size; none where it is null."""
    if setting is None:
        return ()
    if isinstance(setting, str):
        return auto_buckets(size)
    return tuple(as_size(pair) for pair in setting)


def auto_buckets(size: Size) -> tuple[Size, ...]:
    """Return sizes of at most as many pixels as `size`, from upright to wide.

    The scheme of NovelAI and kohya's sd-scripts: for each width the largest height, in multiples of a step.
    """
    area = math.prod(sides(size))
    step = COARSE if area >= LARGE else FINE
    found = {}
    for width in range(step, area // step + 1, step):
        height = area // width // step * step
        if height and max(height, width) <= MOST_ASPECT * min(height, width):
            found[height] = as_size((height, width))  # of several widths for a height the largest
    return tuple(found.values())


def nearest(buckets: Sequence[Size], height: int, width: int) -> int:
    """Return the number of the bucket whose aspect ratio is the nearest, by the ratio of both."""

    def distance(number: int) -> float:
        own_height, own_width = sides(buckets[number])
        return abs(math.log(own_height / own_width) - math.log(height / width))

    return min(range(len(buckets)), key=distance)


def of_one_size(items: Iterable[T], size: Callable[[T], Size | None], most: int) -> list[list[T]]:
    """Return the items in batches of `most` or fewer, each of one size; in order where all have the same."""
    groups: dict[Size | None, list[T]] = {}
    for item in items:
        groups.setdefault(size(item), []).append(item)
    return [group[first : first + most] for group in groups.values() for first in range(0, len(group), most)]


def picture_shape(path: Source) -> tuple[int, int] | None:
    """Return height and width of a picture as it is shown, by its header; None where that cannot be read."""
    try:
        file = path if isinstance(path, Path) else io.BytesIO(path.read_bytes())
        with warnings.catch_warnings(), Image.open(file, formats=FORMATS) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # turned by a right angle
            return image.size if lies else (image.height, image.width)
    except (*DECODER_ERRORS, Image.DecompressionBombError, UserError):
        return None
