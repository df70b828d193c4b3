"""Makes the records of the benchmarks: as a Lengthwise dataset, and as SequenceExamples as in a textbook.

Lengths are log-normal with a median of 24 steps and at most 400. Each step has `num_features` numbers. The label is one
of three classes. Both forms contain the same numbers. The functions of `prepare` write the dataset without its Beam
job, so that a benchmark of reading does not wait for it. Files are kept and used again in the next run.
"""

import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import orjson

from pipeline.format.examples import encode_example, encode_varints
from pipeline.format.tfrecord import frame
from pipeline.raw.rejects import Origin
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import EncodedRecord, encode_for_shuffle, to_block
from pipeline.shuffle.hashing import choose_shard
from pipeline.writing.base import Base
from pipeline.writing.paths import new_generation
from pipeline.writing.publish import Publisher
from pipeline.writing.shards import ShardWriter
from pipeline.writing.write_sources import list_sources

CLASSES, MAX_LENGTH, NUM_SHARDS = "abc", 400, 8
# Values are slices of one array of random numbers, which is faster than drawing the values of each record.
_POOL = 1_000_003


def draw_lengths(num_records: int, *, seed: int = 0) -> np.ndarray:
    """Returns the number of steps of each record: int64[num_records]."""
    random = np.random.default_rng(seed)
    return np.exp(random.normal(np.log(24), 0.8, num_records)).round().clip(1, MAX_LENGTH).astype(int)


def schema_text(num_features: int) -> str:
    return (
        f"id: id\nsteps: {{x: {{dtype: float32, shape: [{num_features}]}}}}\n"
        "label: {name: y, kind: class, classes: [a, b, c]}\nsplits: {train: 1}\n"
    )


def records(num_features: int, num_records: int) -> Iterator[tuple[str, np.ndarray, str]]:
    """Yields (id, float32[steps, num_features], label) for each record. More records start with the same ones."""
    pool = np.random.default_rng(1).normal(size=_POOL + MAX_LENGTH * num_features).astype(np.float32)
    for number, length in enumerate(draw_lengths(num_records).tolist()):
        begin = number * 7919 % _POOL
        values = pool[begin : begin + length * num_features].reshape(length, num_features)
        yield f"record-{number}", values, CLASSES[number % 3]


def write_raw(path: pathlib.Path, num_features: int, num_records: int) -> None:
    """Writes the records as JSON Lines."""
    with open(path, "wb") as file:
        for key, x, label in records(num_features, num_records):
            record = {"id": key, "x": x.round(4), "y": label}
            file.write(orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))


def make_dataset(folder: pathlib.Path, num_features: int, num_records: int) -> pathlib.Path:
    """Makes a Lengthwise dataset if it does not exist, and returns its folder."""
    path = folder / f"dataset-{num_features}-{num_records}"
    write_dataset(path, num_features, records(num_features, num_records))
    return path


def write_dataset(path: pathlib.Path, num_features: int, found: Iterable[tuple[str, np.ndarray, str]]) -> None:
    """Makes a Lengthwise dataset of (id, float32[steps, num_features], label) if it does not exist."""
    if (path / "manifest.json").exists():
        return
    print(f"making {path}", file=sys.stderr, flush=True)
    schema, generation = Schema.parse(schema_text(num_features)), new_generation()
    shards: list[list[EncodedRecord]] = [[] for _ in range(NUM_SHARDS)]
    for key, x, label in found:
        sequence = ParsedRecord(
            id=key, num_steps=len(x), features={"x": x.ravel()}, label=np.array([CLASSES.index(label)])
        )
        encoded = encode_for_shuffle(sequence, Origin(None, 0, 0, 0, b"", None), schema, seed=0)
        shards[choose_shard(encoded.key, num_shards=NUM_SHARDS)].append(encoded)
    writer = ShardWriter(schema, str(path), generation)
    written = [
        summary
        for number, part in enumerate(shards)
        for summary in writer.write(number, [to_block(part)], num_shards=NUM_SHARDS, reject=print)
    ]
    sources = list_sources([], output=str(path), generation=generation)
    Publisher(schema, str(path), generation, Base("replace")).publish(written, [], [sources])


def make_sequence_examples(folder: pathlib.Path, num_features: int, num_records: int) -> pathlib.Path:
    """Makes TFRecord files of SequenceExamples if they do not exist, and returns their folder.

    `label` and `length` are in the context, `x` is the feature list.
    """
    path = folder / f"sequence-examples-{num_features}-{num_records}"
    if path.exists():
        return path
    print(f"making {path}", file=sys.stderr, flush=True)
    unfinished = path.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    files = [open(unfinished / f"part-{number}.tfrecord", "wb") for number in range(NUM_SHARDS)]
    for number, (_, x, label) in enumerate(records(num_features, num_records)):
        files[number % NUM_SHARDS].write(frame(sequence_example(x, CLASSES.index(label))))
    for file in files:
        file.close()
    unfinished.rename(path)
    return path


def sequence_example(x: np.ndarray, label: int) -> bytes:
    """Returns the bytes of tf.train.SequenceExample(…).SerializeToString(), faster: all steps are one byte array."""
    num_bytes = 4 * x.shape[1]
    feature = _delimited(b"\x12", _delimited(b"\x0a", bytes(num_bytes)))
    step = np.frombuffer(_delimited(b"\x0a", feature), np.uint8)
    steps = np.tile(step, (len(x), 1))
    steps[:, -num_bytes:] = np.ascontiguousarray(x, "<f4").view(np.uint8)
    # A SequenceExample has its context in field 1, where an Example has its features: the encoding is the same.
    context = encode_example({"label": np.array([label]), "length": np.array([len(x)])})
    entry = _delimited(b"\x0a", b"x") + _delimited(b"\x12", steps.tobytes())
    return context + _delimited(b"\x12", _delimited(b"\x0a", entry))


def _delimited(tag: bytes, data: bytes) -> bytes:
    return tag + encode_varints(np.array([len(data)])) + data
