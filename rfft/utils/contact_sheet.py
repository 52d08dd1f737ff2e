"""Pictures side by side: PNG grids in which a frame's colour is the verdict.

Shapes: N pictures, H W pixels, cells uint8 [N,3,H,W], sheets uint8 [H',W',3].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from rfft.utils.atomic_io import new_file

Sheet = NDArray[np.uint8]
ACCEPTED, REFUSED, PAPER, INK = (46, 160, 67), (218, 54, 51), (255, 255, 255), (28, 33, 40)
BORDER, GAP = 3, 2


def to_bytes(images: Tensor) -> Tensor:
    """Return pictures in [0,1] as uint8 on the CPU; what is NaN becomes black."""
    return images.detach().float().nan_to_num(0.0).clamp(0, 1).mul(255).round().byte().cpu()


def tile(cells: Tensor, columns: int, gap: int = 0) -> Sheet:
    """Return cells row by row, without frames, `gap` pixels apart.

    A sheet without gaps is taken apart again by `untile`.
    """
    count, _, height, width = cells.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), PAPER, np.uint8)
    for i, cell in enumerate(cells.permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = cell
    return sheet


def untile(sheet: Sheet, columns: int, height: int, count: int) -> Tensor:
    """Return the `count` cells of a height in a sheet that `tile` made without gaps."""
    width = sheet.shape[1] // columns
    cells = [
        sheet[i // columns * height :, i % columns * width :][:height, :width].transpose(2, 0, 1)
        for i in range(count)
    ]
    return torch.from_numpy(np.stack(cells))


def in_middle(picture: Tensor, height: int, width: int) -> Tensor:
    """Return a picture uint8 [3,H,W] on paper of this height and width, which are no less than its own."""
    cell = torch.tensor(PAPER, dtype=torch.uint8)[:, None, None].expand(3, height, width).clone()
    top, left = (height - picture.shape[1]) // 2, (width - picture.shape[2]) // 2
    cell[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return cell


def in_cells(pictures: Sequence[Tensor]) -> Tensor:
    """Return pictures uint8 [3,H,W] as cells of one size, that of the highest and the widest one."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
    return torch.stack([in_middle(picture, height, width) for picture in pictures])


def frame(cells: Tensor, accepted: Tensor | None) -> Tensor:
    """Put a green (accepted [N]) or red border around cells; without verdicts an empty one."""
    count, _, height, width = cells.shape
    framed = torch.empty(count, 3, height + 2 * BORDER, width + 2 * BORDER, dtype=torch.uint8)
    choice = torch.full((count,), 2) if accepted is None else accepted.long().cpu()
    colours = torch.tensor([REFUSED, ACCEPTED, PAPER], dtype=torch.uint8)[choice]
    framed[:] = colours[:, :, None, None]
    framed[:, :, BORDER:-BORDER, BORDER:-BORDER] = cells
    return framed


def sheet(cells: Tensor, accepted: Tensor | None, columns: int, zoom: int = 1) -> Sheet:
    """Return framed cells, enlarged by whole pixels."""
    enlarged = cells.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    return tile(frame(enlarged, accepted), columns, GAP)


@dataclass(frozen=True)
class Row:
    """Pictures of one model, with what is written below each."""

    cells: Tensor
    accepted: Tensor | None  # [N]; None: nobody judged them, so they have no colour
    captions: Sequence[str]


def before_after(rows: Mapping[str, Row], columns: int) -> Sheet:
    """Put the pictures of several models, the same cells each, one above the other, and so on.

    Every row has its model's name at its left; frame and words below a picture are the verdict.
    """
    first = next(iter(rows.values()))
    count, (height, width) = len(first.cells), first.cells.shape[-2:]
    zoom = max(1, 128 // max(height, width))
    bands: list[Sheet] = []
    for start in range(0, count, columns):
        part = slice(start, start + columns)
        for name, row in rows.items():
            accepted = None if row.accepted is None else row.accepted[part]
            named = captioned(row.cells[part], accepted, row.captions[part], zoom)
            bands.append(np.concatenate([_label(name, named.shape[0], zoom * height), named], axis=1))
        bands.append(np.full((4 * GAP, bands[-1].shape[1], 3), PAPER, np.uint8))
    width = bands[0].shape[1]
    return np.concatenate([_widen(band, width) for band in bands[:-1]])


def captioned(cells: Tensor, accepted: Tensor | None, captions: Sequence[str], zoom: int) -> Sheet:
    """Return one row of framed cells with a text below each, in the colour of its frame."""
    pictures = sheet(cells, accepted, len(cells), zoom)
    step = (pictures.shape[1] + GAP) // len(cells)
    strip = Image.new("RGB", (pictures.shape[1], int(_font(step).size) * 3 // 2), PAPER)
    draw = ImageDraw.Draw(strip)
    for i, text in enumerate(captions):
        colour = INK if accepted is None else ACCEPTED if accepted[i] else REFUSED
        draw.text((i * step + (step - GAP) / 2, 0), text, colour, _font(step), anchor="ma")
    return np.concatenate([pictures, np.asarray(strip)])


def _label(name: str, height: int, side: int) -> Sheet:
    """Return a picture of a row's name, at the height of its pictures' middle."""
    font = _font(side)
    label = Image.new("RGB", (int(font.size) * 4, height), PAPER)
    ImageDraw.Draw(label).text((font.size // 2, side / 2), name, INK, font, anchor="lm")
    return np.asarray(label)


def _font(side: int) -> ImageFont.FreeTypeFont:
    """Return Pillow's own font in a size in which the longest verdict fits below a picture."""
    font = ImageFont.load_default(max(10, side // 11))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _widen(band: Sheet, width: int) -> Sheet:
    return np.pad(band, ((0, 0), (0, width - band.shape[1]), (0, 0)), constant_values=255)


def save_png(path: Path, picture: Sheet) -> None:
    """Write a picture whole or not at all."""
    with new_file(path) as file:
        Image.fromarray(picture).save(file, format="PNG")


def height_of(path: Path) -> int:
    """Return the height of a picture that this program wrote, without decoding it."""
    with PngImageFile(path) as image:
        return image.height


def read_png(path: Path) -> Sheet:
    """Read a picture that this program wrote, of any size.

    Image.open() would refuse 700 pictures of 512 px.
    """
    with PngImageFile(path) as image:
        return np.asarray(image.convert("RGB"))
