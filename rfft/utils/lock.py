"""One command at a time for a folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import fcntl
import inspect
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

from rfft.errors import UserError

NAME = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)  # another process has it
# A read-only folder, or a file system that knows no locks.
UNLOCKABLE = (errno.EROFS, errno.EPERM, errno.ENOLCK, errno.ENOTSUP)
P = ParamSpec("P")
T = TypeVar("T")
_held: dict[Path, int] = {}  # how often each folder is locked by this process: a command may call another


class FolderLock:
    """A lock on a folder, which may not exist yet.

    with FolderLock(run) as lock:
        lock.acquire()  # only if it is there
        run.mkdir(exist_ok=True)
        lock.acquire()  # now in any case

    It is a record lock (fcntl) on FOLDER/.lock: the system takes it away with the process, children that were
    forked do not inherit it, and network file systems know it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.key = folder, folder.absolute()
        self.file: int | None = None
        self.entered = False

    def acquire(self) -> None:
        """Lock the folder if it exists and is not locked yet.

        Raises UserError if another process has locked it.
        """
        if self.entered or not self.folder.is_dir():
            return
        if self.key not in _held:
            self.file = self._lock()
        _held[self.key] = _held.get(self.key, 0) + 1
        self.entered = True

    def _lock(self) -> int | None:
        """Return the locked file's descriptor; None where nothing can be locked."""
        path = self.folder / NAME
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, *UNLOCKABLE):  # nobody who may not write here can do harm
                return None
            raise
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(file, 20).decode(errors="replace").strip()
            os.close(file)
            if error.errno in HELD:
                raise UserError(
                    f"{self.folder} is in use by another command, process {owner or '?'}: wait until it "
                    "ends, or stop it"
                ) from None
            if error.errno in UNLOCKABLE:
                return None
            raise
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
        return file

    def release(self) -> None:
        """Unlock the folder; the file stays, as another process may be about to lock it."""
        if not self.entered:
            return
        self.entered = False
        _held[self.key] -= 1
        if not _held[self.key]:
            del _held[self.key]
        if self.file is not None:
            os.close(self.file)
            self.file = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


@contextmanager
def locked(folder: Path, wanted: bool = True) -> Iterator[None]:
    """Lock a folder that exists while the block runs.

    Of several processes only the one for which it is `wanted` does. Raises UserError if another command has
    it.
    """
    with FolderLock(folder) as lock:
        if wanted:
            lock.acquire()
        yield


@contextmanager
def waiting(folder: Path, pause: float = 0.2) -> Iterator[None]:
    """Lock a folder that exists while the block runs, once no other command has it."""
    with FolderLock(folder) as lock:
        while True:
            try:
                lock.acquire()
                break
            except UserError:
                time.sleep(pause)
        yield


def locks_run(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function lock the folder that is its argument `run` while it works.

    Of several processes only the first one does.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def locking(*args: P.args, **kwargs: P.kwargs) -> T:
        run = signature.bind(*args, **kwargs).arguments["run"]
        with locked(run, wanted=os.environ.get("RANK", "0") == "0"):
            return function(*args, **kwargs)

    return locking
