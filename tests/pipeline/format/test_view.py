"""A view adds up generations whose schemas may differ in what they accept."""

import types

import pytest

from pipeline.errors import UserError
from pipeline.format.models import Split
from pipeline.format.summary import NO_REJECTS, Rejects, RejectsFile
from pipeline.format.view import _add_rejects, add_splits
from pipeline.schema.schema import Schema

SCHEMA = Schema.parse("id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a, b, c]}\n")


def split(**counts):
    records = sum(counts.values())
    empty = {"truncated": 0, "shards": (), "length_counts": {}}
    return Split(records=records, steps=records, labels=records, label_counts=counts, **empty)


def test_a_class_that_no_generation_of_a_split_has_counts_zero():
    total = add_splits(SCHEMA, [split(a=1, b=2), split(b=0, a=3), split()], {})
    assert (total.records, total.label_counts) == (6, {"a": 4, "b": 2, "c": 0})
    assert add_splits(SCHEMA, [split(), split()], {}).label_counts == {}


def rejects(name, **by_reason):
    files = (RejectsFile(path=f"rejected/{name}.jsonl", sha256="0" * 64),)
    return Rejects(total=sum(by_reason.values()), by_reason=by_reason, files=files)


def part(rejected=NO_REJECTS, replayed=NO_REJECTS):
    return types.SimpleNamespace(rejected=rejected, replayed=replayed)


def test_rejects_that_a_later_generation_took_back_do_not_count():
    first = rejects("1", not_json=2, over_length=3)
    second = rejects("2", not_json=2)
    found = _add_rejects([part(first), part(second, replayed=first), part(rejects("3", bad_id=1))])
    assert found.model_dump() == {
        "total": 3,
        "by_reason": {"bad_id": 1, "not_json": 2},
        "files": ("rejected/2.jsonl", "rejected/3.jsonl"),
    }
    with pytest.raises(UserError, match="3 rejects because of not_json were taken back, but there were fewer"):
        _add_rejects([part(first), part(replayed=rejects("1", not_json=3))])
