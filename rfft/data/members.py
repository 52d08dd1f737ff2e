"""Pictures that lie inside of another file, such as members of a tar archive."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from rfft.errors import UserError


@dataclass(frozen=True)
class Member:
    """A part of a file, read by its place without a look at what is before it."""

    archive: Path
    name: str
    place: int  # its first byte in the archive
    size: int  # bytes

    def read_bytes(self) -> bytes:
        """Return the bytes; raises OSError if the archive cannot be read."""
        with self.archive.open("rb") as file:
            file.seek(self.place)
            return file.read(self.size)

    def __str__(self) -> str:
        return f"{self.archive}: {self.name}"


class Bytes(Protocol):
    """A picture that is no file of its own."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def read_bytes(self) -> bytes: ...


Source: TypeAlias = Path | Bytes  # where a picture's bytes are


def members(archive: Path) -> Iterator[Member]:
    """Yield the regular files of an uncompressed tar archive; raises UserError for anything else."""
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.isreg() and not member.issparse():
                    yield Member(archive, member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError):
        raise UserError(f"{archive}: not a readable tar archive; it must not be compressed") from None
