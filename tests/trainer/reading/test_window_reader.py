"""The window reader yields the same batches as a plain loop over the records, from any batch on."""

import gc
import os

import datasets
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.format.examples import decode_example
from pipeline.format.stored_fields import StoredField
from pipeline.format.tfrecord import walk
from trainer.batching.plan_epoch import plan_epoch
from trainer.batching.window import make_window_plan
from trainer.data.dataset import open_dataset
from trainer.reading.batches import batches, planned_batches
from trainer.reading.buffer_pool import BufferPool
from trainer.reading.window_reader import WindowReader

CASES = [(datasets.of_kind, kind) for kind in datasets.LABELS]
CASES += [(datasets.of_every_feature, kind) for kind in datasets.LABELS | datasets.NEXT_LABELS]


def records_of(dataset, split):
    """Returns the stored values of every record, shard after shard."""
    found = []
    for shard in dataset.split(split).shards:
        with open(f"{dataset.path}/{shard.path}", "rb") as file:
            found += [decode_example(record.data) for record in walk(file, num_bytes=shard.bytes)]
    return found


def plain_batch(dataset, records, rows, *, time, num_rows):
    """Returns the features of a batch, built from lists value by value, with the lengths of filler rows."""
    schema, features = dataset.schema, {}
    for name, feature in schema.features.items():
        kind = {"float32": np.float32, "int64": np.int64, "string": object}[feature.dtype]
        padding = b"" if feature.dtype == "string" else 0
        shape = (time, *feature.shape) if name in schema.steps else tuple(feature.shape)
        batch = np.full((num_rows, *shape), padding, kind)
        for position, row in enumerate(rows):
            values = np.array(list(records[row][name]), kind)
            if name in schema.steps:
                values = values.reshape(-1, *feature.shape)
                batch[position, : len(values)] = values
            else:
                batch[position] = values.reshape(feature.shape)
        features[name] = batch
    lengths = [int(records[row]["length"][0]) for row in rows]
    features["length"] = np.array(lengths + [1] * (num_rows - len(rows)), np.int32)
    return features


def check_equal(dataset, split, plan, *, reader_index=0, first_batch=0, records=None):
    """Checks that the reader yields the planned batches, and returns the records that it yielded."""
    records = records or records_of(dataset, split)
    found = planned_batches(
        dataset, split, plan, reader_index=reader_index, num_readers=plan.num_readers, first_batch=first_batch
    )
    assert found.cardinality().numpy() == plan.num_batches - first_batch
    shapes, seen, number = plan.batch_shapes(reader_index), [], first_batch
    for features, label, weight, row in found:
        rows = plan.rows(number, reader_index).tolist()
        num_rows = int(shapes.rows[number])
        expected = plain_batch(dataset, records, rows, time=int(shapes.pad_length[number]), num_rows=num_rows)
        assert features.keys() == expected.keys()
        for name, value in features.items():
            assert value.numpy().dtype == expected[name].dtype
            np.testing.assert_array_equal(value.numpy(), expected[name])
        assert row.numpy().tolist() == rows + [-1] * (num_rows - len(rows))
        assert len(label) == len(weight) == num_rows
        assert not weight.numpy()[len(rows) :].any()
        assert sum(features["length"].numpy()[: len(rows)]) == shapes.steps[number]
        seen += rows
        number += 1
    assert number == plan.num_batches
    return seen


@pytest.mark.parametrize(
    ("make", "kind"),
    datasets.some(
        CASES,
        [
            (datasets.of_kind, "step_class"),
            *((datasets.of_every_feature, kind) for kind in ("class", "distribution", "step_multilabel", "next_x")),
        ],
        unpack=True,
    ),
)
def test_the_reader_equals_a_plain_loop(make, kind):
    dataset = open_dataset(make(kind).path)
    plan = make_window_plan(dataset.indexes("train"), batch_steps=40, window_records=11, pad_to_multiple=4)
    assert len(np.unique(plan.window)) > 2
    assert sorted(check_equal(dataset, "train", plan)) == list(range(40))


