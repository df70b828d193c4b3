"""TFRecords of other programs are read by a schema and batched by length, or rejected with a clear message."""

import gzip
import math
import struct

import datasets
import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.format.tfrecord import masked_crc
from pipeline.inspection.verify import verify
from pipeline.schema.record import MISSING_STRING
from pipeline.schema.schema import Schema
from trainer.data.dataset import open_dataset
from trainer.reading.batches import batches
from trainer.reading.foreign import foreign_batches

SCHEMA = """
steps:
  x: {dtype: float32, shape: [2]}
  word: {dtype: string, num_values: 10}
label: {name: y, kind: %s, classes: [a, b]}
"""
CLASS, STEP_CLASS = Schema.parse(SCHEMA % "class"), Schema.parse(SCHEMA % "step_class")


def _feature(values):
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    if isinstance(values[0], int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))


def _records(count=50, longest=9):
    random = np.random.default_rng(0)
    for _ in range(count):
        length = int(random.integers(1, longest + 1))
        x = random.normal(size=(length, 2)).astype(np.float32)
        yield x, [b"w%d" % n for n in range(length)], int(random.integers(2))


def _as_example(x, words, label):
    features = {"x": _feature(x.ravel().tolist()), "word": _feature(words), "y": _feature([label])}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _as_sequence_example(x, words, label):
    lists = {
        "x": tf.train.FeatureList(feature=[_feature(row.tolist()) for row in x]),
        "word": tf.train.FeatureList(feature=[_feature([word]) for word in words]),
    }
    if isinstance(label, list):
        lists["y"] = tf.train.FeatureList(feature=[_feature([value]) for value in label])
        context = {}
    else:
        context = {"y": _feature([label])}
    return tf.train.SequenceExample(
        context=tf.train.Features(feature=context), feature_lists=tf.train.FeatureLists(feature_list=lists)
    ).SerializeToString()


def _write(path, serialized):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in serialized:
            writer.write(record)
    return str(path)


def _rows(batches):
    """Returns every record of all batches without its padding, sorted."""
    rows = []
    for features, label, weight in batches:
        for row, length in enumerate(features["length"].numpy()):
            assert not features["x"][row, length:].numpy().any()
            rows.append(
                (
                    features["x"][row, :length].numpy().tolist(),
                    features["word"][row, :length].numpy().tolist(),
                    np.array(label[row]).tolist(),
                    np.array(weight[row]).tolist(),
                )
            )
    return sorted(rows)


@pytest.mark.parametrize("encode", datasets.some([_as_example, _as_sequence_example], [_as_sequence_example]))
@pytest.mark.parametrize("classes", [lambda label: label, lambda label: [b"a", b"b"][label]])
def test_every_record_is_yielded_once_with_its_values(tmp_path, encode, classes):
    path = _write(tmp_path / "their.tfrecord", [encode(x, w, classes(y)) for x, w, y in _records()])
    expected = sorted((x.tolist(), words, label, 1.0) for x, words, label in _records())
    assert _rows(foreign_batches(path, CLASS, batch_size=4)) == expected
    assert _rows(foreign_batches([path], CLASS, boundaries=[3, 5], batch_size=4, seed=3)) == expected


def test_a_step_without_a_label_has_weight_0(tmp_path):
    records = [_as_sequence_example(x, w, [b"b"] + [b""] * (len(x) - 1)) for x, w, _ in _records(5)]
    for _, label, weight in foreign_batches(_write(tmp_path / "t", records), STEP_CLASS, batch_steps=30):
        assert label.numpy()[:, 0].tolist() == [1] * len(label)
        assert weight.numpy().sum(axis=1).tolist() == [1.0] * len(label)


