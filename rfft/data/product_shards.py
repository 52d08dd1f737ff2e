"""Products in WebDataset shards: tar archives in which a sample's files have one name and follow each other.

NAME.png (or .webp, .tif, .jpg) is the product; NAME.txt its caption; NAME.json an object with caption,
prompt, negative_prompt, image_scale, size, all optional. The last part of NAME is the product's id.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from rfft.data.checked import LONGEST_ID
from rfft.data.json_text import canvas_size, image_scale, optional_text, parse_json, refuse_unknown
from rfft.data.members import Member, members
from rfft.data.product_list import (
    FIT,
    LONGEST_CAPTION,
    LONGEST_LINE,
    NOTE,
    SUFFIXES,
    Check,
    Listing,
    Product,
    ProductList,
    Wanted,
    words,
)
from rfft.errors import UserError, require

KEYS = ("caption", "prompt", "negative_prompt", "image_scale", "size")
PICTURE, ROW = "picture", ".json"
PARTS = (PICTURE, NOTE, ROW)  # of a sample: one of SUFFIXES, and two that need not be there
Parts = Mapping[str, Member]


class Shards(ProductList):
    """The *.tar of a folder, in the order of their names: of each product its name and places are kept."""

    def __init__(self, source: Path, wanted: Wanted, check: Check) -> None:
        """Read all headers, captions and rows, but no picture."""
        self.source, self.archives = source, sorted(source.glob("*.tar"))
        self.names: list[str] = []  # of the pictures
        self.places = array("q")  # of a sample's parts: archive, place and size of each
        listing = Listing(wanted, check)
        for number, archive in enumerate(self.archives):
            for parts in _samples(archive):
                product = _product(parts)
                listing.add(product, repr(product).encode())
                self.names.append(parts[PICTURE].name)
                for part in PARTS:
                    found = parts.get(part)
                    self.places.extend((number, found.place, found.size) if found else (number, 0, 0))
        listing.give(self)

    def read(self, number: int) -> Product:
        rows = np.array(self.places[9 * number : 9 * number + 9]).reshape(3, 3).tolist()
        archive, name = self.archives[rows[0][0]], self.names[number]
        places = {part: (place, size) for part, (_, place, size) in zip(PARTS, rows, strict=True) if place}
        return _product({part: Member(archive, name, *found) for part, found in places.items()})


def _samples(archive: Path) -> Iterator[Parts]:
    """Yield the parts of each sample that has a picture."""
    for _, found in groupby(members(archive), lambda member: _split(member.name)[0]):
        parts = {_split(member.name)[1]: member for member in found}
        pictures = [part for part in parts if part in SUFFIXES]
        if pictures:
            picture = parts[pictures[0]]
            require(len(pictures) == 1, f"{picture}: a sample with {len(pictures)} pictures; expected one")
            yield {PICTURE: picture} | {part: parts[part] for part in PARTS[1:] if part in parts}


def _split(name: str) -> tuple[str, str]:
    """Return what a sample's files have in common, and their endings; both are WebDataset's."""
    folder, slash, file = name.rpartition("/")
    key, dot, ending = file.partition(".")
    return folder + slash + key, (dot + ending).lower()


def _product(parts: Parts) -> Product:
    picture = parts[PICTURE]
    name = _split(picture.name)[0].rpartition("/")[2]
    if not FIT.fullmatch(name) or len(name.encode()) > LONGEST_ID:
        raise UserError(f"{picture}: its name must be fit for a file name: letters, digits, '-', '_'")
    row = _row(parts, f"{picture}")
    caption = optional_text(row, "caption", f"{picture}")
    if caption is None:
        caption = _text(parts[NOTE], LONGEST_CAPTION) if NOTE in parts else words(name)
    return Product(
        id=name,
        image=picture,
        caption=caption.strip() or "product",
        prompt=optional_text(row, "prompt", f"{picture}"),
        negative_prompt=optional_text(row, "negative_prompt", f"{picture}"),
        image_scale=image_scale(row, f"{picture}"),
        size=canvas_size(row, f"{picture}"),
    )


def _row(parts: Parts, where: str) -> dict[str, Any]:
    if ROW not in parts:
        return {}
    row = parse_json(_text(parts[ROW], LONGEST_LINE), parts[ROW].archive)
    require(isinstance(row, dict), f"{where}: its .json must be an object with caption or prompt")
    refuse_unknown(row, KEYS, where)
    return dict(row)


def _text(member: Member, most: int) -> str:
    require(member.size <= most, f"{member}: a text of more than {most:,} bytes beside it")
    try:
        return member.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{member}: the text beside it is not UTF-8") from None
