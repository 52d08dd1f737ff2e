"""What RFNet is asked about: pictures with products and captions, found on disk and brought to its size.

Shapes: H W a picture's own size, S the side to which it is brought.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from rfft.data.cutout import load_cutout, open_upright
from rfft.data.pictures import MAX_PIXELS
from rfft.data.products import SUFFIXES, Product, read_products
from rfft.errors import UserError
from rfft.feedback.dataset import square
from rfft.generation.generated import MANIFEST

Picture = str | Path | Image.Image | Tensor
SHAPES_DIFFER = 0.02  # relative; more than this is not rounding


@dataclass(frozen=True)
class Question:
    """A picture on disk with what RFNet must know beside it; `problem` says why it cannot be asked about."""

    picture: Path
    product: Path = Path()
    caption: str = ""
    problem: str | None = None


def find_questions(pictures: Sequence[Path], products: Path) -> list[Question]:
    """Pair pictures with the products of the same name.

    `pictures` are files and folders (of a folder that `rfft generate` wrote, its images/), `products` a
    folder of RGBA cutouts or a JSON-lines manifest. Captions come from the manifest.jsonl beside the folder
    of products, else from NAME.txt beside a product, else they are the words of its name. Raises UserError
    if there is no picture.
    """
    files = [file for path in pictures for file in find_files(path)]
    known = {product.id: product for product in read_products(products)}
    captions = _captions(products.parent / MANIFEST)
    return [_question(file, known, captions) for file in files]


def _question(file: Path, known: dict[str, Product], captions: dict[str, str]) -> Question:
    if (product := known.get(file.stem)) is None:
        return Question(file, problem=f"{file}: no product of the name {file.stem!r} is there")
    if not isinstance(product.image, Path):
        return Question(file, problem=f"{product.image}: in an archive; unpack it")
    return Question(file, product.image, captions.get(file.stem, product.caption))


def find_files(path: Path) -> list[Path]:
    """Return the pictures in a folder, sorted, or the file itself."""
    if not path.is_dir():
        return [path]
    if (path / MANIFEST).is_file() and (path / "images").is_dir():
        path = path / "images"
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.name[0] != ".")
    if not found:
        raise UserError(f"{path}: no pictures here; expected {', '.join(SUFFIXES)}")
    return found


def _captions(manifest: Path) -> dict[str, str]:
    """Return the captions in a manifest by id; none where there is no manifest."""
    if not manifest.is_file():
        return {}
    try:
        lines = manifest.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
        return {str(row["id"]): row["caption"] for row in rows if isinstance(row.get("caption"), str)}
    except (OSError, ValueError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{manifest}: damaged; each line must be a JSON object with id and caption") from None


def load_pair(picture: Picture, product: Picture, size: int) -> tuple[Tensor, Tensor]:
    """Return a picture [3,S,S] and its product [4,S,S], floats in [0,1], at `size`.

    Both are brought there as RFNet's training brings them: the aspect ratio is not kept. Tensors are [C,H,W],
    floats in [0,1] or bytes. Raises UserError for what cannot be read, a picture that is transparent, a
    product that is not, and a pair of different shapes.
    """
    image, cutout = pixels_of(picture, "RGB"), pixels_of(product, "RGBA")
    (height, width), (own_height, own_width) = image.shape[-2:], cutout.shape[-2:]
    if abs(width * own_height / (height * own_width) - 1) > SHAPES_DIFFER:
        raise UserError(
            f"{_name(product, 'the product')} is {own_width} x {own_height} pixels, its picture {width} x "
            f"{height}: give the product as it lies in the picture, on a canvas of the same shape"
        )
    return _at(image, size), _at(cutout, size)


def _at(pixels: Tensor, size: int) -> Tensor:
    """Bring pixels [C,H,W] to [C,S,S] and to floats; what is at that size already stays exact."""
    if pixels.shape[-2:] != (size, size):
        if pixels.is_floating_point():
            if not pixels.isfinite().all():
                return pixels.new_full((len(pixels), size, size), torch.nan)
            pixels = pixels.clamp(0, 1).mul(255).round().byte()
        pixels = square(pixels.permute(1, 2, 0).cpu().numpy(), size)
    return pixels.float() if pixels.is_floating_point() else pixels.float() / 255


def pixels_of(picture: Picture, mode: str) -> Tensor:
    """Return [C,H,W], bytes of a file or PIL picture, or the tensor itself."""
    if isinstance(picture, Tensor):
        if picture.ndim != 3 or len(picture) != len(mode):
            raise UserError(f"a tensor {list(picture.shape)}: {mode} is [{len(mode)},H,W]")
        return picture.detach()
    return torch.from_numpy(np.array(_array(picture, mode))).permute(2, 0, 1)


def _array(picture: str | Path | Image.Image, mode: str) -> np.ndarray:
    if isinstance(picture, (str, Path)) and mode == "RGBA":
        return load_cutout(Path(picture), None, MAX_PIXELS)
    name = _name(picture, "the picture" if mode == "RGB" else "the product")
    image = open_upright(Path(picture), MAX_PIXELS) if isinstance(picture, (str, Path)) else picture
    try:
        if mode == "RGBA":
            if not image.has_transparency_data:
                raise UserError(f"{name}: image without alpha; give the product's cutout, RGBA")
            return np.asarray(image.convert(mode))
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise UserError(f"{name}: transparent in places; give the finished picture, not the cutout")
        return np.asarray(image.convert(mode))
    except (ValueError, OSError) as error:
        raise UserError(f"{name}: {error}; save it as {mode}") from None


def _name(picture: Picture, otherwise: str) -> str:
    return str(picture) if isinstance(picture, (str, Path)) else otherwise
