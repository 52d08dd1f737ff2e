"""How far a generation has come, on disk: the same command goes on where it was killed.

manifest.jsonl      a row for each product that is done, written when it is; in the products' order at the end
generation.json     the settings, as no others may go on in this folder
.refused.jsonl      what came of the refused attempts at products that are not done; gone at the end
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from rfft.errors import UserError
from rfft.generation.generated import MANIFEST, SHEET, SHEET_COLUMNS, SHEET_ROWS, write_sheet
from rfft.generation.sample import Outcome
from rfft.utils.atomic_io import new_file, refuse_existing
from rfft.utils.lock import NAME, FolderLock
from rfft.utils.log import write_atomically

SETTINGS, REFUSED = "generation.json", ".refused.jsonl"
KINDS = ("images", "products")  # folders of pictures
Row = dict[str, Any]


class Generation:
    """The folder of a generation, in the first process; a context in which it is locked.

    Where the block ends with an error and there is not one finite picture, a folder that it made is gone.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """Raise UserError where the folder holds anything but the beginning of the same generation."""
        self.out, self.settings = out, json.loads(json.dumps(settings))
        self.began = (out / SETTINGS).is_file() and not (out / SHEET).exists()
        if not self.began:
            refuse_existing(out)
        elif other := _difference(json.loads((out / SETTINGS).read_text(encoding="utf-8")), self.settings):
            raise UserError(f"{out} was begun with {other}: name a new folder with --out")
        self.made = not out.exists()
        self.done: set[str] = set()
        self.refused: dict[str, Outcome] = {}
        self.accepted = self.attempts = 0
        self.has_finite = False  # pictures, accepted or not
        self.broken: list[str] = []  # ids of pictures that are not finite
        self._lock = FolderLock(out)
        self._files: list[IO[str]] = []

    def __enter__(self) -> Generation:
        for kind in KINDS:
            (self.out / kind).mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        write_atomically(self.out / SETTINGS, json.dumps(self.settings, indent=1) + "\n")
        for row in _rows(self.out / MANIFEST):
            self._count(row)
        for row in _rows(self.out / REFUSED):
            known = row["probabilities"]
            probabilities = torch.tensor(
                known["values"] if known["finite"] else [torch.nan] * len(known["values"])
            )
            self.refused[row["id"]] = Outcome(probabilities, row["attempt"], row["attempts"])
        self._files = [(self.out / name).open("a", encoding="utf-8") for name in (MANIFEST, REFUSED)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files:
            file.close()
        self._lock.release()
        if error is not None and not self.has_finite and not self.began:
            shutil.rmtree(self.out, ignore_errors=True)
            if not self.made:
                self.out.mkdir()

    def add(self, rows: Iterable[Row]) -> None:
        """Write rows of products that are done; their pictures lie there already."""
        for row in rows:
            self._files[0].write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self._count(row)
        self._files[0].flush()

    def refuse(self, outcomes: Mapping[str, Outcome]) -> None:
        """Remember what came of attempts at products that are not done."""
        for name, outcome in outcomes.items():
            p = outcome.probabilities
            self.has_finite |= bool(p.isfinite().all())
            probabilities = {"values": p.nan_to_num(0, 0, 0).tolist(), "finite": bool(p.isfinite().all())}
            row = {"id": name, "attempt": outcome.attempt, "attempts": outcome.attempts}
            self._files[1].write(json.dumps(row | {"probabilities": probabilities}) + "\n")
        self._files[1].flush()

    def finish(self, ids: Iterable[str]) -> None:
        """Bring the manifest into the products' order, and write the contact sheet: all is done."""
        manifest = self.out / MANIFEST
        places = {row["id"]: place for row, place in _placed(manifest)}
        with manifest.open("rb") as rows, new_file(manifest) as ordered:
            for name in ids:
                if name in places:
                    rows.seek(places[name])
                    ordered.write(rows.readline())
        (self.out / REFUSED).unlink(missing_ok=True)
        first = [row for row, _ in zip(_rows(manifest), range(SHEET_COLUMNS * SHEET_ROWS), strict=False)]
        write_sheet(self.out, first)
        (self.out / NAME).unlink(missing_ok=True)  # a finished folder is refused anyway

    def _count(self, row: Row) -> None:
        self.done.add(row["id"])
        self.accepted += row["accepted"]
        self.attempts += row["attempts"]
        if row.get("not_finite"):
            self.broken.append(row["id"])
        else:
            self.has_finite = True


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return a setting with which a folder was begun, and which is another one now."""
    for name, value in now.items():
        if before.get(name) != value:
            return f"{name}={before.get(name)}, not {value}"
    return None


def _rows(file: Path) -> Iterator[Row]:
    return (row for row, _ in _placed(file))


def _placed(file: Path) -> Iterator[tuple[Row, int]]:
    """Yield the rows of a file and where they begin; one that was not written whole is cut off."""
    if not file.exists():
        return
    place = 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                os.truncate(file, place)
                return
            yield json.loads(line), place
            place += len(line)
