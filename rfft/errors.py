"""How a command ends otherwise than well, each with its exit code."""

import errno

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "file too large"}
_BARRED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
    errno.ENAMETOOLONG: "the name is too long",
}


class UserError(Exception):
    """A mistake of the user: shown as one line that names the thing and the fix; exit code 2."""


class Interrupted(Exception):
    """Cut off by a signal: the same command goes on from what is saved; exit code 75 (EX_TEMPFAIL)."""


class ProcessLost(Exception):
    """Another process of the job has ended or hangs, and says why itself; exit code 76.

    Not 75: Slurm takes the highest code of a job's processes, and must not start again what ended with 2.
    """


def require(condition: object, message: str) -> None:
    if not condition:
        raise UserError(message)


def disk_problem(error: OSError) -> str | None:
    """In words with the fix, if a full disk or a path that cannot be used is the reason; exit code 2, too."""
    number, place = error.errno or 0, f"{error.filename}: " if error.filename else ""
    if number in _FULL:
        return f"{place}{_FULL[number]}; make room and run the same command again"
    if number in _BARRED and place:
        return f"{place}{_BARRED[number]}; name another path, or change that one"
    return None
