"""Names of fields: a feature or a label may have any name, also one that the readers use for something else."""

import datasets
import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.schema.schema import Schema
from trainer.config import BATCHING_METHODS, TrainConfig
from trainer.data.dataset import open_dataset
from trainer.model.build import build_model
from trainer.reading.batches import batches
from trainer.reading.foreign import foreign_batches

# Names that the readers use for values of their own.
STEPS, CONTEXT, LABEL = ("time", "rows", "examples"), "row", "number"
SCHEMA = f"""id: key
steps: {{{", ".join(f"{name}: {{dtype: float32}}" for name in STEPS)}}}
context: {{{CONTEXT}: {{dtype: float32}}}}
label: {{name: {LABEL}, kind: regression}}
splits: {{train: 1}}
"""


@pytest.mark.parametrize("renamed", [{}, {"time": LABEL, LABEL: "time"}, {"row": "rows", "rows": "row"}])
def test_any_name_works_in_any_role(renamed, tmp_path):
    names = {name: renamed.get(name, name) for name in (*STEPS, CONTEXT, LABEL)}
    text = SCHEMA
    for name in names:
        text = text.replace(f"{name}: {{dtype", f"<{name}>: {{dtype").replace(f"name: {name},", f"name: <{name}>,")
    for name, new in names.items():
        text = text.replace(f"<{name}>", new)
    records = [
        {"key": n, **{names[s]: [n + 0.5] * (n + 1) for s in STEPS}, names[CONTEXT]: n + 0.25, names[LABEL]: n * 2.0}
        for n in range(6)
    ]
    opened = open_dataset(datasets.make(tmp_path, records, text, num_shards=1).path)
    for batching in BATCHING_METHODS if not renamed else BATCHING_METHODS[:1]:
        found = list(batches(opened, "train", batching=batching, batch_size=3).as_numpy_iterator())
        rows = [pair for features, label, _ in found for pair in zip(features[names[CONTEXT]], label, strict=True)]
        assert sorted(rows) == [(n + 0.25, n * 2.0) for n in range(6)]
        first_steps = [value for features, *_ in found for value in features[names["time"]][:, 0].tolist()]
        assert sorted(first_steps) == [n + 0.5 for n in range(6)]


def test_a_model_takes_features_of_any_name():
    model = build_model(Schema.parse(SCHEMA), {}, TrainConfig(units=(2,)))
    batch = {name: np.ones((2, 3), np.float32) for name in STEPS}
    assert model({**batch, CONTEXT: np.ones(2, np.float32), "length": np.array([1, 3], np.int32)}).shape == (2,)


def floats(*values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


@pytest.mark.parametrize("in_lists", [False, True])
def test_foreign_records_have_the_fields_of_raw_records(tmp_path, in_lists):
    schema = Schema.parse(
        "steps: {x: {dtype: float32, from: length}}\ncontext: {age: {dtype: float32, from: Age in years}}\n"
        "label: {name: y, from: x, kind: step_regression}\n"
    )
    context, steps = {"Age in years": floats(30)}, {"length": [1, 2], "x": [5, 6]}
    if in_lists:
        lists = {name: tf.train.FeatureList(feature=map(floats, values)) for name, values in steps.items()}
        record = tf.train.SequenceExample(
            context=tf.train.Features(feature=context), feature_lists=tf.train.FeatureLists(feature_list=lists)
        )
    else:
        context |= {name: floats(*values) for name, values in steps.items()}
        record = tf.train.Example(features=tf.train.Features(feature=context))
    path = str(tmp_path / "their.tfrecord")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(record.SerializeToString())
    ((features, label, _),) = foreign_batches(path, schema, batch_size=1).as_numpy_iterator()
    assert {name: values.tolist() for name, values in features.items()} == {"x": [[1, 2]], "age": [30], "length": [2]}
    assert label.tolist() == [[5, 6]]
    with pytest.raises(UserError, match="the first record: has no z; it has Age in years, length, x"):
        foreign_batches(path, Schema.parse("steps: {x: {dtype: float32, from: z}}\nlabel: {next_of: x}"))
    with pytest.raises(UserError, match="the schema has 'x' for several features, or for a feature and the label"):
        foreign_batches(
            path, Schema.parse("steps: {z: {dtype: float32, from: x}, x: {dtype: float32}}\nlabel: {next_of: x}")
        )
