"""Decoding many Examples into padded arrays gives the arrays that TensorFlow parses from the same bytes."""

import datasets
import numpy as np
import pytest
import tensorflow as tf

from pipeline.format.batch_decoding import (
    UnexpectedLayout,
    copy_steps,
    decode_columns,
    decode_record_values,
    locate_values,
)
from pipeline.format.examples import decode_example
from pipeline.format.stored_fields import stored_fields
from pipeline.format.tfrecord import walk
from trainer.data.dataset import open_dataset
from trainer.data.examples import example_spec
from trainer.reading.buffer_pool import BufferPool

NUMBERS = sorted(set(datasets.LABELS) | {"next_x"} - {"next_x"})


def examples_of(dataset):
    shards = dataset.split("train").shards
    found = []
    for shard in shards:
        with open(f"{dataset.path}/{shard.path}", "rb") as file:
            found += [record.data for record in walk(file, num_bytes=shard.bytes)]
    return found


def decode(examples, schema, *, time, lengths):
    fields = stored_fields(schema)
    data = b"gap".join(examples)
    sizes = np.array([len(example) for example in examples], np.int64)
    begin = np.cumsum(np.append(0, sizes[:-1] + 3))
    located = locate_values(data, begin, begin + sizes, fields)
    found = {}
    for field, start, stop in zip(fields, located.start, located.stop, strict=True):
        if not field.per_step:
            found[field.name] = decode_record_values(field, data, start, stop)
            continue
        found[field.name] = batch = BufferPool().allocate(field, len(examples), time)
        targets = [batch.reshape(-1).view(np.uint8).data] * len(examples)
        place = np.arange(len(examples)) * (batch.nbytes // len(examples))
        copy_steps(field, data, start, stop, lengths, targets=targets, place=place)
    return found


@pytest.mark.parametrize("kind", NUMBERS)
def test_arrays_equal_what_tensorflow_parses(kind):
    dataset = open_dataset(datasets.of_kind(kind).path)
    examples = examples_of(dataset)
    parsed = {n: v.numpy() for n, v in tf.io.parse_example(examples, example_spec(dataset.schema)).items()}
    lengths = parsed["length"].astype(np.int32)
    found = decode(examples, dataset.schema, time=int(lengths.max()), lengths=lengths)
    assert found.keys() == parsed.keys()
    for name, values in found.items():
        assert values.dtype == parsed[name].dtype
        np.testing.assert_array_equal(values, parsed[name])


@pytest.mark.parametrize("kind", NUMBERS)
def test_decoding_columns_equals_decoding_each_example(kind):
    dataset = open_dataset(datasets.of_kind(kind).path)
    examples = examples_of(dataset)
    end = np.cumsum([len(example) for example in examples])
    begin = end - [len(example) for example in examples]
    found = decode_columns(b"".join(examples), begin, end, stored_fields(dataset.schema))
    expected = [decode_example(example) for example in examples]
    assert found.keys() == expected[0].keys() - {"id"}
    for name, (values, counts) in found.items():
        assert values.dtype == expected[0][name].dtype
        assert counts.tolist() == [len(example[name]) for example in expected]
        np.testing.assert_array_equal(values, np.concatenate([example[name] for example in expected]))


def test_padding_fills_the_array_to_the_given_length():
    dataset = open_dataset(datasets.of_kind("step_class").path)
    examples = examples_of(dataset)[:5]
    lengths = tf.io.parse_example(examples, example_spec(dataset.schema))["length"].numpy()
    found = decode(examples, dataset.schema, time=30, lengths=lengths)
    assert found["x"].shape[1] == found["y"].shape[1] == 30
    for row, length in enumerate(lengths):
        assert not found["x"][row, length:].any()
        assert set(found["y"][row, length:].tolist()) == {-1}


def test_damaged_examples_are_refused():
    dataset = open_dataset(datasets.of_kind("class").path)
    example = examples_of(dataset)[0]
    lengths = tf.io.parse_example([example], example_spec(dataset.schema))["length"].numpy()
    for position in range(len(example)):
        changed = bytearray(example)
        changed[position] ^= 0x41
        try:
            found = decode([bytes(changed)], dataset.schema, time=int(lengths[0]), lengths=lengths)
        except (UnexpectedLayout, ValueError):
            continue
        assert found["x"].shape[1] == lengths[0]  # a number changed, which only the CRC of the frame detects
    for cut in range(len(example)):
        with pytest.raises(UnexpectedLayout):
            decode([example[:cut]], dataset.schema, time=int(lengths[0]), lengths=lengths)
    with pytest.raises(UnexpectedLayout):
        decode([example], dataset.schema, time=int(lengths[0]) + 1, lengths=lengths + 1)
