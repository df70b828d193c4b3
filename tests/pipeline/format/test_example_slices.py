"""Slices of a large Example hold the values that `decode_example` gives for the whole of it."""

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.format import example_slices
from pipeline.format.example_slices import ExampleSlices
from pipeline.format.examples import decode_example, encode_example, encode_record
from pipeline.format.stored_fields import stored_fields
from pipeline.raw.records import parse_record
from pipeline.schema.schema import Schema

KINDS = datasets.LABELS | datasets.NEXT_LABELS


def slices_of(example, schema, num_steps, slice_steps):
    """Returns the fields, the slices, and the sizes of the reads so far."""
    reads = []

    def read(first, number):
        assert first >= 0
        reads.append(number)
        return example[first : first + number]

    fields = [field for field in stored_fields(schema) if field.name != "length"]
    found = ExampleSlices(read, len(example), fields, num_steps=num_steps, slice_steps=slice_steps)
    return fields, found, reads


@pytest.mark.parametrize("block_bytes", [2**20, 16])
@pytest.mark.parametrize("kind", ["class", "step_multilabel", "step_regression", "distribution", "next_word"])
@settings(max_examples=15)
@given(num_steps=st.integers(1, 30), slice_steps=st.integers(1, 31), seed=st.integers(0, 9))
def test_slices_are_those_of_the_decoded_example(kind, block_bytes, num_steps, slice_steps, seed):
    schema = Schema.parse(f"id: id{datasets.EVERY_FEATURE}label: {KINDS[kind]}\n")
    (record,) = datasets.every_feature_records([num_steps], split="train", kind=kind, seed=seed)
    record["word"] = [
        None if word is None else word * (1 + 70 * (place % 3)) for place, word in enumerate(record["word"])
    ]
    example = encode_record(parse_record(record, schema), schema)
    whole = decode_example(example)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example_slices, "_BLOCK_BYTES", block_bytes)
        fields, slices, _ = slices_of(example, schema, num_steps, slice_steps)
    for number, first in enumerate(range(0, num_steps, slice_steps)):
        loaded = slices.load(number)
        for field in fields:
            begin, end = first * field.width, (first + slice_steps) * field.width
            expected = whole[field.name][begin:end] if field.per_step else whole[field.name]
            np.testing.assert_array_equal(loaded[field.name], expected, err_msg=field.name)


INTEGERS = "steps: {x: {dtype: float32}, n: {dtype: int64, num_values: 100000}, w: {dtype: string, num_values: 9}}\n"
LARGE = Schema.parse(INTEGERS + "label: {name: y, kind: regression}\n")
STEPS = 50_000


def large_values():
    random = np.random.default_rng(0)
    return {
        "x": random.normal(size=STEPS).astype(np.float32),
        "n": random.integers(0, 100_000, STEPS),
        "w": [b"w" * size for size in random.integers(0, 300, STEPS).tolist()],
        "y": np.array([2.0], np.float32),
        "length": np.array([STEPS]),
        "id": [b"one"],
    }


def test_no_more_than_a_block_or_a_slice_is_read_at_once():
    values = large_values()
    example = encode_example(values)
    _, slices, reads = slices_of(example, LARGE, STEPS, 1000)
    for number in (0, 17, 49):
        loaded = slices.load(number)
        part = slice(1000 * number, 1000 * number + 1000)
        for name in "xnw":
            np.testing.assert_array_equal(loaded[name], values[name][part])
    assert max(reads) <= 2**20 < len(example) / 5


def without(name):
    return {key: value for key, value in large_values().items() if key != name}


def fewer(name):
    values = large_values()
    return values | {name: values[name][:-1]}


@pytest.mark.parametrize("values", [*(without(name) for name in "xnwy"), *(fewer(name) for name in "xnw")])
def test_an_example_with_other_values_is_an_error(values):
    with pytest.raises(ValueError, match=r"missing|expected 50,000"):
        slices_of(encode_example(values), LARGE, STEPS, 1000)


def test_any_other_bytes_are_an_error_and_never_end_the_process():
    example, random = encode_example(large_values() | {"w": [b"a"] * STEPS}), np.random.default_rng(1)
    for _ in range(200):
        wrong = bytearray(example)
        for place in random.integers(0, len(wrong), 3).tolist() + random.integers(0, 200, 2).tolist():
            wrong[place] = random.integers(0, 256)
        with np.errstate(all="ignore"):
            try:
                _, slices, _ = slices_of(bytes(wrong[: random.integers(1, len(wrong) + 1)]), LARGE, STEPS, 7000)
                slices.load(0)
            except (ValueError, UnicodeDecodeError):
                continue
