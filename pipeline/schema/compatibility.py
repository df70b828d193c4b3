"""Compares schemas: whether a schema that accepts more stores the records that another one accepts as that one does."""

import json
from collections.abc import Iterable
from typing import Any

from pipeline.errors import show
from pipeline.schema.features import Feature
from pipeline.schema.labels import ONE_CLASS, Label, class_name
from pipeline.schema.schema import Schema


def find_difference(new: Schema, old: Schema, *, may_widen: bool) -> str | None:
    """Returns the first place where two schemas differ, and both values; None if there is none.

    Args:
        may_widen: Whether the new schema may accept more records, as long as each record that the old one accepts has
            the same bytes, split and order in both. These keys may differ then, and no others:

            - `max_length` may be larger or absent, and `over_length` may be any, if the old schema rejects longer
              records. (If it truncates them, a stored record may have lost steps. If it stores parts, their size must
              stay the same. With `next_of`, an Example of a schema that stores parts has one more field.)
            - `missing` may change from `reject` to `fill` or `indicator`.
            - `nan_is_missing` may change to true.
            - `num_values` of an int64 feature may be larger. (Strings are hashed into it when they are read.)
            - `classes` may have more classes at its end, for one class per record or step. (The other kinds store a
              number for each class.)
    """
    mine, theirs = new.canonical(), old.canonical()
    if may_widen:
        _undo_widening(mine, theirs, new, old)
    if _text(mine) != _text(theirs):
        return _describe_difference(mine, theirs)
    for key in ("steps", "context", "splits"):
        # The split of a record follows from the order of the shares.
        if list(mine[key]) != list(theirs[key]):
            return f"{key} has the order {show(list(mine[key]))}, but {show(list(theirs[key]))} in the dataset"
    return None


def find_widest(schemas: Iterable[Schema]) -> Schema:
    """Returns the schema that accepts all records that any of the schemas accepts; of equal ones, the last.

    Raises:
        ValueError: Two schemas store the same record differently.
    """
    widest: Schema | None = None
    for schema in schemas:
        if widest is None or schema == widest or find_difference(schema, widest, may_widen=True) is None:
            widest = schema
        else:
            difference = find_difference(widest, schema, may_widen=True)
            if difference is not None:
                raise ValueError(difference)
    if widest is None:
        raise ValueError("there is no schema")
    return widest


def _undo_widening(mine: dict[str, Any], theirs: dict[str, Any], new: Schema, old: Schema) -> None:
    """Replaces the values in `mine` that only widen the old schema by those of the old schema.

    Args:
        mine, theirs: The canonical forms of the new and of the old schema.
    """
    if _accepts_longer(new, old):
        _copy(theirs, mine, "max_length", "over_length")
    if new.nan_is_missing:
        _copy(theirs, mine, "nan_is_missing")
    for part in ("steps", "context"):
        before = getattr(old, part)
        for name, feature in getattr(new, part).items():
            if name in before and _accepts_nulls(feature, before[name]):
                _copy(theirs[part][name], mine[part][name], "missing", "fill_value")
            if name in before and _has_more_values(feature, before[name]):
                _copy(theirs[part][name], mine[part][name], "num_values")
    if _has_more_classes(new.label, old.label):
        _copy(theirs["label"], mine["label"], "classes")


def _accepts_longer(new: Schema, old: Schema) -> bool:
    if old.max_length is None or old.over_length != "reject":
        return False
    if new.stores_next_step:
        return False
    return new.max_length is None or new.max_length >= old.max_length


def _accepts_nulls(new: Feature, old: Feature) -> bool:
    return new.allows_nulls and not old.allows_nulls


def _has_more_values(new: Feature, old: Feature) -> bool:
    return new.dtype == old.dtype == "int64" and (new.num_values or 0) > (old.num_values or 0)


def _has_more_classes(new: Label, old: Label) -> bool:
    # By name, since True == 1.
    before, now = list(map(class_name, old.classes)), list(map(class_name, new.classes))
    return (
        new.kind == old.kind and new.kind in ONE_CLASS and len(now) > len(before) > 0 and now[: len(before)] == before
    )


def _copy(source: dict[str, Any], target: dict[str, Any], *keys: str) -> None:
    """Gives some keys the values, or the absence, that they have in another dict."""
    for key in keys:
        target.pop(key, None)
        if key in source:
            target[key] = source[key]


def _describe_difference(mine: Any, theirs: Any, place: str = "") -> str:
    """Returns the first place where the canonical forms of two schemas differ, and both values."""
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return f"{place} is {show(mine)}, but {show(theirs)} in the dataset"
    key = next(key for key in {**theirs, **mine} if _text(mine.get(key)) != _text(theirs.get(key)))
    return _describe_difference(mine.get(key), theirs.get(key), f"{place}.{key}" if place else key)


def _text(values: Any) -> str:
    """Returns values as JSON, in which true and 1 differ, without the order of keys."""
    return json.dumps(values, sort_keys=True)
