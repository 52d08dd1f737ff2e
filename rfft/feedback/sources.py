"""The files of a data set as it was downloaded: loose ones in a folder, and those inside zip archives.

Nothing is ever unpacked: members are read into memory, one at a time, and their names are never paths.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rfft.data.pictures import BrokenFile
from rfft.errors import UserError

MAX_PICTURE_BYTES = 64 * 2**20
MAX_TEXT_BYTES = 2**30
MAX_LINE = 2**16
MAX_RATIO, RATIO_FROM = 200, 2**20  # bytes per packed byte, for members larger than this
OPEN_ARCHIVES = 4  # per process; the directory of one with 100,000 members takes about 80 MB
_ARCHIVE_ERRORS = (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, KeyError, EOFError, ValueError)


@dataclass(frozen=True)
class Entry:
    """A file of the source."""

    archive: str  # the zip it lies in, relative to the source's root; "" for a loose file
    member: str  # its name in there, or relative to the root
    size: int  # bytes

    def __str__(self) -> str:
        return f"{self.archive}:{self.member}" if self.archive else self.member

    @property
    def path(self) -> str:
        """Return where the file would lie if archives were folders."""
        return f"{self.archive.removesuffix('.zip')}/{self.member}" if self.archive else self.member


class Source:
    """The files of a folder, searched to the bottom, or of one zip archive.

    Links to folders are not followed.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"{path}: no such folder or zip archive")
        if path.is_file() and not zipfile.is_zipfile(path):
            raise UserError(f"{path}: not a zip archive; give one, or the folder that holds the packages")
        self.path = path
        self.root = path if path.is_dir() else path.parent
        self._open: OrderedDict[str, zipfile.ZipFile] = OrderedDict()

    def entries(self) -> Iterator[Entry]:
        """Yield all files.

        Raises UserError for an archive that cannot be opened, since much would be missing.
        """
        if self.path.is_file():
            yield from self._members(self.path.name)
            return
        for folder, folders, names in os.walk(self.path):
            folders[:] = sorted(name for name in folders if not _is_junk(name))
            for name in sorted(names):
                file = Path(folder) / name
                relative = file.relative_to(self.root).as_posix()
                if _is_junk(name):
                    continue
                if file.suffix.lower() == ".zip":
                    yield from self._members(relative)
                else:
                    yield Entry(
                        "", relative, file.stat().st_size if file.exists() else 0
                    )  # 0: a dangling link

    def _members(self, archive: str) -> Iterator[Entry]:
        for info in self._archive(archive).infolist():
            if not info.is_dir() and not any(_is_junk(part) for part in info.filename.split("/")):
                yield Entry(archive, info.filename, info.file_size)

    def read(self, entry: Entry, limit: int = MAX_PICTURE_BYTES) -> bytes:
        """Return the bytes of a file; raises BrokenFile, also for more than `limit` of them."""
        try:
            with self._stream(entry, limit) as stream:
                data = stream.read(limit + 1)
        except _ARCHIVE_ERRORS as error:
            raise BrokenFile(f"cannot be read: {error}") from None
        if len(data) > limit:
            raise BrokenFile(f"more than {limit} bytes")
        return data

    def lines(self, entry: Entry) -> Iterator[tuple[int, str]]:
        """Yield number and text of all lines that are not blank; raises UserError unless they are UTF-8."""
        try:
            with self._stream(entry, MAX_TEXT_BYTES) as stream:
                number = 0
                while line := stream.readline(MAX_LINE):
                    number += 1
                    if len(line) == MAX_LINE:
                        raise BrokenFile(f"line {number} is longer than {MAX_LINE} bytes")
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                    if text.strip():
                        yield number, text
        except UnicodeDecodeError:
            raise UserError(f"{entry}: not a UTF-8 text file") from None
        except (*_ARCHIVE_ERRORS, BrokenFile) as error:
            raise UserError(f"{entry}: cannot be read: {error}") from None

    @contextmanager
    def _stream(self, entry: Entry, limit: int) -> Iterator[IO[bytes]]:
        if not entry.archive:
            with (self.root / entry.member).open("rb") as stream:
                yield stream
            return
        archive = self._archive(entry.archive)
        info = archive.getinfo(entry.member)
        _refuse_bomb(info, limit)
        with archive.open(info) as stream:
            yield stream

    def _archive(self, name: str) -> zipfile.ZipFile:
        """Return an open archive; the least recently used one is closed for it."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        try:
            self._open[name] = zipfile.ZipFile(self.root / name)
        except (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise UserError(f"{self.root / name}: not a whole zip archive: {error}") from None
        if len(self._open) > OPEN_ARCHIVES:
            self._open.popitem(last=False)[1].close()
        return self._open[name]


def _refuse_bomb(info: zipfile.ZipInfo, limit: int) -> None:
    """Raise BrokenFile for a member that is too large or packed too tightly.

    Its declared size is what zipfile will read at most, so that it can be believed here.
    """
    if info.file_size > limit:
        raise BrokenFile(f"more than {limit} bytes")
    if info.file_size > RATIO_FROM and info.file_size > MAX_RATIO * info.compress_size:
        raise BrokenFile(f"decompression bomb: {info.file_size} bytes out of {info.compress_size}")


def _is_junk(name: str) -> bool:
    """Tell whether a file is hidden, or one that macOS puts into archives."""
    return name == "__MACOSX" or (name.startswith(".") and name not in (".", ".."))
