"""Puts the key of a message, or one of its headers, into its value as the id of the record."""

import json
from collections.abc import Callable
from typing import Any, TypeAlias

from pipeline.errors import UserError

# Returns the value of a message that has one.
ReadValue: TypeAlias = Callable[[Any], bytes]
_HEADER = "header:"


def choose_reader(kafka_id: str | None, id_field: str | None) -> ReadValue | None:
    """Returns the function that returns the value of a message with its id in it, or None if the value has it.

    Args:
        kafka_id: `key`, or `header:NAME`, or None.
        id_field: The field of the id in the schema.

    Raises:
        UserError: `kafka_id` is something else, or the schema has no id.
    """
    if kafka_id is None:
        return None
    header = kafka_id.removeprefix(_HEADER) if kafka_id.startswith(_HEADER) else None
    if kafka_id != "key" and not header:
        raise UserError(f"--kafka_id {kafka_id}: expected key, or header:NAME with the name of a header.")
    if id_field is None:
        raise UserError(
            f"--kafka_id {kafka_id}: the schema has no id. Add `id: NAME`, where NAME is a field that the values lack, "
            "or leave out --kafka_id."
        )
    field = json.dumps(id_field).encode()
    if header is None:
        return lambda message: insert_id(message.value(), field, message.key())
    return lambda message: insert_id(message.value(), field, _find_header(message.headers(), header))


def _find_header(headers: list[tuple[str, bytes | None]] | None, name: str) -> bytes | None:
    """Returns the value of the last header with a name."""
    return next((value for key, value in reversed(headers or ()) if key == name), None)


def insert_id(value: bytes, field: bytes, record_id: bytes | None) -> bytes:
    """Returns a JSON object with one more field at its start; a value that is no object is returned as it is.

    The record is rejected later if there is no id, if the id is not UTF-8, or if the object has the field already.

    Args:
        field: The name of the field as JSON.

    >>> insert_id(b'{"x": 1}', b'"id"', b"a-1")
    b'{"id": "a-1", "x": 1}'
    """
    start = value.find(b"{")
    if start < 0 or value[:start].strip():
        return value
    rest = value[start + 1 :]
    separator = b"" if rest.lstrip()[:1] == b"}" else b", "
    return b"".join([value[: start + 1], field, b": ", _to_json(record_id), separator, rest])


def _to_json(text: bytes | None) -> bytes:
    if text is None:
        return b"null"
    try:
        return json.dumps(text.decode(), ensure_ascii=False).encode()
    except UnicodeDecodeError:
        # Not JSON: the record is rejected, with the byte that is wrong.
        return b'"%b"' % text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
