"""How a command ends otherwise than well, each with its exit code."""

import errno
import re

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "file too large"}
_BARRED = {
    errno.ENOENT: "not there, and cannot be made",
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
    """Raise a UserError with this message unless the condition is true."""
    if not condition:
        raise UserError(message)


def disk_problem(error: BaseException) -> str | None:
    """Return one line with the fix if a full disk or an unusable path made an error, else None."""
    number, place = None, ""
    if isinstance(error, OSError):
        number, place = error.errno, f"{error.filename}: " if error.filename else ""
    elif "inline_container" in str(error) and isinstance(error.__context__, OSError):
        number = error.__context__.errno  # torch.save raises an error of its own about the disk's
    elif named := re.search(r"\(os error (\d+)\)", str(error)):  # safetensors
        number = int(named[1])
    if number in _FULL:
        return f"{place}{_FULL[number]}; make room and run the same command again"
    if number in _BARRED and place:
        return f"{place}{_BARRED[number]}; name another path, or change that one"
    return None