def _all_values(batches, per_step):
    """Returns every record of all batches as text without its padding, sorted."""
    rows = []
    for features, label, weight in batches:
        for row, length in enumerate(features["length"].numpy()):
            steps = {n: v[row] if v.shape.rank == 1 or n in CONTEXT else v[row, :length] for n, v in features.items()}
            known = weight[row, :length] if per_step else weight[row]
            one = label[row, :length][known > 0] if per_step else label[row]
            values = {n: np.asarray(v).tolist() for n, v in sorted(steps.items())}
            rows.append(repr([values, one.numpy().tolist()]))
    return sorted(rows)


CONTEXT = ("age", "city", "plan", "length")


@pytest.mark.parametrize(
    "kind",
    datasets.some(
        [*datasets.LABELS, *datasets.NEXT_LABELS],
        ["distribution", "next_word"],
    ),
)
def test_the_shards_of_a_dataset_give_the_same_records_as_the_dataset(kind):
    dataset = open_dataset(datasets.of_every_feature(kind).path)
    per_step, vocabularies = dataset.schema.label.per_step, dataset.vocabularies()
    files = [shard.path for shard in dataset.header_checked_indexes("train")]
    theirs = foreign_batches(files, dataset.schema, batch_steps=50, vocabularies=vocabularies)
    assert _all_values(theirs, per_step) == _all_values(batches(dataset, "train", batch_steps=50), per_step)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("in_lists", [False, True])
def test_a_multilabel_is_a_list_of_names_or_a_number_for_each_class(tmp_path, named, in_lists):
    schema = Schema.parse(
        "steps: {x: {dtype: float32}}\ncontext: {age: {dtype: float32}}\n"
        "label: {name: y, kind: multilabel, classes: [a, b, c]}"
    )
    records = []
    for label in ([0, 1, 1], [1, 0, 0], [0, 0, 0]):
        stored = [b"abc"[n : n + 1] for n in range(3) if label[n]] if named else label
        y = tf.train.Feature(bytes_list=tf.train.BytesList(value=stored)) if named else _feature(stored)
        context = {"y": y, "age": _feature([0.5 + sum(label)])}
        if in_lists:
            lists = {"x": tf.train.FeatureList(feature=[_feature([1.0]), _feature([2.0])])}
            record = tf.train.SequenceExample(
                context=tf.train.Features(feature=context), feature_lists=tf.train.FeatureLists(feature_list=lists)
            )
        else:
            record = tf.train.Example(features=tf.train.Features(feature=context | {"x": _feature([1.0, 2.0])}))
        records.append(record.SerializeToString())
    ((features, label, weight),) = foreign_batches(
        _write(tmp_path / "t", records), schema, batch_size=3, boundaries=[9]
    )
    order = np.argsort(features["age"].numpy())
    assert label.numpy()[order].tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 1]]
    assert features["age"].numpy()[order].tolist() == [0.5, 1.5, 2.5]
    assert weight.numpy().tolist() == [1.0] * 3


def test_a_label_that_is_the_next_string_needs_its_vocabulary(tmp_path):
    schema = Schema.parse("steps: {w: {dtype: string, vocabulary: 3}}\nlabel: {next_of: w}")
    with pytest.raises(UserError, match="next_of w: needs its vocabulary"):
        foreign_batches(str(tmp_path / "t"), schema)


def test_boundaries_are_exclusive_upper_edges(tmp_path):
    records = [(np.ones((n, 2), np.float32), [b"w"] * n, 0) for n in (2, 3, 4, 3, 2, 4)]
    path = _write(tmp_path / "t", [_as_example(*record) for record in records])
    theirs = foreign_batches(path, CLASS, boundaries=[3, 4], batch_size=2)
    assert sorted(features["length"].numpy().tolist() for features, _, _ in theirs) == [[2, 2], [3, 3], [4], [4]]


def test_a_record_beyond_the_last_boundary_makes_a_batch_of_one(tmp_path):
    records = [(np.ones((n, 2), np.float32), [b"w"] * n, 0) for n in [3] * 40 + [500]]
    path = _write(tmp_path / "t", [_as_example(*record) for record in records])
    theirs = foreign_batches(path, CLASS, boundaries=[4], batch_steps=60)
    assert sorted(len(features["length"]) for features, _, _ in theirs) == [1, 20, 20]


