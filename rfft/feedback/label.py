"""`rfft data label`: what `rfft generate` painted, and labels for it, become feedback in RF1M's form."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rfft.data.paths import inside
from rfft.errors import UserError
from rfft.feedback.folder import (
    CODE_OF_CLASS,
    UNSUITABLE,
    LabelledFile,
    class_of,
    code_of,
    write_feedback,
)
from rfft.feedback.rf1m_index import split_label
from rfft.types import LABELS
from rfft.utils.atomic_io import new_folder, refuse_existing

GENERATED = "manifest.jsonl"


def label_generated(generated: Path, labels: Path, out: Path) -> Counter[str]:
    """Write labelled pictures of `rfft generate` into the new folder `out`, in RF1M's form.

    `labels` is a CSV file with the columns name and label, or has lines of name and label. A name is the
    picture's id or file name; a label is its code in RF1M, or a class by name. Pictures without a label are
    left out. Returns how many pictures have each label. Raises UserError, and writes nothing, for a mistake
    in either.
    """
    refuse_existing(out, "name a new folder")
    rows = _rows(generated)
    codes = _codes(labels, rows)
    with new_folder(out) as draft:
        write_feedback(draft, _files(generated, codes, rows))
    return Counter(_name_of(code) for code in codes.values()) + Counter(unlabelled=len(rows) - len(codes))


def _files(generated: Path, codes: dict[str, int], rows: dict[str, dict[str, Any]]) -> Iterator[LabelledFile]:
    for name, code in codes.items():
        row, where = rows[name], f"{generated / GENERATED}: {name}"
        image, product = (inside(generated, row[kind], where) for kind in ("image", "product"))
        yield LabelledFile(image.name, code, row["caption"], row["prompt"], image, product)


def _rows(generated: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's rows by id."""
    file = generated / GENERATED
    try:
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
        for row in rows:
            texts = [row[key] for key in ("id", "image", "caption", "prompt")]
            "".join([*texts, row.get("product", "")]).encode()  # an error unless all are texts
    except FileNotFoundError:
        raise UserError(f"{generated}: no {GENERATED}; give a folder that `rfft generate` wrote") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{file}: damaged; give a folder that `rfft generate` wrote") from None
    if any("product" not in row for row in rows):
        raise UserError(f"{file}: written before products were kept beside the pictures; generate again")
    return {row["id"]: row for row in rows}


def _codes(labels: Path, rows: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Return RF1M's code by id, in the order of the label file."""
    ids = {Path(row["image"]).name: name for name, row in rows.items()} | {name: name for name in rows}
    codes: dict[str, int] = {}
    for place, name, label in _read_labels(labels):
        if name not in ids:
            raise UserError(f"{place}: {name!r} is none of the pictures in {GENERATED}")
        if ids[name] in codes:
            raise UserError(f"{place}: {name} occurs twice")
        codes[ids[name]] = _code(label, place)
    if not codes:
        raise UserError(f"{labels}: no label in it")
    return codes


def _read_labels(file: Path) -> list[tuple[str, str, str]]:
    """Return place, name and label of every line."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if file.suffix.lower() == ".csv":
                reader = csv.DictReader(stream)
                if not {"name", "label"} <= set(reader.fieldnames or ()):
                    raise UserError(f"{file}: a CSV file needs the columns name and label in its first line")
                return [
                    (f"{file}:{reader.line_num}", (row["name"] or "").strip(), (row["label"] or "").strip())
                    for row in reader
                ]
            return [
                (f"{file}:{number}", *split_label(line, f"{file}:{number}")[:2])
                for number, line in enumerate(stream, start=1)
                if line.strip()
            ]
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a UTF-8 text file") from None
    except csv.Error as error:
        raise UserError(f"{file}: no CSV file: {error}") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def _code(label: str, place: str) -> int:
    """Return RF1M's code of a label that is given as code or by name."""
    if label in (*LABELS, "unsuitable"):
        return code_of(label)
    class_of(label, place)
    return int(label)


def _name_of(code: int) -> str:
    return "unsuitable" if code == UNSUITABLE else LABELS[CODE_OF_CLASS.index(code)]
