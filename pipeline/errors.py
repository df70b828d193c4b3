"""The one exception that a user can mend: the command prints it as a single line and exits with its status."""


class UserError(Exception):
    """Names the thing, the value received, what was expected and the way out, in one line."""

    # Exit status of the command; a kind that a script must tell from the others has its own.
    status = 1