@settings(max_examples=settings.default.max_examples // 4)
@given(
    st.integers(1, 50),
    st.integers(1, 4),
    st.sampled_from([{"batch_steps": 30}, {"batch_size": 3}, {"batch_steps": 100, "batch_size": 5}]),
    st.floats(0, 1),
    st.integers(0, 3),
)
def test_the_reader_equals_a_plain_loop_for_any_windows_readers_and_first_batch(
    window_records, num_readers, limits, begin, epoch
):
    dataset = open_dataset(datasets.of_kind("step_class").path)
    records = records_of(dataset, "train")
    plan = make_window_plan(
        dataset.indexes("train"), **limits, num_readers=num_readers, window_records=window_records, epoch=epoch
    )
    first = round(begin * plan.num_batches)
    seen = []
    for reader in range(num_readers):
        seen += check_equal(dataset, "train", plan, reader_index=reader, first_batch=first, records=records)
    parts = [plan.rows(number, r).tolist() for number in range(first, plan.num_batches) for r in range(num_readers)]
    assert sorted(seen) == sorted(sum(parts, []))


def test_shards_of_very_different_size_wide_features_and_strings_of_any_kind(tmp_path):
    """Also 1,000 values per step, and strings that are empty, long, or contain a NUL character."""
    random = np.random.default_rng(0)
    words = ["", "\0", "a\0b\0", "wörd", "\U0001f600" * 50, "x" * 20_000, "\x7f\n\t"]
    for shape, extra in (("[1000]", ""), ("[2]", "\n  word: {dtype: string, num_values: 9}")):
        records = []
        for number, length in enumerate([1, 70, 3, 3, 200]):
            x = random.normal(size=(length, 1000 if shape == "[1000]" else 2)).astype(np.float32).tolist()
            more = {"word": [words[n % 7] for n in range(length)]} if extra else {}
            records.append({"id": number, "split": "train", "x": x, "y": "a", **more})
        schema = datasets.schema_text("class", f"x: {{dtype: float32, shape: {shape}}}{extra}")
        dataset = open_dataset(datasets.make(tmp_path / shape, records, schema, num_shards=4).path)
        assert sorted(shard.records for shard in dataset.split("train").shards) != [1, 1, 1, 2]
        plan = make_window_plan(dataset.indexes("train"), batch_steps=80)
        assert sorted(check_equal(dataset, "train", plan)) == [0, 1, 2, 3, 4]


def test_a_record_of_200_000_steps_is_a_batch_of_one(tmp_path):
    records = datasets.random_records([3] * 40 + [200_000])
    dataset = open_dataset(datasets.make(tmp_path, records).path)
    plan = plan_epoch(dataset, "train", batch_steps=64)
    shapes = [tuple(features["x"].shape[:2]) for features, _, _ in batches(dataset, "train", batch_steps=64)]
    assert plan.largest_batch == (1, 200_000)
    assert shapes.count((1, 200_000)) == 1
    assert sum(rows * steps for rows, steps in shapes) == plan.padded_steps == 200_000 + 40 * 3


@pytest.fixture
def bytes_read(monkeypatch):
    """The number of bytes requested from each file."""
    counts, pread, paths, opened = {}, os.pread, {}, os.open

    def counting_open(path, flags, *more, **options):
        descriptor = opened(path, flags, *more, **options)
        paths[descriptor] = str(path)
        return descriptor

    def counting_pread(descriptor, size, offset):
        counts[paths[descriptor]] = counts.get(paths[descriptor], 0) + size
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "open", counting_open)
    monkeypatch.setattr(os, "pread", counting_pread)
    return counts


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_a_reader_that_resumes_reads_only_the_records_that_it_yields(bytes_read, share):
    dataset = open_dataset(datasets.of_kind("class").path)
    plan = plan_epoch(dataset, "train", batch_size=2, epoch=3)
    first = round(share * plan.num_batches)
    sizes = np.concatenate([shard.num_bytes + 16 for shard in dataset.indexes("train")])
    whole = list(batches(dataset, "train", batch_size=2, epoch=3))
    bytes_read.clear()
    rest = list(batches(dataset, "train", batch_size=2, epoch=3, first_batch=first))
    yielded = np.concatenate([plan.rows(number) for number in range(first, plan.num_batches)])
    assert sum(bytes_read.values()) == sizes[yielded].sum()
    assert len(rest) == plan.num_batches - first > 0
    for (features, label, weight), (others, other, its_weight) in zip(rest, whole[first:], strict=True):
        np.testing.assert_array_equal(features["x"], others["x"])
        np.testing.assert_array_equal(label, other)
        np.testing.assert_array_equal(weight, its_weight)


