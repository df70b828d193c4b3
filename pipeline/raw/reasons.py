"""Why a record is rejected: the reasons there are, and the error that carries one."""

import json
from typing import Any, Literal, get_args

Reason = Literal[
    "not_json",
    "not_a_record",
    "missing_field",
    "wrong_type",
    "wrong_shape",
    "not_finite",
    "unknown_class",
    "empty_sequence",
    "over_length",
    "uneven_lengths",
    "bad_id",
    "duplicate_id",
    "too_large",
]
REASONS: tuple[str, ...] = get_args(Reason)


class RecordError(Exception):
    """A record that cannot be used. `reason` is one of REASONS, `id` is known unless it is what is wrong."""

    def __init__(self, reason: Reason, message: str, record_id: str | None = None) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.message = message
        self.id = record_id


def show(value: Any) -> str:
    """A value as it may stand in a message: cut short, without control characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__} that cannot be shown"
    text = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    return text if len(text) <= 60 else text[:57] + "..."
