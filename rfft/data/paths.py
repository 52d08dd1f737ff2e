"""Paths that a file of somebody's own names."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from rfft.errors import UserError


def inside(folder: Path, name: str, where: str) -> Path:
    """Return the path of a picture below a folder; raises UserError if `..` or a link leads out of it."""
    path = folder / name
    try:
        plain = not os.path.islink(path)  # then it lies where its folder does, which was looked up before
        real = _real(path.parent) / path.name if plain else path.resolve()
        within = not Path(name).is_absolute() and path.name != ".." and real.is_relative_to(_real(folder))
        exists = path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, links in a circle
        within, exists = True, False
    if not within:
        raise UserError(
            f"{where}: image {name!r} leads out of the manifest's folder; put the picture inside it"
        )
    if not exists:
        raise UserError(f"{where}: image {name!r} does not exist below {folder}")
    return path


@lru_cache(maxsize=4096)
def _real(folder: Path) -> Path:
    return folder.resolve()
