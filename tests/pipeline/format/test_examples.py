"""Examples have the bytes that TensorFlow writes, and decode to the same values."""

import dataclasses
import doctest
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from strategies import same_values, schemas_and_records

from pipeline.format import examples
from pipeline.format.examples import (
    decode_example,
    decode_varints,
    encode_example,
    encode_record,
    encode_varints,
    replace_id,
)
from pipeline.format.manifest import FILE_NAME
from pipeline.raw.records import parse_record
from pipeline.schema.record import NO_LABEL


@pytest.fixture(scope="module")
def tensorflow():
    import tensorflow

    return tensorflow


def serialize_with_tensorflow(tf, features):
    example = tf.train.Example()
    for name, values in features.items():
        feature = example.features.feature[name]
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
        elif values.dtype == np.float32:
            feature.float_list.value.extend(values.ravel().tolist())
        else:
            feature.int64_list.value.extend(values.ravel().tolist())
    return example.SerializeToString(deterministic=True)


@settings(suppress_health_check=list(HealthCheck))
@given(schemas_and_records())
def test_every_record_of_every_schema_has_the_bytes_of_tensorflow_and_decodes_to_the_same_values(tensorflow, drawn):
    schema, record = drawn
    sequence = parse_record(record, schema)
    data = encode_record(sequence, schema)
    expected = {
        **sequence.features,
        **sequence.context,
        schema.label.name: sequence.label,
        "length": np.array([sequence.num_steps]),
        "id": [sequence.id.encode()],
    }
    assert data == serialize_with_tensorflow(tensorflow, expected)
    assert replace_id(data, "é" * 99) == encode_record(dataclasses.replace(sequence, id="é" * 99), schema)
    decoded = decode_example(data)
    assert decoded.keys() == expected.keys()
    for name, values in expected.items():
        assert same_values(decoded[name], values)


def test_the_label_of_a_step_without_a_label_is_minus_one_in_ten_bytes():
    assert encode_varints(np.array([NO_LABEL])).hex() == "ff" * 9 + "01"


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
@example([0, 127, 128, 16383, 16384, 2**63 - 1, -(2**63), -1])
def test_varints_of_every_int64_decode_to_the_same_number(values):
    data = encode_varints(np.array(values, np.int64))
    assert decode_varints(data).tolist() == values
    if values:
        with pytest.raises(ValueError, match="cut off"):
            decode_varints(data[:-1] + b"\x80")


def test_a_varint_of_more_than_ten_bytes_is_refused():
    with pytest.raises(ValueError, match="longer than ten bytes"):
        decode_varints(b"\x80" * 10 + b"\x01")


def test_many_varints_are_decoded_in_blocks(monkeypatch):
    values = np.random.default_rng(0).integers(-300, 2**40, 200)
    monkeypatch.setattr(examples, "_MAX_SEPTETS", 11)
    assert decode_varints(encode_varints(values)).tolist() == values.tolist()
    with pytest.raises(ValueError, match="cut off"):
        decode_varints(encode_varints(values) + b"\x80")
    with pytest.raises(ValueError, match="longer than ten bytes"):
        decode_varints(encode_varints(values) + b"\x80" * 11 + b"\x01")


@pytest.mark.parametrize("dtype", [np.float64, np.float16, bool, object])
def test_an_array_of_another_dtype_is_refused(dtype):
    with pytest.raises(TypeError, match=f"cannot hold an array of dtype {np.dtype(dtype)}"):
        encode_example({"x": np.array([1, 0], dtype)})


def test_the_layout_of_an_array_in_memory_does_not_matter():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    n = np.arange(12).reshape(3, 4)
    for array in (x, n):
        assert encode_example({"a": array.T}) == encode_example({"a": array.T.copy()})
        assert encode_example({"a": array.astype(array.dtype.newbyteorder(">"))}) == encode_example({"a": array})


@given(st.data())
def test_damaged_bytes_give_values_or_a_value_error(data):
    whole = encode_example({"x": np.arange(4, dtype=np.float32), "n": np.array([1, 300]), "id": [b"r"]})
    junk = data.draw(st.binary(max_size=8))
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    for damaged in (junk, whole[:start] + junk + whole[stop:]):
        try:
            values = decode_example(damaged)
        except ValueError as error:
            assert str(error).startswith("not a tf.train.Example of this format: ")
        else:
            assert all(isinstance(name, str) for name in values)


def test_the_tfrecord_package_reads_the_same_values(dataset, records):
    # In a separate process: this package and TensorFlow would register the same messages.
    program = """
import glob, json, sys
from tfrecord.reader import tfrecord_loader
for path in sys.argv[1:]:
    for example in tfrecord_loader(path, None):
        print(json.dumps({
            "id": bytes(example["id"]).decode(), "length": int(example["length"][0]), "y": int(example["y"][0]),
            "x": example["x"].tolist(), "page": example["page"].tolist(),
            "word": [bytes(word).decode() for word in example["word"]],
        }))
"""
    manifest = json.loads(pathlib.Path(dataset, FILE_NAME).read_text())
    paths = [f"{dataset}/{shard['path']}" for split in manifest["splits"].values() for shard in split["shards"]]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = [json.loads(line) for line in done.stdout.splitlines()]
    expected = [
        {
            "id": record["id"],
            "length": len(record["x"]),
            "y": ["a", "b", "no"].index(record["y"]),
            "x": [number for row in record["x"] for number in row],
            "page": record["page"],
            "word": [word for row in record["word"] for word in row],
        }
        for record in records
    ]
    assert sorted(read, key=lambda r: r["id"]) == sorted(expected, key=lambda r: r["id"])


def test_the_examples_in_docstrings_are_correct():
    assert doctest.testmod(examples, extraglobs={"np": np}).failed == 0
