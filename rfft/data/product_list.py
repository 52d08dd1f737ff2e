"""What a list of products is, whatever it is read from."""

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

from rfft.data.members import Source
from rfft.errors import UserError

SUFFIXES = (".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg")
NO_LETTERS = re.compile(rf"[\s\d{re.escape(string.punctuation)}]+")  # in a file's name, between its words
NOTE = ".txt"  # NAME.txt is the caption of NAME.png
LONGEST_CAPTION, LONGEST_LINE = 10_000, 2**20  # bytes of NAME.txt, and of a line of a manifest
FIT = re.compile(r"\w[\w. -]*")  # for the name of a file


@dataclass(frozen=True)
class Product:
    """A cutout on disk; prompts and scale are None unless its manifest has them."""

    id: str  # unique, fit for a file name
    image: Source
    caption: str
    prompt: str | None = None
    negative_prompt: str | None = None
    image_scale: float | None = None  # the product's longer side as a share of the canvas
    size: tuple[int, int] | None = None  # height and width wanted, of which the proportions count


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

    def images(self) -> Iterator[Source]:
        """Yield where each product's picture lies."""
        return (product.image for product in self)


class Listing:
    """Collects what is kept of every product while a source is read for the first time."""

    def __init__(self, wanted: Wanted, check: Check) -> None:
        """Take what is wanted by id, and what is asked of each that is."""
        self.wanted, self.check = wanted, check
        self.hashes, self.chosen, self.digest = array("q"), array("q"), hashlib.sha256()

    def add(self, product: Product, line: bytes) -> None:
        """Take note of the next product; `line` is all that the source says of it."""
        number = len(self.hashes)
        self.hashes.append(short_hash(product.id))
        if self.wanted(product.id):
            self.check(product)
            self.chosen.append(number)
            self.digest.update(line)

    def give(self, products: ProductList) -> None:
        """Set what a list of products has to know; raises UserError where two have one id."""
        products.total, products.digest = len(self.hashes), self.digest.hexdigest()
        products.chosen = np.array(self.chosen, np.int64)
        refuse_equal_hashes(products, np.array(self.hashes, np.int64))


def stem_of(name: str) -> str:
    return os.path.splitext(name)[0]


def words(stem: str) -> str:
    return NO_LETTERS.sub(" ", stem)


def short_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def refuse_equal_hashes(products: ProductList, hashes: NDArray[np.int64]) -> None:
    """Look for twins among the few products whose ids have a hash in common."""
    order = hashes.argsort(kind="stable")
    equal = np.flatnonzero(np.diff(hashes[order]) == 0)
    suspects = sorted({int(i) for pair in (order[equal], order[equal + 1]) for i in pair})
    refuse_twins(products.source, (products.read(i).id for i in suspects))


def refuse_twins(source: Path, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in ids:
        if name in seen:
            raise UserError(f"{source}: two products are called {name!r}; every id must be unique")
        seen.add(name)
