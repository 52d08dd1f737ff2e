"""Product photos on disk."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, count: int) -> None:
    """Make a folder of so many RGBA pictures, each of another size and colour."""
    folder.mkdir()
    for i in range(count):
        pixels = np.zeros((50, 40, 4), np.uint8)
        pixels[8:44, 8 : 20 + i] = 40 * i, 90, 30, 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
