"""A store of tensors on disk, content-addressed: what takes time to compute, kept for all processes and runs.

It is an LMDB: readers need no lock, one process writes at a time, what a process was writing when it died is
not there, and the lock of a dead process is taken over. Values are safetensors.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import lmdb
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from rfft.utils.log import warn

FOLDER = "RFFT_CACHE"  # environment variable that names the folder of data.cache=auto
KEPT = 0.9  # share of the bound that is left when the oldest items go
SLACK = 1.5  # of the file to the bound: pages that are freed are written again only after a while
PAGE = 4096  # what an item takes is a multiple of it
ITEM, ORDER = b"i", b"o"  # the first byte of a key: an item by its address, an address by its age

Item = Mapping[str, Tensor]


def key_of(*parts: bytes | str) -> bytes:
    """Return the address of what was made from these parts: 32 bytes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big"))  # or ("ab", "c") would be ("a", "bc")
        digest.update(data)
    return digest.digest()


def default_folder() -> Path:
    """Return $RFFT_CACHE, or rfft/ in the folder where a user's caches lie."""
    if named := os.environ.get(FOLDER):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rfft"


def find_store(cache: str | None, gigabytes: float) -> Store | None:
    """Return the store that data.cache names, if any: a folder, or "auto" for the default one."""
    if cache is None:
        return None
    folder = default_folder() if cache == "auto" else Path(cache)
    return open_store(folder.resolve(), int(gigabytes * 1e9))


@lru_cache
def open_store(folder: Path, most_bytes: int) -> Store:
    """Return the store in a folder, the same object each time: a process must not open an LMDB twice."""
    return Store(folder, most_bytes)


class Store:
    """Items by their address. Without room, or a disk that can be written, it forgets: never an error.

    The database is open only while it is read or written, as its pages count as the process's memory.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """`most_bytes` bounds what is kept; beyond it the oldest items go. The folder is made when needed."""
        self.folder, self.most_bytes = folder, most_bytes
        self.lock = threading.Lock()
        self.broken = False  # told once, and left alone from then on

    def get(self, keys: Iterable[bytes]) -> dict[bytes, dict[str, Tensor]]:
        """Return those of the items that are there."""
        found: dict[bytes, dict[str, Tensor]] = {}
        if not self._exists():
            return found
        with self._opened() as environment:
            if environment is None:
                return found
            with environment.begin(buffers=True) as transaction:
                for key in keys:
                    value = transaction.get(ITEM + key)
                    item = None if value is None else _load(bytes(value))
                    if item is not None:
                        found[key] = item
        return found

    def put(self, items: Mapping[bytes, Item]) -> None:
        """Keep these items, and let the oldest go where there is no room for them."""
        values = {
            key: save({name: t.contiguous() for name, t in item.items()}) for key, item in items.items()
        }
        size = sum(len(value) + PAGE for value in values.values())
        if not values or size > KEPT * self.most_bytes:
            return
        with self._opened() as environment:
            if environment is None:
                return
            with environment.begin(write=True) as transaction:
                if _used(environment, transaction) + size > self.most_bytes:
                    self._forget(environment, transaction, size)
                _write(transaction, values)

    def used(self) -> int:
        """Return how many bytes the items take."""
        if not self._exists():
            return 0
        with self._opened() as environment:
            if environment is None:
                return 0
            with environment.begin() as transaction:
                return _used(environment, transaction)

    def _forget(self, environment: Any, transaction: Any, size: int) -> None:
        """Remove the oldest items, until `size` bytes have room."""
        cursor = transaction.cursor()
        there = cursor.set_range(ORDER)
        while there and _used(environment, transaction) + size > KEPT * self.most_bytes:
            transaction.delete(ITEM + cursor.value())
            cursor.set_range(ORDER)
            there = cursor.delete() and cursor.key().startswith(ORDER)

    def _exists(self) -> bool:
        return not self.broken and (self.folder / "data.mdb").exists()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the database; None where that does not work."""
        with self.lock:
            try:
                environment = None if self.broken else self._open()
            except (lmdb.Error, OSError) as error:
                self._give_up(error)
                environment = None
            if environment is None:
                yield None
                return
            with environment:
                try:
                    yield environment
                except lmdb.MapFullError:
                    pass  # a reader keeps pages from being used again: the next time there is room
                except lmdb.Error as error:
                    self._give_up(error)

    def _open(self) -> Any:
        self.folder.mkdir(parents=True, exist_ok=True)
        return lmdb.open(
            str(self.folder),
            map_size=int(SLACK * self.most_bytes),
            max_readers=1024,
            metasync=False,  # a crash of the machine may undo the last items, but damages nothing
            readahead=False,
        )

    def _give_up(self, error: Exception) -> None:
        self.broken = True
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        warn(f"data.cache: {self.folder} cannot be used ({reason}): going on without it")


def _write(transaction: Any, values: Mapping[bytes, bytes]) -> None:
    cursor = transaction.cursor()
    # Keys of items are smaller than those of their order, so that the last key is that of the newest one.
    last = int.from_bytes(cursor.key()[1:], "big") if cursor.last() and cursor.key()[:1] == ORDER else 0
    for number, (key, value) in enumerate(values.items(), start=last + 1):
        if transaction.put(ITEM + key, value, overwrite=False):
            transaction.put(ORDER + number.to_bytes(8, "big"), key)


def _used(environment: Any, transaction: Any) -> int:
    stat = transaction.stat(environment.open_db(None, txn=transaction))
    pages = stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]
    return int(pages * stat["psize"])


def _load(value: bytes) -> dict[str, Tensor] | None:
    try:
        return load(value)
    except SafetensorError:  # damaged: it will be made anew
        return None
