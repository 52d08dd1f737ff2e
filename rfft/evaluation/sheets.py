"""A state's pictures in a run's folder: plain sheets, samples/STATE.png and, where that would be too large,
samples/STATE-2.png and so on.

Shapes: P pictures, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from rfft.evaluation.picture_file import PictureFile
from rfft.utils import contact_sheet

FOLDER = "samples"
SHEET = 2**24  # pixels of a sheet at most, unless one row of pictures has more
OPEN = 4  # sheets that a reader keeps decoded


def save_sheets(run: Path, state: str, pictures: PictureFile, columns: int) -> None:
    """Write all pictures, a row of `columns` seeds for each product and prompt."""
    (run / FOLDER).mkdir(exist_ok=True)
    _, height, width = pictures.shape
    held = columns * max(1, SHEET // (columns * height * width))
    sheets = _names(run, state)
    for first in range(0, pictures.count, held):
        cells = pictures.read(first, held)
        contact_sheet.save_png(next(sheets), contact_sheet.tile(cells, columns))
    for left in sheets:  # of an earlier, larger grid
        if not left.exists():
            break
        left.unlink()


class Sheets:
    """The pictures that save_sheets() wrote, by their numbers; a few sheets of them are in memory."""

    def __init__(self, run: Path, state: str, columns: int, count: int) -> None:
        """`columns` and `count`: of the grid; raises FileNotFoundError if there are no pictures."""
        self.count, self.columns = count, columns
        self._files = [
            file for file, _ in zip(_names(run, state), range(count), strict=False) if file.exists()
        ]
        if not self._files:
            raise FileNotFoundError(next(_names(run, state)))
        heights = [contact_sheet.height_of(file) for file in self._files]
        self._height = sum(heights) // -(-count // columns)  # of a cell
        self._held = heights[0] // self._height * columns  # cells of a sheet
        self._cells = lru_cache(maxsize=OPEN)(self._read)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        """Return picture `number`, uint8 [3,H,W]."""
        sheet, within = divmod(range(self.count)[number], self._held)
        return self._cells(sheet)[within]

    def first(self, count: int) -> Tensor:
        """Return the first pictures, [count,3,H,W] or fewer."""
        return torch.stack([self[i] for i in range(min(count, self.count))])

    def _read(self, sheet: int) -> Tensor:
        pixels = contact_sheet.read_png(self._files[sheet])
        there = min(self._held, self.count - sheet * self._held)
        return contact_sheet.untile(pixels, self.columns, self._height, there)


def _names(run: Path, state: str) -> Iterator[Path]:
    number = 1
    while True:
        yield run / FOLDER / f"{state}{f'-{number}' if number > 1 else ''}.png"
        number += 1
