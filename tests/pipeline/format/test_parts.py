"""A record longer than `max_length` is divided into parts, which hold its values as slices do."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.format.examples import decode_example, encode_record
from pipeline.format.parts import Part, divide
from pipeline.raw.records import parse_record
from pipeline.schema.record import num_labels
from pipeline.schema.schema import NEXT_STEP, Schema

KINDS = datasets.LABELS | datasets.NEXT_LABELS


def schema_of(kind, more=""):
    return Schema.parse(f"id: id{datasets.EVERY_FEATURE}label: {KINDS[kind]}\n{more}")


def slice_record(record, first, stop, label):
    """Returns a raw record with some steps of another one."""
    per_step = ("x", "word", "page", "bits", *([label.field] if label.name and label.per_step else []))
    return record | {name: record[name][first:stop] for name in per_step}


def plain(example):
    return {name: list(values) for name, values in example.items()}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(num_steps=st.integers(1, 13), size=st.integers(1, 14), seed=st.integers(0, 9))
def test_the_parts_of_a_record_are_its_slices(kind, num_steps, size, seed):
    (record,) = datasets.every_feature_records([num_steps], split="train", kind=kind, seed=seed)
    schema, without = schema_of(kind, f"max_length: {size}\nover_length: parts"), schema_of(kind)
    parsed = parse_record(record, schema)
    whole = Part(encode_record(parsed, schema), num_steps, num_labels(parsed, schema))
    parts = list(divide(whole, schema))
    assert len(parts) == schema.count_parts(num_steps) == len(range(0, num_steps, size))
    assert sum(part.num_labels for part in parts) == whole.num_labels == num_labels(parsed, without)
    per_step = schema.label.per_step
    for part, first in zip(parts, range(0, num_steps, size), strict=True):
        stop = min(first + size, num_steps)
        found = plain(decode_example(part.example))
        raw = slice_record(record, first, stop, schema.label)
        expected = plain(decode_example(encode_record(parse_record(raw, without), without)))
        if kind.startswith("next_"):
            next_step = found.pop(NEXT_STEP)
            if stop < num_steps:
                after = parse_record(slice_record(record, stop, stop + 1, schema.label), without)
                expected_next = after.features[schema.label.next_of]
                np.testing.assert_array_equal(next_step, list(np.ravel(expected_next)))
            else:
                is_null = [value in (-1, b"\xff") or value != value for value in next_step]
                assert all(is_null) and len(is_null) == schema.steps[schema.label.next_of].width
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert part.num_steps == stop - first
        if per_step and not kind.startswith("next_"):
            assert part.num_labels == num_labels(parse_record(raw, without), without)
        elif not kind.startswith("next_"):
            assert part.num_labels == (first == 0)
