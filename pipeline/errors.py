"""The errors that a user can fix, and the form of a value in a message."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
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


class Terminated(KeyboardInterrupt):
    """The process got SIGTERM, and ends as after Ctrl-C."""


def make_error(kind: str, message: str) -> UserError:
    """Returns the error of the class with this name, UserError or a subclass, for an error that came as text."""
    return next((each for each in _with_subclasses(UserError) if each.__name__ == kind), UserError)(message)


def _with_subclasses(kind: type[UserError]) -> Iterator[type[UserError]]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)


def check_unpublished(
    output: str, error: BaseException, read_published: Callable[[], Any], *, done: str = "published"
) -> None:
    """Checks that a job that failed has not published its results, so that its files may be removed.

    Args:
        error: What ended the job.
        read_published: Returns what the job published, or None.
        done: What the job does to the output.

    Raises:
        UserError: It was published, or it is not known whether it was.
    """
    try:
        published = read_published()
    except UserError as unreadable:
        # The files are kept: they may belong to the only dataset there is.
        raise UserError(f"{output}: may be {done} or not: {unreadable} The job had ended with: {error}") from None
    if published is not None:
        raise UserError(
            f"{output}: was {done}, but the work after that was not completed: {error}. The next job that writes "
            "there completes it."
        ) from None


@contextlib.contextmanager
def file_errors() -> Iterator[None]:
    """Turns an OSError of the block into a UserError, for a block that publishes nothing if there is one."""
    try:
        yield
    except OSError as error:
        raise file_error(str(error)) from None


def file_error(message: str) -> UserError:
    """Returns the error of a job that could not read or write a file."""
    return UserError(f"A file could not be read or written: {message}. Nothing was published.")


def show(value: Any, *, max_characters: int = 60) -> str:
    """Returns `value` as JSON for a message: at most `max_characters`, without control characters.

    Only the part that is shown is converted: a value may be a list of millions of numbers, or a string of 64 MiB.
    """
    try:
        text = "".join(_take(_write_json(value, max_characters), max_characters + 1))
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__} that cannot be shown"
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: max_characters + 1])
    return text if len(text) <= max_characters else text[: max_characters - 3] + "..."


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun in the singular or the plural, for a message.

    >>> counted(1, "record"), counted(1200, "batch")
    ('1 record', '1,200 batches')
    """
    plural = "es" if noun.endswith(("tch", "s")) else "s"  # batches, but epochs
    return f"{number:,} {noun}{'' if number == 1 else plural}"


def rate(number: int, noun: str, seconds: float) -> str:
    """Returns how many there are per second, with at least two digits, for a message.

    >>> rate(1000, "record", 3.2), rate(1, "record", 3.2)
    ('312 records/s', '0.31 records/s')
    """
    value = number / max(seconds, 1e-9)
    return f"{f'{value:,.0f}' if value >= 10 or not number else f'{value:.2g}'} {noun}s/s"


def quote(text: str, *, max_characters: int = 60) -> str:
    """Returns a string in quotes for a message, as Python writes it: at most `max_characters` of it."""
    return repr(text if len(text) <= max_characters else text[: max_characters - 3] + "...")


def _take(pieces: Iterable[str], num_characters: int) -> Iterator[str]:
    """Yields the first pieces, until they have `num_characters`."""
    for piece in pieces:
        yield piece
        num_characters -= len(piece)
        if num_characters <= 0:
            return


def _write_json(value: Any, max_characters: int) -> Iterator[str]:
    """Yields `value` as JSON in pieces. Of a string and of bytes, only the first `max_characters` are written."""
    if isinstance(value, dict):
        yield "{"
        for number, (key, inner) in enumerate(value.items()):
            yield ", " if number else ""
            yield from _write_json(key if isinstance(key, str) else json.dumps(key), max_characters)
            yield ": "
            yield from _write_json(inner, max_characters)
        yield "}"
    elif isinstance(value, list | tuple):
        yield "["
        for number, inner in enumerate(value):
            yield ", " if number else ""
            yield from _write_json(inner, max_characters)
        yield "]"
    else:
        part = value[:max_characters] if isinstance(value, str | bytes | bytearray) else value
        yield json.dumps(part, ensure_ascii=False, default=repr)
