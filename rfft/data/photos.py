"""The command `rfft products cutout`: products out of plain photos, and a sheet to look at.

Shapes: H W a photo's pixels; photos uint8 [H,W,3], cutouts uint8 [H,W,4].
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor

from rfft.data.cutout import Pixels, open_upright
from rfft.data.matting import Edge, Saliency, cut_out
from rfft.data.products import Product, ProductList, read_products
from rfft.errors import UserError, require
from rfft.rewards.maps import load_saliency
from rfft.utils import contact_sheet
from rfft.utils.atomic_io import new_folder, refuse_existing
from rfft.utils.log import messages

SHEETS = "sheet"  # a folder: pictures beside the cutouts would be taken for products
REAL_ALPHA = 0.01  # share of transparent pixels from which a photo counts as cut out already
SIDE, LINE, SQUARE = 160, 14, 10  # pixels of the sheet: half a cell, its line of text, the checkerboard
COLUMNS, ROWS = 3, 12


def cut_out_folder(folder: Path, out: Path, edge: Edge, max_pixels: int) -> list[str]:
    """Cut out every photo of a folder; returns the file names of those in which nothing was found.

    All or nothing: out/NAME.png at the photo's own resolution, its caption NAME.txt where the photo has one,
    and out/sheet/1.png and so on.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of photos")
    refuse_existing(out)
    photos = read_products(folder)
    for photo in photos:
        require(isinstance(photo.image, Path), f"{photo.image}: in an archive; unpack it")
        open_upright(photo.image, max_pixels)  # a broken one is better found now than in the end
    console = messages()
    with new_folder(out) as draft:
        missed = _cut_all(photos, draft, edge, max_pixels, console)
    found = f"{len(photos) - len(missed)} of {len(photos)} products cut out; written: {out}"
    console.print(found, highlight=False, soft_wrap=True)
    for name in missed:
        console.print(f"nothing found: {name}", highlight=False, soft_wrap=True)
    return missed


def _cut_all(photos: ProductList, folder: Path, edge: Edge, max_pixels: int, console: Console) -> list[str]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = load_saliency("u2netp").to(device)
    missed: list[str] = []
    cells: list[Tensor] = []
    (folder / SHEETS).mkdir()
    with Progress(
        "cutting", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as bar:
        for number, photo in enumerate(bar.track(photos), start=1):
            image = open_upright(photo.image, max_pixels)
            cutout = cut(image, lambda picture: network(picture.to(device)), edge)
            if (cutout[..., 3] > 127).any():
                _save(photo, cutout, folder)
            else:
                missed.append(photo.image.name)
            cells.append(_cell(image, cutout, photo.image.name))
            if len(cells) == COLUMNS * ROWS or number == len(photos):
                _save_sheet(cells, photos[number - len(cells) : number], missed, folder / SHEETS)
                cells = []
    return missed


def cut(image: Image.Image, saliency: Saliency, edge: Edge) -> Pixels:
    """A photo as RGBA [H,W,4]; one that is cut out already stays as it is."""
    if image.has_transparency_data:
        pixels = np.asarray(image.convert("RGBA"))
        if (pixels[..., 3] < 128).mean() > REAL_ALPHA:
            return pixels
    return cut_out(np.asarray(image.convert("RGB")), saliency, edge)


def _save(photo: Product, cutout: Pixels, folder: Path) -> None:
    contact_sheet.save_png(folder / f"{photo.id}.png", cutout)
    caption = Path(photo.image).with_suffix(".txt") if isinstance(photo.image, Path) else None
    if caption is not None and caption.is_file():
        shutil.copyfile(caption, folder / f"{photo.id}.txt")


def _save_sheet(cells: list[Tensor], photos: ProductList, missed: list[str], folder: Path) -> None:
    found = torch.tensor([photo.image.name not in missed for photo in photos])
    picture = contact_sheet.sheet(torch.stack(cells), found, min(COLUMNS, len(cells)))
    contact_sheet.save_png(folder / f"{len(list(folder.iterdir())) + 1}.png", picture)


def _cell(photo: Image.Image, cutout: Pixels, name: str) -> Tensor:
    """Photo, and cutout on a checkerboard, over the file's name: [3,SIDE+LINE,2*SIDE]."""
    cell = Image.new("RGB", (2 * SIDE, SIDE + LINE), contact_sheet.PAPER)
    rows, columns = np.indices((SIDE, SIDE)) // SQUARE
    board = np.where((rows + columns) % 2, 205, 255).astype(np.uint8)
    cell.paste(Image.fromarray(board), (SIDE, 0))
    for left, picture in ((0, photo), (SIDE, Image.fromarray(cutout))):
        small = ImageOps.contain(picture.convert("RGBA"), (SIDE, SIDE))
        cell.paste(small, (left + (SIDE - small.width) // 2, (SIDE - small.height) // 2), small)
    ImageDraw.Draw(cell).text((4, SIDE), name, fill="black")
    return torch.from_numpy(np.array(cell)).permute(2, 0, 1)