def test_each_reader_reads_only_its_records(bytes_read):
    dataset = open_dataset(datasets.of_kind("class").path)
    sizes = np.concatenate([shard.num_bytes + 16 for shard in dataset.indexes("train")])
    for num_readers in (1, 2, 4):  # may differ between epochs
        plan = plan_epoch(dataset, "train", batch_steps=50, epoch=num_readers, num_readers=num_readers)
        seen = []
        for reader in range(num_readers):
            bytes_read.clear()
            arguments = {"batch_steps": 50, "epoch": num_readers, "num_readers": num_readers}
            found = list(batches(dataset, "train", reader_index=reader, **arguments))
            assert len(found) == plan.num_batches
            rows = np.concatenate([plan.rows(number, reader) for number in range(plan.num_batches)])
            assert sum(bytes_read.values()) == sizes[rows].sum()
            seen += rows.tolist()
        assert sorted(seen) == list(range(40))


def test_a_dataset_may_be_iterated_again_and_by_two_iterators_at_once():
    dataset = open_dataset(datasets.of_kind("class").path)
    found = batches(dataset, "train", batch_size=3)
    once = [features["x"].numpy() for features, _, _ in found]
    for features, _, _ in found:
        np.testing.assert_array_equal(features["x"], once[0])
        break
    for (one, _, _), (other, _, _), values in zip(found, found, once, strict=True):
        np.testing.assert_array_equal(one["x"], values)
        np.testing.assert_array_equal(other["x"], values)
    assert len(list(found.repeat(2))) == 2 * len(once)


def test_one_dataset_follows_several_plans_from_any_batch_on():
    dataset = open_dataset(datasets.of_every_feature("step_class").path)
    vocabularies = dataset.vocabularies()
    for num_readers, reader_index in ((1, 0), (2, 1)):
        place = {"num_readers": num_readers, "reader_index": reader_index}
        reader = WindowReader(dataset, "train", vocabularies=vocabularies, **place)
        for epoch, batch_size, first_batch in ((0, 3, 0), (1, 3, 2), (1, 5, 0), (2, 3, 1)):
            plan = make_window_plan(
                dataset.indexes("train"), batch_size=batch_size, epoch=epoch, num_readers=num_readers
            )
            reader.follow(plan, first_batch=first_batch)
            expected = planned_batches(dataset, "train", plan, first_batch=first_batch, **place)
            for found, wanted in zip(reader.dataset, expected, strict=True):
                tf.nest.map_structure(np.testing.assert_array_equal, found, wanted)


def test_an_iterator_may_outlive_the_name_of_its_dataset():
    dataset = open_dataset(datasets.of_kind("class").path)
    iterator = iter(batches(dataset, "train", batch_size=3).map(lambda features, label, weight: features["x"]))
    gc.collect()
    assert len(list(iterator)) == plan_epoch(dataset, "train", batch_size=3).num_batches


def test_memory_is_reused_and_cleared_once_nobody_references_it():
    field = StoredField("x", "float32", (2,), per_step=True)
    pool = BufferPool()
    first = pool.allocate(field, 30, 40)
    address = first.ctypes.data
    assert address % 64 == 0 and first.shape == (30, 40, 2) and not first.any()
    first.fill(7)
    part = first[3:]
    del first
    assert pool.allocate(field, 30, 40).ctypes.data != address  # a part of it is still referenced
    del part
    again = pool.allocate(field, 41, 29)
    assert again.ctypes.data == address and not again.any()
    pool.close()
    del again
    assert not pool.allocate(StoredField("y", "float32", (), per_step=True, padding=5.0), 3, 4).std()
    assert pool.allocate(field, 0, 4).shape == (0, 4, 2)


def test_a_shard_that_is_replaced_between_epochs_is_an_error(tmp_path):
    path = datasets.copy(datasets.of_kind("class"), tmp_path)
    dataset = open_dataset(path)
    assert list(batches(dataset, "train"))
    shard = f"{path}/{dataset.split('train').shards[0].path}"
    with open(shard, "rb") as file:
        data = file.read()
    for damage, message in ((data[:-5], "ends before its last record"), (data[::-1], "record at offset 0")):
        with open(shard, "wb") as file:
            file.write(damage)
        with pytest.raises(tf.errors.UnknownError, match=f"{shard}: {message}"):
            list(batches(dataset, "train", epoch=1))
