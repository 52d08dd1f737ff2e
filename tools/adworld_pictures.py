"""Draws the pictures of docs/adworld.md: python tools/adworld_pictures.py docs."""

import sys
from pathlib import Path

import cv2
import numpy as np

from rfft.adworld.draw import contact_sheet

SEED, GAP = 3, 16


def main(folder: Path) -> None:
    write(folder / "adworld.jpg", contact_sheet(SEED, "train"))
    learned, held_out = (contact_sheet(SEED, source, columns=8) for source in ("rfnet", "test_styles"))
    gap = np.full((len(learned), GAP, 3), 255, np.uint8)
    write(folder / "adworld_styles.jpg", np.concatenate([learned, gap, held_out], axis=1))


def write(path: Path, rgb: np.ndarray) -> None:
    if not cv2.imwrite(str(path), rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80]):
        raise OSError(f"{path} was not written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
