"""One command at a time for a folder, with real processes; the lock dies with its holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rfft.errors import UserError
from rfft.utils.lock import NAME, locked

HOLD = """
import os, sys, time
from pathlib import Path
from rfft.utils.lock import locked
with locked(Path(sys.argv[1])):
    child = os.fork()  # as a DataLoader's worker, which may live a little longer
    if child:
        print(child, flush=True)
    time.sleep(600)
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder's lock, and has a child."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        os.kill(child, signal.SIGKILL)


def test_a_second_process_is_refused_until_the_first_one_is_dead(tmp_path: Path) -> None:
    with holder(tmp_path) as first:
        told = rf"in use by another command, process {first.pid}: "
        with pytest.raises(UserError, match=told), locked(tmp_path):
            pass
        with locked(tmp_path, wanted=False):  # another rank of a job
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        with locked(tmp_path):  # its child lives, and the file is there
            assert (tmp_path / NAME).read_text() == f"{os.getpid()}\n"


def test_a_command_may_call_another_one_on_its_run(tmp_path: Path) -> None:
    with locked(tmp_path), locked(tmp_path):
        pass
    with holder(tmp_path):  # all released
        pass


def test_a_folder_that_nobody_may_write_into_needs_no_lock(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o555)
    with locked(tmp_path):
        assert not (tmp_path / NAME).exists()
    tmp_path.chmod(0o755)
