"""Lists of product cutouts: a folder of pictures or shards, a JSON-lines manifest, or a table."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.markup import escape

from rfft.data.checked import LONGEST_ID
from rfft.data.json_text import (
    canvas_size,
    image_scale,
    optional_text,
    parse_json,
    read_lines,
    read_text,
    refuse_unknown,
    refuse_unreadable,
    required_text,
)
from rfft.data.members import Source
from rfft.data.paths import inside
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
    refuse_twins,
    stem_of,
    words,
)
from rfft.data.product_shards import Shards
from rfft.data.product_tables import Table, open_table
from rfft.errors import UserError, require
from rfft.utils.log import messages
from rfft.utils.processes import rank

KEYS = ("id", "image", "caption", "prompt", "negative_prompt", "image_scale", "size")


class Folder(ProductList):
    """A folder of pictures; a caption is that in NAME.txt, or else the words of the picture's name."""

    def __init__(self, source: Path, wanted: Wanted, check: Check) -> None:
        """List the folder, and check its first product, as all are alike.

        Captions are not read, but their size is looked at.
        """
        self.source = source
        names, notes = [], {}
        with os.scandir(source) as there:
            for file in there:
                stem, suffix = os.path.splitext(file.name)
                if suffix.lower() in SUFFIXES and not file.name.startswith("."):
                    names.append(file.name)
                elif suffix == NOTE:
                    notes[stem] = file
        self.names = sorted(names)
        self.notes = {stem for stem in map(stem_of, self.names) if stem in notes}
        self.total = len(self.names)
        for stem in sorted(self.notes):
            refuse_unreadable(source / (stem + NOTE), notes[stem].stat(), LONGEST_CAPTION)
        refuse_twins(source, map(stem_of, self.names))
        chosen = [i for i, name in enumerate(self.names) if wanted(stem_of(name))]
        self.digest = hashlib.sha256("\n".join(self.names[i] for i in chosen).encode()).hexdigest()
        self.chosen = np.array(chosen, np.int64)
        if chosen:
            check(self.read(chosen[0]))

    def images(self) -> Iterator[Source]:
        return (self.source / self.names[i] for i in self.chosen)

    def read(self, number: int) -> Product:
        image = self.source / self.names[number]
        known = image.stem in self.notes
        caption = read_text(image.with_suffix(NOTE), LONGEST_CAPTION) if known else words(image.stem)
        return Product(image.stem, image, caption.strip() or "product")


class Manifest(ProductList):
    """A JSON-lines manifest: of each line its place in the file is kept."""

    def __init__(self, source: Path, wanted: Wanted, check: Check) -> None:
        """Read the manifest once, line by line, and check every one that is wanted."""
        self.source = source
        self.places, self.lines, listing = array("q"), array("q"), Listing(wanted, check)
        for number, place, line in manifest_lines(source):
            listing.add(_row(line, source, number), line)
            self.places.append(place)
            self.lines.append(number)
        listing.give(self)

    def images(self) -> Iterator[Source]:
        """Yield where each product's picture lies, by one more walk through the file."""
        following = iter(self.chosen)
        wanted = next(following, None)
        for number, (_, _, line) in enumerate(manifest_lines(self.source)):
            if number == wanted:
                yield self.source.parent / json.loads(line)["image"]
                wanted = next(following, None)

    def read(self, number: int) -> Product:
        with self.source.open("rb") as file:
            file.seek(self.places[number])
            line = file.readline(LONGEST_LINE)
        return _row(line, self.source, self.lines[number])


def read_products(
    source: str | Path, wanted: Wanted = lambda _: True, check: Check = lambda _: None
) -> ProductList:
    """List the products of a folder of pictures or shards, of a JSON-lines manifest or of a table, in order.

    wanted: says by its id whether a product is; check: is given the wanted ones, of a folder of pictures the
    first one, to refuse it with a UserError. Raises UserError for what is no such source, and where it has no
    product at all.
    """
    with messages(quiet=rank() > 0).status(f"listing {escape(str(source))}"):
        if (table := open_table(source)) is not None:
            products = Table(*table, wanted, check)
            require(products.total, f"{source}: a table without rows")
            return products
        return _listed(Path(source), wanted, check)


def _listed(source: Path, wanted: Wanted, check: Check) -> ProductList:
    if source.is_dir():
        folder: ProductList = Folder(source, wanted, check)
        if not folder.total and any(source.glob("*.tar")):
            folder = Shards(source, wanted, check)
        if not folder.total:
            raise UserError(
                f"{source}: no products here; expected pictures ({', '.join(SUFFIXES)}) or shards (.tar)"
            )
        return folder
    if not source.exists():
        raise UserError(f"{source}: no such folder or manifest of products")
    manifest = Manifest(source, wanted, check)
    if not manifest.total:
        raise UserError(
            f"{source}: the manifest is empty; each line is a JSON object with id, image, caption"
        )
    return manifest


def manifest_lines(manifest: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, place and bytes of each line that is not blank."""
    place = 0
    for number, line in enumerate(read_lines(manifest, LONGEST_LINE), start=1):
        if line.strip():
            yield number, place, line
        place += len(line)


def _row(line: bytes, manifest: Path, number: int) -> Product:
    where = f"{manifest}:{number}"
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\n")
    except UnicodeDecodeError:
        raise UserError(f"{where}: not a UTF-8 text file") from None
    row = parse_json(text, manifest, number)
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object with id, image and caption")
    refuse_unknown(row, KEYS, where)
    name = required_text(row, "id", where)
    if not FIT.fullmatch(name) or len(name.encode()) > LONGEST_ID:
        raise UserError(
            f"{where}: id {name!r} must be fit for a file name: letters, digits, '-', '_', '.'; "
            f"{LONGEST_ID} bytes at most"
        )
    return Product(
        id=name,
        image=inside(manifest.parent, required_text(row, "image", where), where),
        caption=required_text(row, "caption", where),
        prompt=optional_text(row, "prompt", where),
        negative_prompt=optional_text(row, "negative_prompt", where),
        image_scale=image_scale(row, where),
        size=canvas_size(row, where),
    )
