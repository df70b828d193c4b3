"""Records in parts: `stateful` reads them as whole records, and the other batching methods only as independent ones."""

import dataclasses
import json

import datasets
import numpy as np
import pytest
import tensorflow as tf
from datasets import call

from pipeline.errors import UserError
from trainer.batching.plan_epoch import plan_epoch
from trainer.batching.stateful import make_stateful_plan
from trainer.config import BATCHING_METHODS
from trainer.data.dataset import open_dataset
from trainer.data.parts import choose_parts
from trainer.data.shard_index import forget_shards
from trainer.reading import long_record
from trainer.reading.batches import batches
from trainer.reading.chunk_reader import ChunkReader

SIZE = 5
PARTS = f"max_length: {SIZE}\nover_length: parts\n"
KINDS = [*datasets.LABELS, *datasets.NEXT_LABELS]


def in_parts(kind):
    return datasets.of_every_feature(kind, PARTS)


def chunks_of(path, **options):
    """Returns the arrays of all chunks of an epoch of the train split, as one list."""
    dataset = open_dataset(path)
    first_batch, label_every_chunk = options.pop("first_batch", 0), options.pop("label_every_chunk", False)
    plan = make_stateful_plan(dataset.lengths("train"), **options)
    reader = ChunkReader(dataset, "train", vocabularies=dataset.vocabularies(), label_every_chunk=label_every_chunk)
    return [
        value.numpy() for batch in reader.batches(plan, first_batch=first_batch) for value in tf.nest.flatten(batch[:4])
    ]


