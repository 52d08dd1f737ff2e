"""What is to be advertised, and how: lists of product cutouts and of prompts, read from disk and checked."""

from __future__ import annotations

import json
import random
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rfft.errors import UserError

SUFFIXES = (".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg")
NO_LETTERS = re.compile(rf"[\s\d{re.escape(string.punctuation)}]+")  # in a file's name, between its words
LONGEST_ID = 200  # bytes; file systems take 255, and something is added
COLOURS = ("cream", "beige", "ivory", "light grey", "pale pink", "pale yellow", "sky blue", "sage green")


@dataclass(frozen=True)
class Product:
    """A cutout on disk; prompts and scale are the manifest's own, where it has them."""

    id: str  # unique, fit for a file name
    image: Path
    caption: str
    prompt: str | None = None
    negative_prompt: str | None = None
    image_scale: float | None = None  # the product's longer side as a share of the canvas


@dataclass(frozen=True)
class Prompt:
    """An entry of a prompt file in the official form."""

    text: str
    negative: str = ""
    image_scale: float | None = None
    matting: bool = False  # a product cut off by its picture's border keeps the picture's framing
    has_colour: bool = False  # the official `flag`: a colour goes into {}

    def fill(self, rng: random.Random) -> str:
        """The prompt, with a colour drawn for {}."""
        return self.text.replace("{}", rng.choice(COLOURS)) if self.has_colour else self.text


def read_products(source: str | Path) -> list[Product]:
    """Products of a folder of pictures or of a JSON-lines manifest, in a fixed order."""
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
    """Captions stand in NAME.txt beside the picture; without one, the words of its name have to do."""
    for image in sorted(folder.iterdir()):
        if image.suffix.lower() not in SUFFIXES or image.name.startswith("."):
            continue
        note = image.with_suffix(".txt")
        caption = _read_text(note).strip() if note.is_file() else NO_LETTERS.sub(" ", image.stem).strip()
        yield Product(image.stem, image, caption or "product")


def _from_manifest(manifest: Path) -> Iterator[Product]:
    for number, line in enumerate(_read_text(manifest).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{manifest}:{number}"
        row = _parse_json(line, manifest, number)
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object with id, image and caption")
        name = _text(row, "id", where)
        if not re.fullmatch(r"\w[\w. -]*", name) or len(name.encode()) > LONGEST_ID:
            raise UserError(
                f"{where}: id {name!r} must be fit for a file name: letters, digits, '-', '_', '.'; "
                f"{LONGEST_ID} bytes at most"
            )
        yield Product(
            id=name,
            image=inside(manifest.parent, _text(row, "image", where), where),
            caption=_text(row, "caption", where),
            prompt=_optional_text(row, "prompt", where),
            negative_prompt=_optional_text(row, "negative_prompt", where),
            image_scale=_scale(row, where),
        )


def inside(folder: Path, name: str, where: str) -> Path:
    """A picture below the manifest's folder; neither `..` nor a link may lead out of it."""
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


def read_prompts(path: str | Path) -> list[Prompt]:
    """Read a JSON list of objects prompt, negative_prompt, image_scale, matting, flag (the official form)."""
    path = Path(path)
    rows = _parse_json(_read_text(path), path)
    if not isinstance(rows, list) or not rows:
        raise UserError(f"{path}: expected a JSON list of objects with prompt and negative_prompt")
    return [_prompt(row, f"{path}: entry {number}") for number, row in enumerate(rows, start=1)]


def _prompt(row: Any, where: str) -> Prompt:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with prompt and negative_prompt")
    for key in ("matting", "flag"):
        if row.get(key, 0) not in (0, 1):  # True and False are 1 and 0
            raise UserError(f"{where}: {key} is {row[key]!r}; it must be 0 or 1")
    return Prompt(
        text=_text(row, "prompt", where),
        negative=_optional_text(row, "negative_prompt", where) or "",
        image_scale=_scale(row, where),
        matting=bool(row.get("matting", False)),
        has_colour=bool(row.get("flag", 0)),
    )


def _text(row: dict[str, Any], key: str, where: str) -> str:
    text = _optional_text(row, key, where)
    if text is None or not text.strip():
        raise UserError(f"{where}: {key} is missing")
    return text


def _optional_text(row: dict[str, Any], key: str, where: str) -> str | None:
    text = row.get(key)
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: {key} is {text!r}; it must be a text")
    if text is not None and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{where}: {key} is no text: half of a pair of UTF-16 escapes in it")
    return text


def _scale(row: dict[str, Any], where: str) -> float | None:
    scale = row.get("image_scale")
    if scale is None:
        return None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= 1:
        raise UserError(f"{where}: image_scale is {scale!r}; it must be above 0 and at most 1")
    return float(scale)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _parse_json(text: str, file: Path, line: int = 1) -> Any:
    """`line`: where in the file the text begins."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{file}:{line + error.lineno - 1}"
        raise UserError(f"{where}: broken JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{file}:{line}: broken JSON: nested too deeply") from None
    except ValueError:  # Python's own limit
        raise UserError(f"{file}:{line}: broken JSON: a number of too many digits") from None
