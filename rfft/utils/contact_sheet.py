"""Pictures side by side: PNG grids in which a frame's colour is the verdict.

Shapes: N pictures, H W pixels, cells uint8 [N,3,H,W], sheets uint8 [H',W',3].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from rfft.utils.atomic_io import new_file

Sheet = NDArray[np.uint8]
ACCEPTED, REFUSED, PAPER = (46, 160, 67), (218, 54, 51), (255, 255, 255)
BORDER, GAP = 3, 2


def to_bytes(images: Tensor) -> Tensor:
    """Return pictures in [0,1] as uint8 on the CPU; what is NaN becomes black."""
    return images.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().byte().cpu()


def tile(cells: Tensor, columns: int, gap: int = 0) -> Sheet:
    """Cells row by row, without frames; `untile` takes a sheet without gaps apart again."""
    count, _, height, width = cells.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), PAPER, np.uint8)
    for i, cell in enumerate(cells.permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = cell
    return sheet


def untile(sheet: Sheet, columns: int, count: int) -> Tensor:
    """The `count` square cells of a sheet that `tile` made."""
    side = sheet.shape[1] // columns
    cells = [
        sheet[i // columns * side :, i % columns * side :][:side, :side].transpose(2, 0, 1)
        for i in range(count)
    ]
    return torch.from_numpy(np.stack(cells))


def frame(cells: Tensor, accepted: Tensor) -> Tensor:
    """Cells with a green (accepted [N]) or red border around them."""
    count, _, height, width = cells.shape
    framed = torch.empty(count, 3, height + 2 * BORDER, width + 2 * BORDER, dtype=torch.uint8)
    colours = torch.tensor([REFUSED, ACCEPTED], dtype=torch.uint8)[accepted.long().cpu()]
    framed[:] = colours[:, :, None, None]
    framed[:, :, BORDER:-BORDER, BORDER:-BORDER] = cells
    return framed


def sheet(cells: Tensor, accepted: Tensor, columns: int, zoom: int = 1) -> Sheet:
    """Framed cells, enlarged by whole pixels."""
    enlarged = cells.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    return tile(frame(enlarged, accepted), columns, GAP)


def before_after(base: Tensor, tuned: Tensor, verdicts: tuple[Tensor, Tensor], columns: int) -> Sheet:
    """The base model's pictures in one row, the tuned one's of the same seeds below, and so on."""
    zoom = max(1, 128 // base.shape[-1])
    bands = []
    for start in range(0, len(base), columns):
        part = slice(start, start + columns)
        for cells, accepted in zip((base, tuned), verdicts, strict=True):
            bands.append(sheet(cells[part], accepted[part], columns, zoom))
        bands.append(np.full((4 * GAP, bands[-1].shape[1], 3), PAPER, np.uint8))
    return np.concatenate(bands[:-1])


def save_png(path: Path, picture: Sheet) -> None:
    """Write a picture whole or not at all."""
    with new_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG")


def read_png(path: Path) -> Sheet:
    """A picture that this program wrote, of any size: Image.open() refuses 700 pictures of 512 px."""
    with PngImageFile(path) as image:
        return np.asarray(image.convert("RGB"))