@pytest.mark.parametrize("chunk_steps", datasets.some([1, 3, 5, 7, 100], [3, 7]))
@pytest.mark.parametrize("kind", datasets.some(KINDS, ["class", "step_multilabel", "next_word", "next_x"]))
def test_stateful_reads_the_same_chunks_as_from_whole_records(kind, chunk_steps):
    for first_batch in (0, 2):
        options = {"chunk_steps": chunk_steps, "lanes": 7, "first_batch": first_batch}
        found, expected = (
            chunks_of(made.path, **options) for made in (in_parts(kind), datasets.of_every_feature(kind))
        )
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_no_part_is_in_memory_that_is_not_read(monkeypatch):
    load, live = long_record.LongRecord._load, []

    def count(self, part):
        live.append(part)
        return load(self, part)

    monkeypatch.setattr(long_record.LongRecord, "_load", count)
    read = long_record.LongRecord.read

    def check(self, first, length):
        values = read(self, first, length)
        assert len(self._loaded) <= 2  # a chunk of 3 steps begins in one part and ends in the next
        return values

    monkeypatch.setattr(long_record.LongRecord, "read", check)
    made = in_parts("class")
    chunks_of(made.path, chunk_steps=3, lanes=4)
    # Each part is loaded once.
    assert len(live) == sum(-(-len(record["x"]) // SIZE) for record in made.of("train"))


def slices_of(made, split):
    """Returns the parts of the raw records of a split as records, with `after`: the word of the next step, if any.

    A label must not be per step.
    """
    found = []
    for record in made.of(split):
        for first in range(0, len(record["x"]), SIZE):
            steps = {name: record[name][first : first + SIZE] for name in ("x", "word", "page", "bits")}
            found.append(record | steps | {"after": record["word"][first + SIZE : first + SIZE + 1]})
    return found


@pytest.mark.parametrize("method", BATCHING_METHODS)
def test_independent_parts_are_read_as_records_of_their_own(method):
    made = in_parts("next_word")
    dataset = open_dataset(made.path)
    vocabulary = dataset.vocabularies()["word"]
    options = {"batching": method, "batch_steps": 40, "parts": "independent"}
    found = []
    for features, label, weight in batches(made.path, "train", **options):
        for row, length in enumerate(features["length"].numpy().tolist()):
            words = features["word"].numpy()[row, :length].tolist()
            found.append((words, label.numpy()[row, :length].tolist(), weight.numpy()[row, :length].tolist()))
            assert not weight.numpy()[row, length:].any()
    expected = []
    for part in slices_of(made, "train"):
        words = [b"\xff" if word is None else word.encode() for word in part["word"]]
        after = [None if word is None else word.encode() for word in [*part["word"][1:], *part["after"]]]
        after += [None] * (len(words) - len(after))
        expected.append((words, after))
    assert len(found) == len(expected)
    # The position of a known string in the vocabulary, after the positions of a missing and an unknown one, is checked
    # in the tests of lookups; here, a target is the one that the same word has wherever it is not the last of a part.
    index = {}
    for words, targets, weights in found:
        for word, target, weight in zip(words[1:], targets, weights, strict=False):
            assert weight == (word != b"\xff")
            if weight:
                assert index.setdefault(word, target) == target
    assert len({index[word] for word in vocabulary}) == len(vocabulary)

    def as_targets(after):
        return [0.0 if word is None else 1.0 for word in after], [
            None if word is None else index[word] for word in after
        ]

    key = sorted((words, *as_targets(after)) for words, after in expected)
    ours = sorted(
        (words, weights, [target if weight else None for target, weight in zip(targets, weights, strict=True)])
        for words, targets, weights in found
    )
    assert json.dumps(ours, default=str) == json.dumps(key, default=str)
    labels = sum(sum(weights) for _, weights, _ in key)
    whole = open_dataset(made.path).split("train")
    assert labels == whole.labels == choose_parts(dataset, "independent").split("train").labels


@pytest.mark.parametrize("truncate", ["head", "tail"])
def test_a_truncated_part_has_the_label_of_its_last_step_unless_the_next_step_is_cut_off(truncate, tmp_path):
    schema = (
        "id: id\nsteps: {n: {dtype: int64, num_values: 99}}\ncontext: {size: {dtype: int64, num_values: 99}}\n"
        f"label: {{next_of: n}}\nsplits: {{train: 1}}\n{PARTS}"
    )
    sizes = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 24]
    made = datasets.make(tmp_path, [{"id": f"{size}", "n": [*range(size)], "size": size} for size in sizes], schema)
    options = {"batching": "pad", "pad_length": 3, "truncate": truncate, "parts": "independent"}
    parts = set()
    for features, label, weight in batches(made.path, "train", **options):
        for row, (size, length) in enumerate(zip(features["size"], features["length"].numpy().tolist(), strict=True)):
            steps = features["n"].numpy()[row, :length].tolist()
            begin, last = steps[0] // SIZE * SIZE, steps[-1]
            is_cut = truncate == "tail" and min(begin + SIZE, int(size)) > last + 1
            known = [1.0] * (length - 1) + [float(last + 1 < size and not is_cut)]
            assert weight.numpy()[row, :length].tolist() == known
            targets = label.numpy()[row, :length][np.array(known) > 0].tolist()
            assert targets == [step + 1 for step, each in zip(steps, known, strict=True) if each]
            parts.add((int(size), begin))
    assert parts == {(size, begin) for size in sizes for begin in range(0, size, SIZE)}


@pytest.mark.parametrize("method", BATCHING_METHODS)
def test_batching_methods_that_read_whole_records_refuse_parts(method):
    made = in_parts("class")
    with pytest.raises(UserError, match=f"batching {method} reads whole records. .*stateful.*--parts independent"):
        batches(made.path, "train", batching=method)
    plan = plan_epoch(open_dataset(made.path), "train", batching=method, parts="independent")
    lengths = [len(part["x"]) for part in slices_of(made, "train")]
    assert (plan.records, plan.steps) == (len(lengths), sum(lengths))
    assert choose_parts(open_dataset(made.path), "independent").split("train").labels == len(lengths)


def test_records_that_are_all_complete_can_be_read_by_every_method():
    made = datasets.of_every_feature("next_page", "max_length: 12\nover_length: parts\n")
    whole = datasets.of_every_feature("next_page")
    for method in ("window", "bucket"):
        read = [batches(each.path, "train", batching=method) for each in (made, whole)]
        for (*ours, our_label, our_weight), (*theirs, label, weight) in zip(*read, strict=True):
            values = zip(tf.nest.flatten([ours, our_weight]), tf.nest.flatten([theirs, weight]), strict=True)
            for some, others in [*values, (our_label[our_weight > 0], label[weight > 0])]:
                np.testing.assert_array_equal(some.numpy(), others.numpy())


def test_the_index_of_a_split_has_a_row_for_each_record():
    made, whole = in_parts("class"), datasets.of_every_feature("class")
    ours, theirs = (open_dataset(each.path).index("train") for each in (made, whole))
    for name in ("id", "num_steps", "label"):
        assert ours[name].to_pylist() == theirs[name].to_pylist()
    assert len(choose_parts(open_dataset(made.path), "independent").index("train")) == len(slices_of(made, "train"))


def test_a_part_that_is_missing_from_the_index_is_an_error(tmp_path):
    made = in_parts("class")
    dataset = open_dataset(made.path)
    (shard, *_) = dataset.split("train").shards
    wrong = shard.model_copy(update={"records": shard.records - 1})
    split = dataset.split("train").model_copy(update={"shards": (wrong,)})
    changed = dataset.manifest.model_copy(update={"splits": dataset.manifest.splits | {"train": split}})
    forget_shards()
    with pytest.raises(UserError, match="does not match the manifest's entry"):
        dataclasses.replace(dataset, manifest=changed).indexes("train")


def test_the_commands_read_parts(capsys, tmp_path):
    from trainer.main import evaluate, plan, train

    made, whole = in_parts("class"), datasets.of_every_feature("class")
    stateful = ["--batching", "stateful", "--chunk_steps", "4", "--lanes", "6", "--units", "3", "--epochs", "1"]
    train([made.path, "--output", str(tmp_path / "parts"), *stateful])
    capsys.readouterr()

    found = []
    for arguments in ([made.path], [whole.path, "--chunk_steps", "100"], [made.path, "--parts", "independent"]):
        evaluate([str(tmp_path / "parts"), *arguments, "--json"])
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["metrics"] == pytest.approx(found[1]["metrics"], rel=1e-5)
    num_parts = len(slices_of(made, "test"))
    assert [each["records"] for each in found] == [30, 30, num_parts]

    plan([made.path, "--json"])
    plans = json.loads(capsys.readouterr().out)
    assert list(plans) == ["stateful"]
    num_parts = len(slices_of(made, "train"))
    assert (plans["stateful"]["records"], plans["stateful"]["parts"]) == (40, num_parts)
    plan([made.path, "--json", "--parts", "independent"])
    plans = json.loads(capsys.readouterr().out)
    assert [each["records"] for each in plans.values()] == [num_parts] * 5
    plan([made.path])
    assert f"40 records, {sum(len(r['x']) for r in made.of('train'))} steps, stored as {num_parts} parts" in (
        capsys.readouterr().out
    )
    status, _, lines = call(capsys, "train", made.path, "--output", tmp_path / "run")
    assert status == 1 and "batching window reads whole records" in lines[-1]


@pytest.mark.parametrize("kind", datasets.some(KINDS, ["step_multilabel", "next_word"]))
@pytest.mark.parametrize("more", ["", PARTS])
def test_a_large_example_is_read_in_slices(monkeypatch, kind, more):
    made = datasets.of_every_feature(kind, more)
    expected = chunks_of(made.path, chunk_steps=4, lanes=7)
    monkeypatch.setattr(long_record, "_LARGE_BYTES", 0)
    monkeypatch.setattr(long_record, "_SLICE_BYTES", 150)
    found = chunks_of(made.path, chunk_steps=4, lanes=7)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_flipped_bit_in_a_large_example_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(long_record, "_LARGE_BYTES", 0)
    folder = datasets.copy(in_parts("class"), tmp_path)
    (shard, *_) = open_dataset(folder).split("train").shards
    data = bytearray((tmp_path / "copy" / shard.path).read_bytes())
    data[100] ^= 1
    (tmp_path / "copy" / shard.path).write_bytes(data)
    with pytest.raises(UserError, match=r"record at offset 0: the CRC of the data does not match"):
        chunks_of(folder, chunk_steps=4, lanes=7)
