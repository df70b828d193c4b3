"""Batches: as planned, every record once, its values unchanged; damaged files are rejected."""

import collections
import json
import pathlib
import struct

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.errors import UserError
from pipeline.format.tfrecord import masked_crc
from pipeline.schema.schema import Schema
from trainer.batching.bucket import make_bucket_plan
from trainer.batching.plan_epoch import plan_epoch
from trainer.config import BATCHING_METHODS, TrainConfig
from trainer.data.dataset import open_dataset
from trainer.model.build import build_model, head_model
from trainer.model.losses import compute_losses
from trainer.reading.batches import batches

STEPS = """x: {dtype: float32, shape: [2]}
  grid: {dtype: float32, shape: [2, 2]}
  page: {dtype: int64, num_values: 9}
  pages: {dtype: int64, num_values: 900, shape: [3]}
  word: {dtype: string, num_values: 9}
  words: {dtype: string, num_values: 9, shape: [3]}"""

LENGTHS = {
    "mixed": np.random.default_rng(0).integers(1, 30, 90).tolist(),
    "one_length": [7] * 23,
    "single_record": [5],
    "one_step": [1] * 17,
    # All lengths, so that there are records at, below and above each boundary.
    "outlier": [*range(1, 61)] * 2 + [300],
    "none": [],
}
LIMITS = [{"batch_steps": 60}, {"batch_size": 4}, {"batch_steps": 60, "batch_size": 4}]


def with_all_features(record, random):
    num_steps = len(record["x"])
    return record | {
        "grid": random.normal(size=(num_steps, 2, 2)).astype(np.float32).tolist(),
        "page": random.integers(0, 9, num_steps).tolist(),
        "pages": random.integers(0, 900, (num_steps, 3)).tolist(),
        "word": [f"wörd{n}" for n in random.integers(0, 99, num_steps)],
        "words": [[f"w{n}" for n in row] for row in random.integers(0, 99, (num_steps, 3))],
    }


@pytest.fixture(scope="module")
def split_of(tmp_path_factory):
    """Each distribution of lengths as a split of one of two datasets: {name: (dataset, split)}."""
    places = {}
    for names in (("mixed", "one_length", "none"), ("outlier", "single_record", "one_step")):
        random, records = np.random.default_rng(1), []
        splits = dict(zip(names, ("train", "validation", "test"), strict=True))
        for name, split in splits.items():
            found = datasets.random_records(LENGTHS[name], split=split)
            records += [with_all_features(record, random) for record in found]
        folder = tmp_path_factory.mktemp("reader")
        dataset = datasets.make(folder, records, datasets.schema_text("class", STEPS), num_shards=3)
        places |= {name: (dataset, split) for name, split in splits.items()}
    return places


def plain(features, label, weight):
    """Returns the records of a batch as plain values, after a check of the padding and of the filler rows."""
    rows = []
    for row, length in enumerate(features["length"].numpy().tolist()):
        if not np.any(features["x"][row]):  # a filler row: no value of a record is 0
            assert length == 1
            assert not np.any(weight[row])
            continue
        values = {}
        for name, value in features.items():
            if name == "length":
                continue
            value = value.numpy()[row]
            padding = value[length:].ravel().tolist()
            assert set(padding) <= ({b""} if value.dtype == object else {0})
            values[name] = value[:length].tolist()
        for name in {"word", "words"} & set(values):
            values[name] = np.char.decode(np.array(values[name], bytes)).tolist()
        target, counts = label.numpy()[row], weight.numpy()[row]
        if target.ndim and len(target) == features["x"].shape[1] and counts.ndim:
            assert not counts[length:].any()
            target, counts = target[:length], counts[:length]
        rows.append((length, values, target.tolist(), counts.tolist()))
    return rows


def read(path, split, **arguments):
    return [row for batch in batches(path, split, **arguments) for row in plain(*batch)]


