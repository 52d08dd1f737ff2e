"""Files and folders are written whole or not at all: aside first, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rfft.errors import UserError


def refuse_existing(out: Path, advice: str = "name a new folder with --out") -> None:
    """Raise a UserError, with this advice, where `out` is a file or a folder that is not empty."""
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; {advice}")


def aside(path: Path) -> Path:
    """Return the hidden name under which something is written before it is whole."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a hidden file that becomes `path` when the block ends well, and is gone if it does not.

    Readers, and a restart after a crash, see the old file or the new one, never half of it.
    """
    draft = aside(path)
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def open_as_umask_says(folder: Path) -> None:
    """Give every file below a folder that this process made the mode that the umask asks for.

    safetensors writes its files with mode 0600, whatever the umask; the folder itself has the umask's mode.
    """
    mode = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(mode)


@contextmanager
def new_folder(out: Path, replace: bool = False) -> Iterator[Path]:
    """Make a hidden folder that becomes `out` when the block ends well, and is gone if it does not.

    With `replace` what was there before goes only then; without it there may be an empty folder at most, or a
    UserError is raised. A link stays one, to the new folder.
    """
    if not replace:
        refuse_existing(out)
    out = out.resolve()
    if out.is_mount() or (out == Path.cwd() and not replace):
        raise UserError(f"{out}: a mount point or the folder you are in; name a new folder inside it")
    draft = aside(out)
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        yield draft
        open_as_umask_says(draft)
        if replace:
            shutil.rmtree(out, ignore_errors=True)
        elif out.exists():
            out.rmdir()
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
