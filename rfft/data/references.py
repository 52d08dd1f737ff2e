"""Pictures that show what good ones look like: what KID and FID compare with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from rfft.data.cutout import read_middle
from rfft.data.products import SUFFIXES
from rfft.errors import UserError
from rfft.types import Size
from rfft.utils.registry import resolve

KEY = "evaluate.reference"
KNOWN = {"adworld": "rfft.adworld.products:reference_images"}
FEWEST = 4  # pictures that KID needs
BATCH = 32  # pictures in memory


def reference_images(source: str, size: Size, max_pixels: int) -> Iterator[Tensor]:
    """Yield available pictures uint8 [B,3,H,W] of a folder, BATCH or fewer at a time.

    adworld:SPLIT has AdWorld's size. Raises UserError for too few of them, and for one that cannot be read.
    """
    known = source.partition(":")[0]
    if known in KNOWN:
        pictures: Tensor = resolve(KEY, known, KNOWN)(source)
        yield from pictures.split(BATCH)
        return
    files = sorted(file for file in Path(source).glob("*") if file.suffix.lower() in SUFFIXES)
    if len(files) < FEWEST:
        raise UserError(f"{KEY}: {source} must be a folder of {FEWEST} pictures at least, or null for no KID")
    for first in range(0, len(files), BATCH):
        yield torch.stack([read_middle(file, size, max_pixels) for file in files[first : first + BATCH]])
