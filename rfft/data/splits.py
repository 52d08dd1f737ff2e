"""Which products train and which are held out, for choosing (val) and for reporting (test)."""

from __future__ import annotations

import hashlib
import unicodedata
from dataclasses import dataclass

from rfft.errors import UserError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """One of SPLITS, where `share` of all products is held out: half of that is val, half is test."""

    name: str
    share: float

    def has(self, product: str) -> bool:
        """Say whether the product of this id belongs to the split.

        It follows from a hash of the id: products that are added later move none of the others.
        """
        text = unicodedata.normalize("NFC", product)  # macOS writes the other form
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        if number >= self.share:
            return self.name == "train"
        return self.name == ("test" if number < self.share / 2 else "val")


def parse_source(source: str) -> tuple[str, str | None]:
    """Take "photos:val" apart into "photos" and "val"; the second is None where no split is named."""
    name, _, split = source.rpartition(":")
    return (name, split) if name and split in SPLITS else (source, None)


def held_out(source: str, holdout: float | str | None) -> tuple[str, Split | None]:
    """Return the products that a source means, and which split of them; None: all.

    holdout: the share of the source's products that are held out; or the folder or manifest of those that
    are, of which one half is val and the other one test. Raises UserError if it is None and a split is named.
    """
    name, split = parse_source(source)
    if split is None:
        return name, None
    if holdout is None:
        raise UserError(f"{source}: no products are held out; set data.holdout, for example data.holdout=0.2")
    if isinstance(holdout, str):
        return (name, None) if split == "train" else (holdout, Split(split, 1.0))
    return name, Split(split, holdout)


def none_in_split(source: str, split: Split, count: int) -> UserError:
    """Return what to raise if none of a source's `count` products belongs to a split."""
    return UserError(
        f"{source}:{split.name}: none of the {count} products falls into this split; raise data.holdout, or "
        "name products to evaluate on with evaluate.products"
    )