def test_files_or_arguments_that_do_not_fit_give_a_clear_error(tmp_path):
    record = _as_example(np.ones((2, 2), np.float32), [b"w"] * 2, 0)
    path = _write(tmp_path / "t", [record])
    other = Schema.parse("steps: {z: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a]}")
    with pytest.raises(UserError, match="the first record: has no z; it has word, x, y"):
        foreign_batches(path, other)
    with pytest.raises(UserError, match="nothing.*: matches no file"):
        foreign_batches(str(tmp_path / "nothing*"), CLASS)
    with pytest.raises(UserError, match=r"boundaries are \[5, 3\], expected ascending"):
        foreign_batches(path, CLASS, boundaries=[5, 3])
    with pytest.raises(UserError, match="no record"):
        foreign_batches(_write(tmp_path / "empty", []), CLASS)


def test_a_label_that_is_not_a_class_is_an_error(tmp_path):
    path = _write(tmp_path / "t", [_as_example(np.ones((2, 2), np.float32), [b"w"] * 2, 7)])
    with pytest.raises(UserError, match=rf"^{path}: the first record: y: 7 .*expected a class of the schema: 0 to"):
        foreign_batches(path, CLASS, boundaries=[9])


def test_paths_may_be_path_objects_and_unreadable_files_give_a_clear_error(tmp_path):
    path = _write(tmp_path / "t", [_as_example(np.ones((2, 2), np.float32), [b"w"] * 2, 0)])
    assert (
        len(_rows(foreign_batches(tmp_path / "t", CLASS))) == len(_rows(foreign_batches([tmp_path / "t"], CLASS))) == 1
    )
    with pytest.raises(UserError, match="is neither an Example nor a SequenceExample"):
        foreign_batches(_write(tmp_path / "other", [b"\xff\xff"]), CLASS)
    with pytest.raises(UserError, match="batch_steps is 0, expected at least 1"):
        foreign_batches(path, CLASS, batch_steps=0)
    (tmp_path / "gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError, match="is compressed; decompress it first"):
        foreign_batches(tmp_path / "gz", CLASS)


@pytest.mark.parametrize("claimed", [2**30, 2**40, 2**62, 2**64 - 1])
def test_a_crafted_length_is_refused_before_tensorflow_opens_the_file(tmp_path, claimed):
    length = struct.pack("<Q", claimed)
    path = tmp_path / "crafted"
    path.write_bytes(length + struct.pack("<I", masked_crc(length)) + bytes(100))
    with pytest.raises(UserError, match="record at offset 0: its length is"):
        foreign_batches(str(path), CLASS)


def _example(**fields):
    return tf.train.Example(
        features=tf.train.Features(feature={name: _feature(values) for name, values in fields.items()})
    ).SerializeToString()


def _sequence_example(lists, **context):
    return tf.train.SequenceExample(
        context=tf.train.Features(feature={name: _feature(values) for name, values in context.items()}),
        feature_lists=tf.train.FeatureLists(
            feature_list={
                name: tf.train.FeatureList(feature=[_feature([value]) for value in values])
                for name, values in lists.items()
            }
        ),
    ).SerializeToString()


X, K = "steps: {x: {dtype: float32}}\n", "steps: {k: {dtype: int64, num_values: 5}}\n"
REGRESSION_LABEL, CLASS_LABEL = "label: {name: y, kind: regression}", "label: {name: y, kind: class, classes: [a, b]}"
DISTRIBUTION_LABEL = "label: {name: y, kind: distribution, classes: [a, b]}"
STEP_LABEL = "label: {name: y, kind: step_class, classes: [a, b]}"
NAN = float("nan")
WRONG = {
    "a category out of range": (K + REGRESSION_LABEL, {"k": [9], "y": [1.0]}, r"k: 9 \(value 0\), expected 0 to 4"),
    "a negative category": (K + REGRESSION_LABEL, {"k": [0, -1], "y": [1.0]}, r"k: -1 \(value 1\), expected 0 to 4"),
    "the next category": (K + "label: {next_of: k}", {"k": [1, 5]}, r"k: 5 \(value 1\), expected 0 to 4"),
    "NaN": (X + REGRESSION_LABEL, {"x": [NAN], "y": [1.0]}, r"x: NaN \(value 0\), expected a finite number"),
    "a NaN label": (X + REGRESSION_LABEL, {"x": [1.0], "y": [NAN]}, "y: NaN .*expected a finite number"),
    "a sum of 7": (X + DISTRIBUTION_LABEL, {"x": [1.0], "y": [3.0, 4.0]}, "y: .* add up to 1, not 7"),
    "a negative probability": (X + DISTRIBUTION_LABEL, {"x": [1.0], "y": [-1.0, 2.0]}, "y: -1.0 .*a probability"),
    "integers": (X + REGRESSION_LABEL, {"x": [1], "y": [1.0]}, "x: is stored as int64_list, expected float_list"),
    "integers for a label": (X + REGRESSION_LABEL, {"x": [1.0], "y": [1]}, "y: is stored as int64_list, expected"),
    "floats for a class": (
        X + CLASS_LABEL,
        {"x": [1.0], "y": [1.0]},
        "y: is stored as float_list, expected int64_list",
    ),
    "an unknown name": (X + CLASS_LABEL, {"x": [1.0], "y": [b"c"]}, "y: (b'c' .*expected a class|holds names, expec)"),
    "uneven lengths": (X + STEP_LABEL, {"x": [1.0, 2.0], "y": [0]}, "x has 2, y has 1 steps"),
    "two labels": (X + CLASS_LABEL, {"x": [1.0], "y": [0, 1]}, "y: 2 values, expected 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_record_that_prepare_would_reject_is_an_error_with_its_file_and_number(tmp_path, name):
    text, fields, message = WRONG[name]
    good = {"k": [0], "x": [1.0], "y": [0.5]}
    if "regression" not in text:
        good["y"] = [0.5, 0.5] if "distribution" in text else [0]
    path = _write(tmp_path / "t", [_example(**good)] * 2 + [_example(**fields)])
    with pytest.raises(UserError, match=rf"^{path}: record 3: .*{message}"):
        foreign_batches(path, Schema.parse(text))
    path = _write(tmp_path / "first", [_example(**fields)])
    with pytest.raises(UserError, match=rf"^{path}: the first record: .*{message}"):
        foreign_batches(path, Schema.parse(text))


def test_a_first_label_that_is_empty_or_in_the_context_is_an_error_with_its_name(tmp_path):
    schema = Schema.parse(X + STEP_LABEL)
    path = _write(tmp_path / "t", [_sequence_example({"x": [0.5], "y": []})])
    with pytest.raises(UserError, match=rf"^{path}: the first record: x has 1, y has 0 steps"):
        foreign_batches(path, schema)
    path = _write(tmp_path / "context", [_sequence_example({"x": [0.5]}, y=[0])])
    with pytest.raises(UserError, match="the first record: y: is in the context, expected in the feature lists"):
        foreign_batches(path, schema)
    path = _write(tmp_path / "mixed", [_sequence_example({"x": [0.5], "y": [0]}), _example(x=[0.5], y=[0])])
    with pytest.raises(UserError, match="record 2: is an Example, expected a SequenceExample, as the first record is"):
        foreign_batches(path, schema)


@pytest.mark.parametrize("absent", [0, 3])
def test_an_absent_context_feature_is_missing_where_the_schema_allows_it(tmp_path, absent):
    context = (
        "context: {age: {dtype: float32, shape: [2], missing: indicator}, "
        "k: {dtype: int64, num_values: 3, missing: indicator}, city: {dtype: string, vocabulary: 3, missing: fill}}\n"
    )
    schema = Schema.parse(X + context + CLASS_LABEL)
    records = [{"x": [0.5] * (n + 1), "y": [0]} for n in range(5)]
    for n, fields in enumerate(records):
        if n != absent:
            fields |= {"age": [n + 0.0, 1.0], "k": [1], "city": [b"york"]}
    encode = (_example, lambda x, **context: _sequence_example({"x": x}, **context))[absent == 0]
    path = _write(tmp_path / "t", [encode(**fields) for fields in records])
    found = {}
    for features, _, _ in foreign_batches(path, schema, batch_size=2, boundaries=[4]):
        for row, length in enumerate(features["length"].numpy()):
            found[int(length) - 1] = [np.array(features[name])[row] for name in ("age", "k", "city")]
    for n, (age, k, city) in found.items():
        np.testing.assert_array_equal(age, [NAN, NAN] if n == absent else [n, 1.0])
        assert (k, city) == ((-1, b"\xff") if n == absent else (1, b"york"))
    assert sorted(found) == list(range(5))


@pytest.mark.parametrize("more", ["", "nan_is_missing: true\n"])
def test_nan_is_a_missing_number_where_the_schema_allows_one_and_infinity_is_an_error(tmp_path, more):
    """A TFRecord has no null, so this does not depend on `nan_is_missing`, which is about raw records."""
    schema = Schema.parse(
        "steps: {x: {dtype: float32, missing: fill}, strict: {dtype: float32}}\n"
        f"label: {{name: y, kind: step_regression}}\n{more}"
    )
    good = {"x": [NAN, 1.0], "strict": [0.5, 0.5], "y": [2.0, NAN]}
    path = _write(tmp_path / "t", [_example(**good)])
    ((features, label, weight),) = foreign_batches(path, schema)
    np.testing.assert_array_equal(features["x"], [[NAN, 1.0]])
    assert (label.numpy()[0, 0], weight.numpy().tolist()) == (2.0, [[1.0, 0.0]])
    for name, value in (("x", math.inf), ("strict", NAN), ("y", -math.inf)):
        path = _write(tmp_path / name, [_example(**good | {name: [value, 1.0]})])
        with pytest.raises(UserError, match=rf"the first record: {name}: .* \(value 0\), expected a finite number"):
            foreign_batches(path, schema)


def test_strings_of_a_vocabulary_in_lower_case_give_the_batches_of_the_dataset(tmp_path):
    """The strings that are too rare have no class of their own, and the label is the next string."""
    schema = """id: id
steps: {word: {dtype: string, vocabulary: {min_count: 3, lowercase: true}, missing: fill}}
label: {next_of: word}
splits: {train: 1}
"""
    words = [["The", "CAT", None], ["the", "cat", "\u00c4", "THE"], ["cat", "\u00e4", "once", "cat"]]
    records = [{"id": number, "word": row} for number, row in enumerate(words)]
    made = datasets.make(tmp_path, records, schema, num_shards=1)
    assert verify(made.path).faults == []
    dataset = open_dataset(made.path)
    terms = dataset.vocabularies()
    assert terms == {"word": (b"cat", b"the")}
    theirs = [
        tf.train.Example(
            features=tf.train.Features(
                feature={"word": _feature([MISSING_STRING if word is None else word.encode() for word in row])}
            )
        ).SerializeToString()
        for row in words
    ]
    path = _write(tmp_path / "their.tfrecord", theirs)

    def rows(read):
        columns = ((x["length"], label, weight, x["word"]) for x, label, weight in read)
        return sorted([column.numpy()[0].tolist() for column in batch] for batch in columns)

    found = rows(foreign_batches(path, dataset.schema, batch_size=1, vocabularies=terms))
    assert found == rows(batches(dataset, "train", batching="exact", batch_size=1))
    assert found[0] == [3, [0, 2, 1], [1.0, 0.0, 0.0], [b"the", b"cat", MISSING_STRING]]
