"""The errors that a user can fix, and the form of a value in a message."""

import json
from typing import Any


class UserError(Exception):
    """An error that a user can fix. The command prints it as a single line and exits with its status.

    The message has the thing, the value received, what was expected and the way out. A subclass is made from the
    message only: a Beam job makes the error of a worker again from its text.
    """

    # Exit status of the command. A subclass has another status if a script has to tell it from other errors.
    status = 1


class NothingNew(UserError):
    """The input contains nothing that the dataset does not have already."""

    status = 3


class LockTimeout(UserError):
    """Another process held a lock for longer than this one was allowed to wait."""

    status = 69  # EX_UNAVAILABLE of sysexits.h


class TryAgain(UserError):
    """Another process changed the dataset in the meantime; the same command can work if it is run again."""

    status = 75  # EX_TEMPFAIL of sysexits.h


def show(value: Any, *, max_characters: int = 60) -> str:
    """Returns `value` as JSON for a message: at most `max_characters`, without control characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__} that cannot be shown"
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= max_characters else text[: max_characters - 3] + "..."
