"""Commands that run beside each other, each in its own session with a log file, and end with this one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GRACE = 120.0  # seconds that a command has to save and end, once it was asked to
PAUSE = 0.1
PR_SET_PDEATHSIG = 1  # Linux: what a process gets when its parent dies
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Command:
    """A command that has been started; Ctrl-C in a terminal does not reach it, `stop` does."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        """Start it; what it prints is appended to `log`. If this process is killed, it is asked to end."""
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.began = log, time.monotonic()
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
                preexec_fn=_end_with_parent if _libc is not None else None,
            )

    def exit_code(self) -> int | None:
        """Return the exit code (-N: ended by signal N), or None while it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """Return the last line that it printed; empty if there is none."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def ask_to_stop(self) -> None:
        """Send SIGTERM to the command itself: launchers pass it on to their processes."""
        with suppress(ProcessLookupError):
            self._process.terminate()

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to what is left of the command's session."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def is_gone(self) -> bool:
        """Tell whether the command has ended, with all processes of its session."""
        if self.exit_code() is None:
            return False
        try:
            os.killpg(self._process.pid, 0)
        except (ProcessLookupError, PermissionError):
            return True
        return False


def stop(commands: Sequence[Command], grace: float = GRACE) -> None:
    """End commands with everything that they have started: first asked, then told, at last killed."""
    for command in commands:
        command.ask_to_stop()
    _wait(lambda: all(command.exit_code() is not None for command in commands), grace)
    # A launcher that passes nothing on has left its processes behind.
    for number in (signal.SIGTERM, signal.SIGKILL):
        for command in commands:
            if not command.is_gone():
                command.signal_all(number)
        _wait(lambda: all(command.is_gone() for command in commands), grace)


def _wait(done: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(PAUSE)


def _end_with_parent() -> None:
    """Ask the system to end this child, before its program begins, when its parent dies."""
    assert _libc is not None
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
