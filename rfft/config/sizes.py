"""Checks of the sizes of pictures: data.image_size and data.buckets."""

from __future__ import annotations

from typing import Any

from rfft.config.schema import DataConfig
from rfft.errors import require

LEAST, STEP = 16, 8  # pixels of a side; it must be a multiple of STEP
MOST = 2**14
MOST_BUCKETS = 64


def check_sizes(data: DataConfig) -> None:
    """Raise a UserError for sizes that no canvas can have."""
    _check_size("data.image_size", data.image_size, whole=True)
    buckets = data.buckets
    if buckets is None or buckets == "auto":
        return
    require(
        isinstance(buckets, list) and 0 < len(buckets) <= MOST_BUCKETS,
        f"data.buckets={buckets} must be auto, or a list of [height, width]: [[64, 64], [96, 64]]",
    )
    for bucket in buckets:
        _check_size("data.buckets", bucket, whole=False)


def _check_size(name: str, size: Any, whole: bool) -> None:
    """Check a size: [height, width], or one side where `whole` is true."""
    numbers = size if isinstance(size, list) else [size]
    is_pair = isinstance(size, list) and len(size) == 2
    require(
        (is_pair or (whole and not isinstance(size, list))) and all(type(side) is int for side in numbers),
        f"{name} is {size}; it must be {'a whole number of pixels, or ' if whole else 'a list of '}"
        "[height, width]",
    )
    for side in numbers:
        require(side >= LEAST, f"{name} is {size}; it must be at least {LEAST}")
        require(side <= MOST, f"{name} is {size}; it must be at most {MOST}")
        require(side % STEP == 0, f"{name}={size} is no multiple of {STEP}: {side // STEP * STEP} is")
