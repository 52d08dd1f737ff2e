"""Work that goes on beside the main thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One piece of work at a time, in a thread of its own; what it raises comes out of the next call."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's."""
        self._pool = ThreadPoolExecutor(1, name)
        self._current: Future[object] | None = None

    def start(self, work: Callable[[], object]) -> None:
        """Begin a piece of work, once the one before is done."""
        self.wait()
        self._current = self._pool.submit(work)

    def wait(self) -> None:
        """Return when nothing goes on any more."""
        current, self._current = self._current, None
        if current is not None:
            current.result()

    def close(self) -> None:
        """Wait, and raise nothing: to be called when something else has gone wrong."""
        self._pool.shutdown()
