"""Result folders are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rfft.errors import UserError


def refuse_existing(out: Path) -> None:
    """A UserError where `out` is a file, or a folder that is not empty."""
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; name a new folder with --out")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`: becomes `out` when the block ends well, and is gone if it does not."""
    refuse_existing(out)
    draft = out.with_name(f".{out.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        if out.exists():
            out.rmdir()
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
