"""What ends a command from outside of the maths (training: tests/recipe/test_faults.py)."""

import errno
import os

import pytest

from rfft.cli import main
from rfft.errors import ProcessLost, UserError
from rfft.utils.faults import painting


def test_a_process_lost_while_painting() -> None:
    """There is no checkpoint that evaluation or generation could go on from."""
    with pytest.raises(ProcessLost, match="The same command starts anew$"), painting(4):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:3. Sorry")


LACK_OF_MEMORY = [
    "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried 8 bytes",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
]


def test_lack_of_memory_that_has_no_type_of_its_own() -> None:
    for error in LACK_OF_MEMORY:
        with pytest.raises(UserError, match=r"out of memory .*evaluate\.batch_size=2"), painting(4):
            raise RuntimeError(error)


def test_bugs_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes"), painting(4):
        raise RuntimeError("shapes do not fit")


PATHS = [
    (errno.ENOSPC, "runs/x: no space left; make room"),
    (errno.EACCES, "runs/x: permission denied"),
    (errno.EPERM, "runs/x: permission denied"),
    (errno.EROFS, "runs/x: the file system is read-only"),
    (errno.ENOTDIR, "runs/x: a file is where a folder should be"),
    (errno.ENAMETOOLONG, "runs/x: the name is too long; name another path"),
]


def test_a_path_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, told in PATHS:

        def fail(number: int = number) -> None:
            raise OSError(number, os.strerror(number), "runs/x")

        monkeypatch.setattr(main, "app", fail)
        with pytest.raises(SystemExit) as ended:
            main.main()
        (line,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2 and line.startswith(f"rfft: {told}")


def test_without_a_path_it_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(OSError, match="not permitted"):
        main.main()
