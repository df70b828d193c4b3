"""Computes the id of a record whose schema names no field for it: a hash of its values."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from pipeline.raw.json_arrays import LargeList, cut_list, empty_lists
from pipeline.raw.json_values import load_json
from pipeline.raw.rejects import RecordError
from pipeline.raw.values import to_python

_OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def content_id(record: Any) -> str:
    """Returns the id of a record without one.

    Raises:
        RecordError: `not_json`: the record is nested too deeply.
    """
    return _shorten(hashlib.sha256(canonical_json(record)))


def large_content_id(line: bytes | bytearray, lists: Iterable[LargeList]) -> str:
    """Returns the `content_id` of the record in a line, without holding the values of its large lists.

    Args:
        line: Valid JSON, an object with unique keys.
        lists: What `find_large_lists` found.

    Raises:
        RecordError: As for `content_id`.
    """
    digest = hashlib.sha256()
    rest = load_json(empty_lists(line, lists))
    large = {found.name: found for found in lists}
    # The keys are sorted as `orjson` sorts them, by code points.
    for number, name in enumerate(sorted(rest)):
        entry = canonical_json({name: rest[name]})[1:-1]
        digest.update(b"," if number else b"{")
        if name not in large:
            digest.update(entry)
            continue
        digest.update(entry[:-1])
        for count, piece in enumerate(cut_list(line, large[name])):
            digest.update(b"," if count else b"")
            digest.update(orjson.dumps(orjson.loads(b"[%b]" % piece))[1:-1])
        digest.update(b"]")
    digest.update(b"}")
    return _shorten(digest)


def _shorten(digest: Any) -> str:
    return str(digest.hexdigest()[:32])


def canonical_json(record: Any) -> bytes:
    """Returns the record as JSON in a form that depends only on its values: sorted keys, no white space.

    Raises:
        RecordError: `not_json`: the record is nested too deeply.
    """
    try:
        return orjson.dumps(record, option=_OPTIONS, default=_jsonable)
    except TypeError as error:
        # Only Python's own encoder writes large integers and lone surrogates. Its depth limit depends on the caller's
        # stack, and so on the runner, while orjson's limit is constant. So orjson decides about the depth.
        if "ecursion" in str(error):
            raise RecordError("not_json", "nested deeper than 254 levels") from None
    try:
        return json.dumps(_with_string_keys(record), sort_keys=True, default=_jsonable).encode()
    except (RecursionError, ValueError):  # ValueError: it contains itself
        raise RecordError("not_json", "nested too deeply") from None


def _jsonable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    as_json = to_python(value)
    # `repr` of an array would omit most of its values.
    return repr(value) if as_json is value else as_json


def _with_string_keys(value: Any) -> Any:
    """Returns `value` with string keys. Python's encoder sorts keys before it converts them; orjson sorts after."""
    if isinstance(value, Mapping):
        return {str(key): _with_string_keys(inner) for key, inner in value.items()}
    return [_with_string_keys(inner) for inner in value] if isinstance(value, list) else value