def expected(record):
    """Returns what `plain` should return for a raw record."""
    values = {name: record[name] for name in record if name not in ("id", "split", "y")}
    label, weight = record["y"], 1.0
    index = {None: 0, "a": 0, "b": 1, "c": 2}
    if isinstance(label, str):
        label = index[label]
    elif isinstance(label, list) and isinstance(label[0], str | None):
        label, weight = [index[y] for y in label], [float(y is not None) for y in label]
    return len(record["x"]), values, label, weight


def as_text(rows):
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@pytest.mark.parametrize("method", BATCHING_METHODS)
@pytest.mark.parametrize("name", datasets.some(LENGTHS, ["mixed", "none", "outlier"]))
@pytest.mark.parametrize("every_limit", datasets.some([False, True], [False]))
def test_the_reader_yields_the_planned_batches(split_of, name, method, every_limit):
    dataset, split = split_of[name]
    opened = open_dataset(dataset.path)
    assert opened.split(split).length_counts == collections.Counter(LENGTHS[name])
    multiples = [{"pad_to_multiple": 8}] if method in ("window", "bucket") else []
    few = LIMITS[-1:] + multiples if name == "outlier" else LIMITS[-1:]
    for limits in LIMITS + multiples if every_limit else few:
        plan = plan_epoch(opened, split, batching=method, **limits)
        found = batches(dataset.path, split, batching=method, **limits)
        assert found.cardinality().numpy() == plan.num_batches
        read = [features for features, _, _ in found]
        shapes = [tuple(features["x"].shape[:2]) for features in read]
        steps = sum(int(features["length"].numpy().sum()) for features in read)
        assert len(shapes) == plan.num_batches
        assert set(shapes) == plan.shapes
        assert sum(rows for rows, _ in shapes) == plan.records == len(LENGTHS[name])
        assert steps == plan.steps == sum(LENGTHS[name])
        assert sum(rows * length for rows, length in shapes) == plan.padded_steps
        assert plan.useful_share == (steps / plan.padded_steps if shapes else 1.0)
        largest = max((rows * length for rows, length in shapes), default=0)
        assert largest == plan.largest_batch[0] * plan.largest_batch[1]


@pytest.mark.parametrize("method", BATCHING_METHODS)
@pytest.mark.parametrize("name", datasets.some(["mixed", "one_step", "outlier"], ["mixed"]))
def test_every_record_is_yielded_once_with_its_values(split_of, name, method):
    dataset, split = split_of[name]
    rows = read(dataset.path, split, batching=method, batch_steps=150)
    assert as_text(rows) == as_text(map(expected, dataset.of(split)))


@pytest.mark.parametrize("kind", ["class", "distribution", "regression", "step_class"])  # others: test_kinds.py
def test_every_kind_of_label_is_unchanged_and_null_has_weight_0(kind):
    dataset = datasets.of_kind(kind)
    for arguments in ({"batch_size": 6}, {"batching": "pad", "pad_length": 20, "batch_size": 9}):
        rows = read(dataset.path, "train", **arguments)
        assert as_text(rows) == as_text(map(expected, dataset.of("train")))


def test_records_at_below_and_above_each_boundary_are_in_the_planned_bucket(split_of):
    dataset, split = split_of["outlier"]
    plan = make_bucket_plan(collections.Counter(LENGTHS["outlier"]), batching="bucket", batch_steps=200)
    assert len(plan.boundaries) > 10 and plan.boundaries[-1] == 301
    where = collections.defaultdict(set)
    for features, _, _ in batches(dataset.path, split, batching="bucket", batch_steps=200):
        for length in features["length"].numpy().tolist():
            where[length].add(features["x"].shape[1])
    for boundary, above in zip(plan.boundaries, plan.boundaries[1:], strict=False):
        # Boundaries are exclusive: a record of `boundary` steps is in the next bucket.
        assert where[boundary - 1] == {boundary - 1}
        assert boundary not in where or where[boundary] == {above - 1}
        assert boundary + 1 not in where or boundary + 1 >= above or where[boundary + 1] == {above - 1}


