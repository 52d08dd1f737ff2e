"""Lists of product cutouts on disk: a folder of pictures, or a JSON-lines manifest."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rfft.data.checked import LONGEST_ID
from rfft.data.json_text import (
    image_scale,
    optional_text,
    parse_json,
    read_text,
    refuse_unknown,
    required_text,
)
from rfft.errors import UserError

SUFFIXES = (".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg")
NO_LETTERS = re.compile(rf"[\s\d{re.escape(string.punctuation)}]+")  # in a file's name, between its words
LONGEST_CAPTION = 10_000  # bytes of NAME.txt
KEYS = ("id", "image", "caption", "prompt", "negative_prompt", "image_scale")


@dataclass(frozen=True)
class Product:
    """A cutout on disk; prompts and scale are None unless its manifest has them."""

    id: str  # unique, fit for a file name
    image: Path
    caption: str
    prompt: str | None = None
    negative_prompt: str | None = None
    image_scale: float | None = None  # the product's longer side as a share of the canvas


def read_products(source: str | Path) -> list[Product]:
    """Read the products of a folder of pictures or of a JSON-lines manifest, in a fixed order."""
    source = Path(source)
    if source.is_dir():
        products = list(_from_folder(source))
        if not products:
            raise UserError(f"{source}: no products here; expected pictures ({', '.join(SUFFIXES)})")
    elif source.is_file():
        products = list(_from_manifest(source))
        if not products:
            raise UserError(
                f"{source}: the manifest is empty; each line is a JSON object with id, image, caption"
            )
    else:
        raise UserError(f"{source}: no such folder or manifest of products")
    _refuse_twins(source, products)
    return products


def _from_folder(folder: Path) -> Iterator[Product]:
    """Yield the folder's pictures; a caption is that in NAME.txt, or else the words of the picture's name."""
    for image in sorted(folder.iterdir()):
        if image.suffix.lower() not in SUFFIXES or image.name.startswith("."):
            continue
        note = image.with_suffix(".txt")
        caption = read_text(note, LONGEST_CAPTION) if note.exists() else NO_LETTERS.sub(" ", image.stem)
        yield Product(image.stem, image, caption.strip() or "product")


def _from_manifest(manifest: Path) -> Iterator[Product]:
    for number, line in enumerate(read_text(manifest).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{manifest}:{number}"
        row = parse_json(line, manifest, number)
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object with id, image and caption")
        refuse_unknown(row, KEYS, where)
        name = required_text(row, "id", where)
        if not re.fullmatch(r"\w[\w. -]*", name) or len(name.encode()) > LONGEST_ID:
            raise UserError(
                f"{where}: id {name!r} must be fit for a file name: letters, digits, '-', '_', '.'; "
                f"{LONGEST_ID} bytes at most"
            )
        yield Product(
            id=name,
            image=inside(manifest.parent, required_text(row, "image", where), where),
            caption=required_text(row, "caption", where),
            prompt=optional_text(row, "prompt", where),
            negative_prompt=optional_text(row, "negative_prompt", where),
            image_scale=image_scale(row, where),
        )


def inside(folder: Path, name: str, where: str) -> Path:
    """Return the path of a picture below a folder; raises UserError if `..` or a link leads out of it."""
    path = folder / name
    try:
        within = not Path(name).is_absolute() and path.resolve().is_relative_to(folder.resolve())
        exists = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, links in a circle
        within, exists = True, False
    if not within:
        raise UserError(
            f"{where}: image {name!r} leads out of the manifest's folder; put the picture inside it"
        )
    if not exists:
        raise UserError(f"{where}: image {name!r} does not exist below {folder}")
    return path


def _refuse_twins(source: Path, products: Iterable[Product]) -> None:
    seen: set[str] = set()
    for product in products:
        if product.id in seen:
            raise UserError(f"{source}: two products are called {product.id!r}; every id must be unique")
        seen.add(product.id)
