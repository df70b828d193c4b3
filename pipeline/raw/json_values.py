"""Reads a line of JSON as Python values, by one grammar: strict JSON, with numbers that are not finite.

orjson decides what JSON is, and Python's own parser, which accepts more, is not used: a line must not be read
otherwise because some field that nothing reads holds a NaN. `json_arrays.py` is the fast way to the same values.
"""

import collections
import hashlib
import re
from typing import Any

import orjson

from pipeline.errors import quote, show
from pipeline.raw.json_arrays import count_keys, list_keys
from pipeline.raw.rejects import RecordError

_STRING = rb'"(?:[^"\\]|\\.)*+(?:"|\Z)'
# Strings, and numbers that are not finite. Those that are written with digits have an exponent of three digits, or very
# many digits, and are matched to their end. They are rare, and to look for them takes much longer.
_NAMED = re.compile(_STRING + rb"|NaN|-?Infinity", re.DOTALL)
_LARGE = re.compile(rb"[eE][+-]?\d{3}|(?<!\d)\d{200}")
_NAMED_OR_LARGE = re.compile(
    _NAMED.pattern + rb"|(?<![\d.eE+-])-?\d++(?:(?<=\d{200})|(?:\.\d*+)?[eE][+-]?\d{3})[\d.eE+-]*+", re.DOTALL
)
_NUMBER = re.compile(rb"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
# A message shows at most this number of bytes of a line that is not JSON: 60 characters of 4 bytes each, and more.
_SHOWN_BYTES = 512
# A wrong byte is searched in pieces of this size, and shown with as many bytes before and after it.
_PIECE_BYTES, _NEAR_BYTES = 2**20, 25


def load_json(line: bytes | bytearray | str) -> Any:
    """Returns the value of a line of JSON. NaN, Infinity, 1e999 and 10**400 are floats that are not finite.

    Python's `json.dumps` writes NaN and Infinity by default. The parser of values then rejects such a number with its
    place, or ignores it in a field that is not in the schema.

    Raises:
        RecordError: `not_json`, or `duplicate_key`: the line is an object that has one of its keys twice. Of two
            values, other programs take the first or the last, and nothing says which one is meant.
    """
    data = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        found = None
        if b"NaN" in data or b"Infinity" in data:
            found = _load_non_finite(data, _NAMED)
        if found is None and _LARGE.search(data):
            found = _load_non_finite(data, _NAMED_OR_LARGE)
        if found is None:
            text = data[:_SHOWN_BYTES].decode("utf-8", "backslashreplace")
            message = _describe_wrong_byte(data) or f"{error.msg} (column {error.colno}): {show(text)}"
            raise RecordError("not_json", message) from None
        value, data = found
    if isinstance(value, dict) and count_keys(data) > len(value):
        name, times = collections.Counter(list_keys(data)).most_common(1)[0]
        raise RecordError("duplicate_key", f"{show(name)}: the record has this key {times} times, expected once")
    return value


def _describe_wrong_byte(line: bytes | bytearray) -> str | None:
    """Returns a message about the first byte of a line that is not valid UTF-8; None if all are valid."""
    start = 0
    while start < len(line):
        piece = bytes(line[start : start + _PIECE_BYTES])
        try:
            piece.decode()
        except UnicodeDecodeError as error:
            start += error.start
            if error.end == len(piece) and error.start and start + len(piece) - error.start < len(line):
                continue  # the end of the piece cuts a character
            begin = max(0, start - _NEAR_BYTES)
            while begin < start and line[begin] & 0xC0 == 0x80:  # not the first byte of a character
                begin += 1
            near = line[begin : start + _NEAR_BYTES].decode("utf-8", "replace")
            return (
                f"byte 0x{line[start]:02x} at offset {start:,} of the line is not valid UTF-8 ({error.reason}), in "
                f"{quote(near)}; expected UTF-8"
            )
        start += len(piece)
    return None


def _load_non_finite(line: bytes | bytearray, tokens: re.Pattern[bytes]) -> tuple[Any, bytes] | None:
    """Returns the value of a line with numbers that are not finite; None if it is no JSON for another reason.

    orjson gets a string in place of each such number. No string of the line can be the same, because it contains a
    digest of the line. The line with these strings is the second result.

    Args:
        tokens: Matches strings and numbers that may not be finite.
    """
    marker = hashlib.sha256(line).hexdigest()

    def mark(token: re.Match[bytes]) -> bytes:
        text = token.group()
        if text.startswith(b'"'):
            return text
        if not text.endswith((b"NaN", b"Infinity")) and not (
            _NUMBER.fullmatch(text) and abs(float(text)) == float("inf")
        ):
            return text
        return b'"%b%b"' % (marker.encode(), text)

    try:
        marked = tokens.sub(mark, line)
        found = [orjson.loads(marked)]
    except orjson.JSONDecodeError:
        return None
    containers: list[Any] = [found]
    while containers:  # not recursive: the depth is that of the line
        container = containers.pop()
        if isinstance(container, dict) and any(key.startswith(marker) for key in container):  # a number is no key
            return None
        for key, item in container.items() if isinstance(container, dict) else enumerate(container):
            if type(item) is str:
                if item.startswith(marker):
                    container[key] = float(item[len(marker) :])
            elif type(item) is list or type(item) is dict:
                containers.append(item)
    return found[0], marked