@pytest.mark.parametrize("kind", datasets.some(["class", "step_class"], ["step_class"]))
def test_the_total_loss_is_the_same_for_every_batching_method(kind):
    dataset = open_dataset(datasets.of_kind(kind).path)
    keras.utils.set_random_seed(3)
    model = build_model(dataset.schema, dataset.manifest.statistics, TrainConfig(units=(4,)))
    head = tf.function(head_model(model), reduce_retracing=True)
    totals = {}
    for method in BATCHING_METHODS:
        total = 0.0
        for features, label, weight in batches(dataset, "train", batching=method, batch_steps=40):
            total += float(tf.reduce_sum(weight * compute_losses(head(features), label, kind)))
        totals[method] = total
    assert totals["pad"] > 0
    assert totals == pytest.approx(dict.fromkeys(BATCHING_METHODS, totals["pad"]), rel=1e-5)


@pytest.mark.parametrize("method", datasets.some(["window", "bucket", "pad"], ["window"]))
@pytest.mark.parametrize("num_shards", datasets.some([1, 3], [3]))
def test_the_order_depends_only_on_seed_and_epoch(tmp_path, method, num_shards):
    written = datasets.make(tmp_path, datasets.random_records([7] * 20), num_shards=num_shards)

    def order(**arguments):
        return [row[1]["x"] for row in read(written.path, "train", batching=method, batch_size=5, **arguments)]

    assert order(seed=1, epoch=2) == order(seed=1, epoch=2)
    assert order(seed=1, epoch=2) != order(seed=1, epoch=3)
    assert order(seed=1, epoch=2) != order(seed=2, epoch=2)
    assert sorted(order(seed=1, epoch=2)) == sorted(order(seed=5, epoch=9))


@pytest.mark.parametrize("method", datasets.some(BATCHING_METHODS, ["window", "bucket"]))
@pytest.mark.parametrize("num_readers", datasets.some([1, 2, 3], [3]))
def test_several_readers_together_yield_each_record_once(split_of, method, num_readers):
    dataset, split = split_of["mixed"]
    together = []
    for reader in range(num_readers):
        arguments = {
            "batching": method,
            "batch_steps": 60,
            "reader_index": reader,
            "num_readers": num_readers,
            "epoch": 4,
        }
        found = batches(dataset.path, split, **arguments)
        rows = [plain(*batch) for batch in found]
        assert found.cardinality().numpy() == len(rows)
        assert sum(map(len, rows)) in (90 // num_readers, 90 // num_readers + 1)
        together += [row for batch in rows for row in batch]
    assert as_text(together) == as_text(map(expected, dataset.of(split)))


def test_with_more_readers_than_records_some_yield_none(split_of):
    dataset, split = split_of["single_record"]
    opened = open_dataset(dataset.path)
    for method, rows_each in (("window", 1), ("bucket", None)):
        found = [list(batches(opened, split, batching=method, reader_index=i, num_readers=3)) for i in range(3)]
        assert sorted(sum(len(plain(*batch)) for batch in part) for part in found) == [0, 0, 1]
        if rows_each is not None:
            assert [[len(weight) for _, _, weight in part] for part in found] == [[rows_each]] * 3
    with pytest.raises(ValueError, match="reader_index is 3, expected 0 to num_readers - 1, which is 2"):
        batches(dataset.path, split, reader_index=3, num_readers=3)


@pytest.mark.parametrize("kind", ["class", "step_class"])
@pytest.mark.parametrize("truncate", ["head", "tail"])
def test_a_record_longer_than_pad_length_loses_its_head_or_its_tail(kind, truncate):
    dataset = datasets.of_kind(kind)
    rows = read(dataset.path, "train", batching="pad", pad_length=5, truncate=truncate, batch_size=7)

    def cut(values):
        return values[-5:] if truncate == "head" else values[:5]

    kept = []
    for record in dataset.of("train"):
        label = cut(record["y"]) if kind == "step_class" else record["y"]
        kept.append(expected(record | {"x": cut(record["x"]), "y": label}))
    assert as_text(rows) == as_text(kept)
    assert max(row[0] for row in rows) == 5


def test_pad_length_pads_all_records_and_truncates_only_if_requested():
    path = datasets.of_kind("class").path
    found = batches(path, "train", batching="pad", pad_length=20, batch_size=8)
    assert {features["x"].shape[1] for features, _, _ in found} == {20}
    with pytest.raises(ValueError, match="pad_length is 5, but the longest record has 12 steps; choose truncate"):
        batches(path, "train", batching="pad", pad_length=5)


def test_a_batch_is_padded_to_its_bucket_and_not_to_its_longest_record(split_of):
    """So there are few shapes. A new shape needs a compilation on some devices."""
    dataset, split = split_of["outlier"]
    found = batches(dataset.path, split, batching="bucket", batch_size=3)
    shapes = {features["x"].shape[1] for features, _, _ in found}
    assert shapes == {bucket.pad_length for bucket in make_bucket_plan(LENGTHS_OF_OUTLIER, batching="bucket").buckets}


LENGTHS_OF_OUTLIER = collections.Counter(LENGTHS["outlier"])


def test_keras_fit_takes_the_batches():
    dataset = open_dataset(datasets.of_kind("step_class").path)
    model = build_model(dataset.schema, dataset.manifest.statistics, TrainConfig(units=(4,)))
    model.compile("rmsprop", "sparse_categorical_crossentropy", jit_compile=False)
    before = model.get_weights()
    history = model.fit(batches(dataset, "train", batch_size=20), shuffle=False, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))


