"""Pictures that show what good ones look like: what KID and FID compare with."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from rfft.data.cutout import read_square
from rfft.data.products import SUFFIXES
from rfft.errors import UserError
from rfft.utils.registry import resolve

KEY = "evaluate.reference"
KNOWN = {"adworld": "rfft.adworld.products:reference_images"}
FEWEST = 4  # pictures that KID needs


def reference_images(source: str, size: int, max_pixels: int) -> Tensor:
    """Return available pictures uint8 [M,3,size,size], of a folder; adworld:SPLIT has AdWorld's size."""
    known = source.partition(":")[0]
    if known in KNOWN:
        pictures: Tensor = resolve(KEY, known, KNOWN)(source)
        return pictures
    files = sorted(file for file in Path(source).glob("*") if file.suffix.lower() in SUFFIXES)
    if len(files) < FEWEST:
        raise UserError(f"{KEY}: {source} must be a folder of {FEWEST} pictures at least, or null for no KID")
    return torch.stack([read_square(file, size, max_pixels) for file in files])
