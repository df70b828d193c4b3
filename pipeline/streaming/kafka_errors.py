"""The errors of Kafka that end a stream, because waiting does not help, and what their messages say."""

from collections.abc import Callable, Sequence
from typing import Any

from pipeline.errors import TryAgain, UserError, counted

# Codes of KafkaError by name, of the connection, of the rights of the user, of stored messages, and of offsets.
_REFUSED = ("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED", "UNSUPPORTED_SASL_MECHANISM", "ILLEGAL_SASL_STATE")
_DENIED = ("TOPIC_AUTHORIZATION_FAILED", "GROUP_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED")
_DAMAGED = ("_BAD_MSG", "_BAD_COMPRESSION", "_NOT_IMPLEMENTED", "INVALID_MSG", "INVALID_MSG_SIZE", "_FATAL")
_GONE = ("_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE")


class BrokerAway(UserError):
    """No broker answered for the time of `--broker_timeout`."""

    status = 75  # EX_TEMPFAIL of sysexits.h


class Stopped(Exception):
    """A signal ended the wait for a broker."""


def is_refusal(error: Any) -> bool:
    """Whether a broker refuses the connection, or the client does not trust the broker."""
    if _is(error, "_SSL"):  # also if a broker ends while a client connects
        return "certificate" in error.str().lower()
    return _is(error, *_REFUSED)


def refused_connection(reason: str, *, servers: str, origin: str | None) -> UserError:
    """Returns the error for a refused connection.

    Args:
        origin: The file with the properties of the connection.
    """
    where = f"in {origin}" if origin else "in a file for --kafka_config"
    return UserError(
        f"--kafka {servers}: the connection was refused: {reason}. Check security.protocol, and the properties sasl.* "
        f"and ssl.* {where}."
    )


def check_rights(error: Any, *, topics: Sequence[str], servers: str, group: str, hide: Callable[[str], str]) -> None:
    """Raises a UserError if a broker does not allow to read topics, or their names cannot be names.

    Args:
        hide: Removes secrets from a message.
    """
    names = ", ".join(topics)
    if _is(error, "TOPIC_EXCEPTION"):
        raise UserError(f"--topic {names}: not the name of a topic: expected letters, digits, `.`, `_` and `-`.")
    if is_refusal(error) or _is(error, *_DENIED):
        raise UserError(
            f"--kafka {servers}: refuses to read {names}: {hide(error.str())}. The user needs the rights Describe and "
            f"Read for the topics, and Read for the group {group}."
        )


def check_message(error: Any, path: str, *, hide: Callable[[str], str]) -> None:
    """Checks what the client reports in place of a message.

    Raises:
        TryAgain: The offset to read from is gone.
        UserError: A message is damaged.
    """
    if _is(error, *_GONE):
        raise TryAgain(f"{path}: the next offset is no longer there.")
    if _is(error, *_DAMAGED):
        raise UserError(f"{path}: cannot be read on: {hide(error.str())}. Nothing was published.")


def describe_time(seconds: float) -> str:
    """Returns a time in minutes, or below one in seconds.

    >>> describe_time(600), describe_time(0.6)
    ('10 minutes', '1 second')
    """
    return counted(round(seconds / 60), "minute") if seconds >= 60 else counted(round(seconds), "second")


def _is(error: Any, *names: str) -> bool:
    """Whether an error has one of these codes."""
    return error.code() in {getattr(type(error), name) for name in names}