def files(path, pattern):
    return sorted(pathlib.Path(path).glob(f"data/*/{pattern}"))


def cut_in_a_record(path):
    shard = files(path, "train-*.tfrecord")[0]
    shard.write_bytes(shard.read_bytes()[:-7])


def cut_between_records(path):
    shard = files(path, "train-*.tfrecord")[0]
    data = shard.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    shard.write_bytes(data[: length + 16])


def claim_a_terabyte(path):
    """Writes a record's header with a wrong length and its correct CRC, which crashes TensorFlow."""
    shard = files(path, "train-*.tfrecord")[0]
    data = bytearray(shard.read_bytes())
    length = struct.pack("<Q", 2**40)
    data[:12] = length + struct.pack("<I", masked_crc(length))
    shard.write_bytes(data)


def swap_indexes(path):
    first, second = files(path, "train-*.index.parquet")
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def swap_shards(path):
    first, second = files(path, "train-*.tfrecord")
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)


def append_to_a_shard(path):
    shard = files(path, "train-*.tfrecord")[0]
    shard.write_bytes(shard.read_bytes() * 2)


def miscount_lengths(path):
    manifest = pathlib.Path(path, "manifest.json")
    values = json.loads(manifest.read_text())
    counts = values["splits"]["train"]["length_counts"]
    middle = next(int(length) for length, count in counts.items() if count > 2 and int(length) > 1)
    for length, change in (
        (middle - 1, 1),
        (middle, -2),
        (middle + 1, 1),
    ):  # the numbers of records and steps stay the same
        counts[str(length)] = counts.get(str(length), 0) + change
    manifest.write_text(json.dumps(values))


