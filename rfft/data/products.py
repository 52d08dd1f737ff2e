"""Lists of product cutouts on disk: a folder of pictures, or a JSON-lines manifest."""

from __future__ import annotations

import hashlib
import os
import re
import string
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from rfft.data.checked import LONGEST_ID
from rfft.data.json_text import (
    image_scale,
    optional_text,
    parse_json,
    read_lines,
    read_text,
    refuse_unknown,
    refuse_unreadable,
    required_text,
)
from rfft.data.paths import inside
from rfft.errors import UserError

SUFFIXES = (".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg")
NO_LETTERS = re.compile(rf"[\s\d{re.escape(string.punctuation)}]+")  # in a file's name, between its words
NOTE = ".txt"  # NAME.txt is the caption of NAME.png
LONGEST_CAPTION, LONGEST_LINE = 10_000, 2**20  # bytes of NAME.txt, and of a line of a manifest
FIT = re.compile(r"\w[\w. -]*")  # for the name of a file
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


Wanted: TypeAlias = Callable[[str], bool]
Check: TypeAlias = Callable[[Product], object]


class ProductList(Sequence[Product], ABC):
    """The products of a source in a fixed order; a few bytes of each are kept, the rest is read again."""

    source: Path
    total: int  # products of the whole source
    digest: str  # of the ids of those that are wanted
    chosen: NDArray[np.int64]  # numbers of those that are wanted, within the source

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> Product: ...

    @overload
    def __getitem__(self, index: slice) -> ProductList: ...

    def __getitem__(self, index: int | slice) -> Product | ProductList:
        if isinstance(index, slice):
            part = copy(self)
            part.chosen = self.chosen[index]
            return part
        return self.read(int(self.chosen[index]))

    @abstractmethod
    def read(self, number: int) -> Product:
        """Return product number `number` of the whole source."""

    def images(self) -> Iterator[Path]:
        """Yield where each product's picture lies."""
        return (product.image for product in self)


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
        self.notes = {stem for stem in map(_stem, self.names) if stem in notes}
        self.total = len(self.names)
        for stem in sorted(self.notes):
            refuse_unreadable(source / (stem + NOTE), notes[stem].stat(), LONGEST_CAPTION)
        _refuse_twins(source, map(_stem, self.names))
        chosen = [i for i, name in enumerate(self.names) if wanted(_stem(name))]
        self.digest = hashlib.sha256("\n".join(self.names[i] for i in chosen).encode()).hexdigest()
        self.chosen = np.array(chosen, np.int64)
        if chosen:
            check(self.read(chosen[0]))

    def images(self) -> Iterator[Path]:
        return (self.source / self.names[i] for i in self.chosen)

    def read(self, number: int) -> Product:
        image = self.source / self.names[number]
        known = image.stem in self.notes
        caption = read_text(image.with_suffix(NOTE), LONGEST_CAPTION) if known else _words(image.stem)
        return Product(image.stem, image, caption.strip() or "product")


class Manifest(ProductList):
    """A JSON-lines manifest: of each line its place in the file is kept."""

    def __init__(self, source: Path, wanted: Wanted, check: Check) -> None:
        """Read the manifest once, line by line, and check every one that is wanted."""
        self.source = source
        places, lines, ids, chosen = array("q"), array("q"), array("q"), array("q")
        digest = hashlib.sha256()
        for number, place, line in manifest_lines(source):
            row = _row(line, source, number)
            ids.append(_short_hash(row.id))
            if wanted(row.id):
                check(row)
                chosen.append(len(places))
                digest.update(line)
            places.append(place)
            lines.append(number)
        self.places, self.lines, self.chosen = places, lines, np.array(chosen, np.int64)
        self.total, self.digest = len(places), digest.hexdigest()
        _refuse_equal_hashes(self, np.array(ids, np.int64))

    def read(self, number: int) -> Product:
        with self.source.open("rb") as file:
            file.seek(self.places[number])
            line = file.readline(LONGEST_LINE)
        return _row(line, self.source, self.lines[number])


def read_products(
    source: str | Path, wanted: Wanted = lambda _: True, check: Check = lambda _: None
) -> ProductList:
    """List the products of a folder of pictures or of a JSON-lines manifest, in a fixed order.

    wanted: says by its id whether a product is; check: is given the wanted ones of a manifest, or the first
    one of a folder, to refuse it with a UserError. Raises UserError for what is no such source, and where it
    has no product at all.
    """
    source = Path(source)
    if source.is_dir():
        folder = Folder(source, wanted, check)
        if not folder.total:
            raise UserError(f"{source}: no products here; expected pictures ({', '.join(SUFFIXES)})")
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
    )


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]


def _words(stem: str) -> str:
    return NO_LETTERS.sub(" ", stem)


def _short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def _refuse_equal_hashes(products: Manifest, hashes: NDArray[np.int64]) -> None:
    """Look for twins among the few products whose ids have a hash in common."""
    order = hashes.argsort(kind="stable")
    equal = np.flatnonzero(np.diff(hashes[order]) == 0)
    suspects = sorted({int(i) for pair in (order[equal], order[equal + 1]) for i in pair})
    _refuse_twins(products.source, (products.read(i).id for i in suspects))


def _refuse_twins(source: Path, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{source}: two products are called {name!r}; every id must be unique")
        seen.add(name)
