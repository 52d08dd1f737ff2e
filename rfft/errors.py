"""How a command ends otherwise than well, each with its exit code."""


class UserError(Exception):
    """A mistake of the user: shown as one line that names the thing and the fix; exit code 2."""


class Interrupted(Exception):
    """A signal stopped a run, which is saved: the same command goes on; exit code 75 (EX_TEMPFAIL)."""


def require(condition: object, message: str) -> None:
    if not condition:
        raise UserError(message)
