"""How a command ends otherwise than well, each with its exit code."""

import errno

_FULL = {errno.ENOSPC: "no space left", errno.EDQUOT: "the quota is used up", errno.EFBIG: "file too large"}


class UserError(Exception):
    """A mistake of the user: shown as one line that names the thing and the fix; exit code 2."""


class Interrupted(Exception):
    """A run was cut off, by a signal or with another process: the same command goes on from what is saved;
    exit code 75 (EX_TEMPFAIL)."""


def require(condition: object, message: str) -> None:
    if not condition:
        raise UserError(message)


def disk_problem(error: OSError) -> str | None:
    """In words, if a full disk is what stopped a write; exit code 2 as well."""
    reason = _FULL.get(error.errno or 0)
    return reason and (f"{error.filename}: {reason}" if error.filename else reason)
