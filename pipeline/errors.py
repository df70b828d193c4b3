"""The one exception that a user can mend: the command prints it as a single line and exits with status 1."""


class UserError(Exception):
    """Names the thing, the value received, what was expected and the way out, in one line."""
