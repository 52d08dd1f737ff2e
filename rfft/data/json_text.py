"""Text and JSON that people write: read within limits, checked field by field, every mistake named."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rfft.errors import UserError

MOST_BYTES = 2**28  # of a manifest or prompt file


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """Return the text of a regular UTF-8 file of `most` bytes at most; raises UserError for anything else."""
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may never end
            raise UserError(f"{path}: not a regular file")
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise UserError(f"{path}: more than {most:,} bytes")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def read_lines(path: Path, longest: int) -> Iterator[bytes]:
    """Yield the lines of a regular file, of `longest` bytes at most each; raises UserError for others."""
    try:
        refuse_unreadable(path, path.stat())
        with path.open("rb") as file:
            while line := file.readline(longest + 1):
                if len(line) > longest:
                    raise UserError(f"{path}: a line of more than {longest:,} bytes")
                yield line
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def refuse_unreadable(path: Path, found: os.stat_result, most: int | None = None) -> None:
    """Raise UserError for what is no regular file, as a device or a pipe may never end, or is too large."""
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{path}: not a regular file")
    if most is not None and found.st_size > most:
        raise UserError(f"{path}: more than {most:,} bytes")


def parse_json(text: str, file: Path, line: int = 1) -> Any:
    """Return what a JSON text stands for; `line` is where in the file it begins, for the UserError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{file}:{line + error.lineno - 1}"
        raise UserError(f"{where}: broken JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{file}:{line}: broken JSON: nested too deeply") from None
    except ValueError:  # Python's own limit
        raise UserError(f"{file}:{line}: broken JSON: a number of too many digits") from None


def refuse_unknown(row: dict[str, Any], known: Iterable[str], where: str) -> None:
    """Raise UserError if a row has a key that is not among the known ones."""
    for key in row:
        if key not in known:
            raise UserError(f"{where}: unknown key {key[:40]!r}; known are {', '.join(known)}")


def required_text(row: dict[str, Any], key: str, where: str) -> str:
    """Return a row's text that must be there and not be empty."""
    text = optional_text(row, key, where)
    if text is None or not text.strip():
        raise UserError(f"{where}: {key} is missing")
    return text


def optional_text(row: dict[str, Any], key: str, where: str) -> str | None:
    """Return a row's text, or None where it has none."""
    text = row.get(key)
    if text is not None and not isinstance(text, str):
        raise UserError(f"{where}: {key} is {text!r}; it must be a text")
    if text is not None and not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{where}: {key} is no text: half of a pair of UTF-16 escapes in it")
    return text


def canvas_size(row: dict[str, Any], where: str) -> tuple[int, int] | None:
    """Return the row's `size`, [height, width] in pixels; None where there is none."""
    size = row.get("size")
    if size is None:
        return None
    whole = isinstance(size, (list, tuple)) and all(type(side) is int and side > 0 for side in size)
    if not whole or len(size) != 2:
        raise UserError(f"{where}: size is {size!r}; it must be [height, width] in pixels")
    return size[0], size[1]


def image_scale(row: dict[str, Any], where: str) -> float | None:
    """Return a row's image_scale, a share in (0, 1], or None where it has none."""
    scale = row.get("image_scale")
    if scale is None:
        return None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= 1:
        raise UserError(f"{where}: image_scale is {scale!r}; it must be above 0 and at most 1")
    return float(scale)