DAMAGES = [
    (cut_in_a_record, r"train-00000-of-00002\.tfrecord has [0-9,]+ bytes, expected [0-9,]+\."),
    (cut_between_records, r"train-00000-of-00002\.tfrecord has [0-9,]+ bytes, expected [0-9,]+\."),
    (append_to_a_shard, r"train-00000-of-00002\.tfrecord has [0-9,]+ bytes, expected [0-9,]+\."),
    (claim_a_terabyte, r"the record at offset 0 claims 1,099,511,627,776 bytes, expected [0-9]+\."),
    (swap_indexes, r"train-0000\d-of-00002\.index\.parquet is not the file that was written"),
    (swap_shards, r"train-0000\d-of-00002\.tfrecord has [0-9,]+ bytes, expected [0-9,]+\."),
    (miscount_lengths, r"the lengths in the indexes are not those that the manifest counts"),
    (lambda path: files(path, "train-*.tfrecord")[1].unlink(), r"tfrecord cannot be read: No such"),
    (lambda path: files(path, "train-*.parquet")[1].unlink(), r"index\.parquet cannot be read: No such"),
    (lambda path: files(path, "train-*.parquet")[1].write_bytes(b""), r"parquet is not the file that was written"),
    (lambda path: pathlib.Path(path, "manifest.json").unlink(), r"not a dataset: it has no manifest\.json"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damaged_files_are_rejected_before_tensorflow_opens_them(tmp_path, damage, message):
    path = datasets.copy(datasets.of_kind("class"), tmp_path)
    damage(path)
    # The window reader checks each record when it reads it.
    for method in ["bucket"] if damage is claim_a_terabyte else ["bucket", "window"]:
        with pytest.raises(UserError, match=message):
            batches(path, "train", batching=method)


@pytest.mark.parametrize("damage", datasets.some([damage for damage, _ in DAMAGES], [cut_in_a_record]))
def test_train_refuses_damaged_files_in_one_line(tmp_path, capsys, damage):
    path = datasets.copy(datasets.of_kind("class"), tmp_path)
    damage(path)
    flags = ["--epochs", "1", "--units", "2"]
    status, out, err = datasets.call(capsys, "train", path, "--output", tmp_path / "run", *flags)
    assert (status, out) == (1, "")
    assert err[-1].startswith(f"lengthwise train: {path}")


@pytest.mark.parametrize("method", datasets.some(["bucket", "window"], ["window"]))
def test_a_flipped_bit_is_an_error_of_one_line(tmp_path, capsys, method):
    path = datasets.copy(datasets.of_kind("class"), tmp_path)
    shard = files(path, "train-*.tfrecord")[0]
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    flags = ["--epochs", "1", "--units", "2"]
    with pytest.raises(tf.errors.DataLossError):
        read(path, "train", batching="bucket")
    with pytest.raises(tf.errors.UnknownError, match="record at offset 0: the CRC of the data does not match"):
        read(path, "train")
    status, _, err = datasets.call(capsys, "train", path, "--output", tmp_path / "run", *flags, "--batching", method)
    assert status == 1
    if method == "bucket":
        problem = f"{path}: damaged: corrupted record at 12. `lengthwise verify` shows where."
    else:
        problem = f"{shard}: record at offset 0: the CRC of the data does not match. `lengthwise verify` lists all "
        problem += "errors; prepare the dataset again."
    assert err[-1] == f"lengthwise train: {problem}"


def test_a_missing_split_or_a_wrong_argument_is_an_error():
    path = datasets.of_kind("class").path
    with pytest.raises(UserError, match="has no split 'dev'; it has train, validation, test"):
        batches(path, "dev")
    with pytest.raises(ValueError, match="batching is 'stateful', expected one of window, bucket, pad, exact"):
        batches(path, "train", batching="stateful")
    with pytest.raises(ValueError, match="first_batch is 9, expected 0 to 1, the number of batches of the epoch"):
        batches(path, "train", batching="pad", batch_size=99, first_batch=9)
    with pytest.raises(ValueError, match="first_batch is 99, expected 0 to 5, the number of batches of the epoch"):
        batches(path, "train", batch_size=9, first_batch=99)


def test_features_may_have_any_printable_name(tmp_path):
    """Also names of the model's own layers, and names that TensorFlow does not accept for an operation."""
    names = ["value", "head", "features", "x y", "größe", "lstm_0", "x", "x_steps", "#"]
    steps = "\n  ".join(f"{json.dumps(name, ensure_ascii=False)}: {{dtype: float32}}" for name in names)
    records = [
        {"id": i, "split": "train", "y": 1.5, **{name: [float(j)] * (i + 1) for j, name in enumerate(names)}}
        for i in range(3)
    ]
    written = datasets.make(tmp_path, records, datasets.schema_text("regression", steps))
    dataset = open_dataset(written.path)
    features, _, _ = next(iter(batches(dataset, "train", batching="pad", batch_size=3)))
    model = build_model(dataset.schema, dataset.manifest.statistics, TrainConfig(units=(4,)))
    assert model(features).shape == (3,)
    assert isinstance(dataset.schema, Schema) and sorted(features) == sorted([*names, "length"])
