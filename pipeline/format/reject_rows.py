"""Reads the lines of a file of rejects."""

import base64
import json
from typing import Any

import orjson

# The object on a line, by key.
RejectRow = dict[str, Any]

_KEYS = {"file", "byte_offset", "line", "id", "reason", "message", "sha256"}


def read_row(line: bytes) -> RejectRow:
    """Returns the object on a line of a file of rejects.

    Raises:
        ValueError: The line is not the object of a reject.
    """
    try:
        row = orjson.loads(line)
    except ValueError:  # a message may have half of a surrogate pair
        try:
            row = json.loads(line.decode("utf-8", "surrogatepass"))
        except RecursionError:
            raise ValueError("nested too deeply") from None
    if not isinstance(row, dict) or not _KEYS <= row.keys() or not isinstance(row["reason"], str):
        raise ValueError("not the object of a reject")
    return row


def raw_line(row: RejectRow) -> bytes | None:
    """Returns the raw line of a reject, or None if it was not kept.

    Raises:
        ValueError: It is not valid base64.
    """
    if "raw" in row:
        return str(row["raw"]).encode()
    return base64.b64decode(row["raw_base64"], validate=True) if "raw_base64" in row else None
