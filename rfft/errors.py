"""Errors a user can cause and mend."""


class UserError(Exception):
    """A mistake of the user: shown as one line that names the thing and the fix; exit code 2."""
