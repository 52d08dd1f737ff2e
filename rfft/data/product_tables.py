"""Products in tables: parquet files, and data sets of the Hugging Face hub or in its form.

Columns are image (the picture's bytes, or its path below the table's folder), id or name, caption or text,
and those of a manifest: prompt, negative_prompt, image_scale, size. All but image may be missing; others
are not looked at. The library `datasets` turns a table into its Arrow cache once; rows come from there by
memory map.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rfft.data.checked import LONGEST_ID
from rfft.data.json_text import canvas_size, image_scale, optional_text
from rfft.data.paths import inside
from rfft.data.product_list import (
    FIT,
    LONGEST_CAPTION,
    Check,
    Listing,
    Product,
    ProductList,
    Wanted,
    words,
)
from rfft.errors import UserError, require

HUB = "hub:"  # before the name of a data set of the hub, or a folder in its form
SUFFIX = ".parquet"
IMAGE, NAMES, CAPTIONS = "image", ("id", "name"), ("caption", "text")
WORDS = (*NAMES, *CAPTIONS, "prompt", "negative_prompt", "image_scale", "size")
AT_ONCE = 1000  # rows whose words are in memory while a table is listed


@dataclass(frozen=True)
class Cell:
    """A picture in a table, read when its bytes are asked for."""

    table: Any = field(repr=False, compare=False)  # datasets.Dataset
    row: int
    folder: Path  # below which pictures lie that are given by their paths
    name: str

    def read_bytes(self) -> bytes:
        """Return the picture's file; raises UserError where there is none."""
        found = self.table[self.row][IMAGE]
        if isinstance(found, Mapping):  # the form of datasets.Image
            found = found["path"] if found["bytes"] is None else found["bytes"]
        if isinstance(found, str):
            found = inside(self.folder, _below(self.folder, found), str(self)).read_bytes()
        require(isinstance(found, bytes), f"{self}: no picture in the column {IMAGE}")
        return bytes(found)

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return len(self.read_bytes())

    def __str__(self) -> str:
        return f"{self.folder}: row {self.row} ({self.name})"


class Table(ProductList):
    """The rows of a table; of each a few bits are kept."""

    def __init__(self, source: Path, table: Any, wanted: Wanted, check: Check) -> None:
        """Read all words, AT_ONCE rows at a time, but no picture; `source`: the folder of paths."""
        self.source = source
        require(
            IMAGE in table.column_names,
            f"{source}: the table has no column {IMAGE}; it has {', '.join(table.column_names)}",
        )
        self.table = _undecoded(table)
        self.words = self.table.select_columns([name for name in WORDS if name in table.column_names])
        listing = Listing(wanted, check)
        for number, row in enumerate(self._rows()):
            listing.add(self._product(number, row), repr(row).encode())
        listing.give(self)

    def read(self, number: int) -> Product:
        return self._product(number, self.words[number] if self.words.column_names else {})

    def _rows(self) -> Iterator[dict[str, Any]]:
        if not self.words.column_names:
            yield from ({} for _ in range(len(self.table)))
            return
        for batch in self.words.iter(batch_size=AT_ONCE):
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))

    def _product(self, number: int, row: dict[str, Any]) -> Product:
        where = f"{self.source}: row {number}"
        name = next((str(row[key]) for key in NAMES if row.get(key) is not None), f"{number:08}")
        require(
            FIT.fullmatch(name) and len(name.encode()) <= LONGEST_ID,
            f"{where}: {name[:80]!r} must be fit for a file name: letters, digits, '-', '_', '.'",
        )
        caption = next((row[key] for key in CAPTIONS if row.get(key) is not None), words(name))
        require(
            isinstance(caption, str) and len(caption.encode()) <= LONGEST_CAPTION,
            f"{where}: its caption must be a text of at most {LONGEST_CAPTION:,} bytes",
        )
        return Product(
            id=name,
            image=Cell(self.table, number, self.source, name),
            caption=caption.strip() or "product",
            prompt=optional_text(row, "prompt", where),
            negative_prompt=optional_text(row, "negative_prompt", where),
            image_scale=image_scale(row, where),
            size=canvas_size(row, where),
        )


def open_table(source: str | Path) -> tuple[Path, Any] | None:
    """Return the table that a source names and the folder of its paths; None where it names none.

    It is a parquet file, a folder of them, or hub:NAME. Raises UserError for one that cannot be read.
    """
    name = str(source)
    if name.startswith(HUB):
        return Path(name.removeprefix(HUB)), _loaded(name, name.removeprefix(HUB))
    path = Path(source)
    files = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not files or any(not file.is_file() or file.suffix != SUFFIX for file in files):
        return None
    folder = path if path.is_dir() else path.parent
    return folder, _loaded(name, "parquet", data_files=[str(file) for file in files])


def _loaded(source: str, name: str, **options: Sequence[str]) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError(f"{source}: tables of products need: pip install 'rfft[data]'") from None
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, split="train", **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise UserError(f"{source}: cannot be read as a table ({reason})") from None


def _undecoded(table: Any) -> Any:
    """Return the table with its pictures as files, which our own reader decodes with its limits."""
    import datasets

    if isinstance(table.features[IMAGE], datasets.Image):
        return table.cast_column(IMAGE, datasets.Image(decode=False))
    return table


def _below(folder: Path, name: str) -> str:
    """Return a path relative to the folder; datasets gives whole paths of the pictures of a folder."""
    return os.path.relpath(name, folder.resolve()) if os.path.isabs(name) else name
