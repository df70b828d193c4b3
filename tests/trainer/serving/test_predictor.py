"""Records are padded and given to the model of a run."""

import numpy as np
import pytest
import tensorflow as tf
from predict_runs import run_of

from pipeline.format.examples import encode_record
from pipeline.raw.records import parse_record
from pipeline.schema.schema import Schema
from trainer.batching.bucket import make_bucket_plan
from trainer.data.target import make_target
from trainer.reading.tf_data_reader import parse_batch
from trainer.serving.predictor import choose_batch_steps, load_predictor, pad_batch


def pad_value_by_value(records, schema):
    """Returns the padded batch, filled one value at a time."""
    longest = max(record.num_steps for record in records)
    batch = {"length": np.array([record.num_steps for record in records], np.int32)}
    for name, feature in schema.features.items():
        time = (longest,) if name in schema.steps else ()
        dtype = {"float32": np.float32, "int64": np.int64, "string": object}[feature.dtype]
        batch[name] = np.full((len(records), *time, *feature.shape), b"" if dtype is object else 0, dtype)
        for row, record in enumerate(records):
            values = (record.features | record.context)[name]
            flat = values if isinstance(values, list) else values.ravel()
            for number, value in enumerate(flat):
                place = divmod(number, feature.width) if time else (number,)
                inner = np.unravel_index(place[-1], feature.shape)
                batch[name][(row, *place[:-1], *inner)] = value
    return batch


VARIED_SCHEMA = """
id: id
steps:
  a: {dtype: float32}
  b: {dtype: float32, shape: [2, 3], missing: indicator}
  c: {dtype: int64, num_values: 9, missing: indicator}
  d: {dtype: int64, num_values: 9, shape: [2]}
  e: {dtype: string, num_values: 9, missing: fill}
  f: {dtype: string, num_values: 9, shape: [2, 2]}
context:
  g: {dtype: float32, missing: indicator}
  h: {dtype: float32, shape: [2, 2]}
  i: {dtype: int64, num_values: 9}
  j: {dtype: string, num_values: 9, missing: fill}
  k: {dtype: string, num_values: 9, shape: [3]}
label: {name: y, kind: regression}
"""


def varied_record(number, length, numbers):
    def maybe(value):
        return None if numbers.random() < 0.3 else value

    def words(*shape):
        return numbers.choice(["", "ä", "word", "\0"], shape).tolist()

    return {
        "id": number,
        "a": numbers.normal(size=length).tolist(),
        "b": [maybe([[maybe(1.5), 2, 3], [4, 5, 6]]) for _ in range(length)],
        "c": [maybe(int(c)) for c in numbers.integers(0, 9, length)],
        "d": numbers.integers(0, 9, (length, 2)).tolist(),
        "e": [maybe(word) for word in words(length)],
        "f": words(length, 2, 2),
        "g": maybe(0.0),
        "h": numbers.normal(size=(2, 2)).tolist(),
        "i": 3,
        "j": maybe("x"),
        "k": words(3),
        "y": 0,
    }


@pytest.mark.parametrize("lengths", [[1], [3], [2, 2], [1, 7, 4], [5, 1, 1, 9, 2]])
def test_a_padded_batch_equals_the_batch_of_the_reader(lengths):
    schema, numbers = Schema.parse(VARIED_SCHEMA), np.random.default_rng(len(lengths))
    records = [parse_record(varied_record(n, length, numbers), schema) for n, length in enumerate(lengths)]
    batch = pad_batch(records, schema)
    slow = pad_value_by_value(records, schema)
    examples = tf.constant([encode_record(record, schema) for record in records])
    plan = make_bucket_plan({max(lengths): 1}, batching="pad")
    read, *_ = parse_batch(examples, tf.constant(lengths, tf.int32), schema=schema, plan=plan)
    assert batch.keys() == slow.keys() == read.keys()
    for name, values in batch.items():
        assert values.dtype == slow[name].dtype
        np.testing.assert_array_equal(values, slow[name])
        assert read[name].numpy().dtype == values.dtype
        np.testing.assert_array_equal(values, read[name].numpy())


def test_one_trace_serves_batches_of_all_shapes():
    made, run = run_of("class")
    model = load_predictor(run)
    records = [parse_record(record, model.schema) for record in made.of("test")]
    for rows in ([0], [1, 2], range(30), [3]):
        assert model([records[row] for row in rows]).shape == (len(rows), 3)
    assert model.forward.experimental_get_tracing_count() == 1


def test_wide_steps_make_smaller_batches():
    def steps(width, label):
        schema = Schema.parse(f"steps: {{x: {{dtype: float32, shape: [{width}]}}}}\nlabel: {label}\n")
        return choose_batch_steps(schema, make_target(schema, {}))

    number = "{name: y, kind: regression}"
    assert steps(8, number) == steps(100, number) > steps(1000, number) > steps(10**6, number) > 0
    assert steps(10**9, number) == 1
    assert steps(1000, "{next_of: x}") < steps(1000, number)
