"""Damaged input of every kind gives a documented result in time; a failure shows the seed and the input."""

import contextlib
import faulthandler
import hashlib
import io
import json
import os
import pathlib
import random
import shutil
import signal
import struct
import time

import numpy as np
import pytest
from damage import edit_manifest
from datasets import EVERY_FEATURE, LABELS, every_feature_records
from plain_prepare import prepare

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.format.examples import decode_example, encode_example
from pipeline.format.manifest import FILE_NAME
from pipeline.format.tfrecord import CorruptRecord, frame, masked_crc, walk
from pipeline.inspection.verify import verify
from pipeline.raw.records import parse_line
from pipeline.raw.rejects import REASONS, Origin, RecordError
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import encode_for_shuffle

CORPUS = pathlib.Path(__file__).with_name("corpus.jsonl").read_bytes().splitlines()
STEPS = (
    "  x: {dtype: float32, shape: [3]}\n  z: {dtype: float32, shape: [2, 2]}\n  n: {dtype: float32, missing: fill}\n"
    "  page: {dtype: int64, num_values: 9}\n  pair: {dtype: int64, num_values: 9, shape: [2], missing: indicator}\n"
)
SCHEMAS = [
    Schema.parse(text)
    for text in (
        f"id: id\nsteps:\n{STEPS}label: {{name: y, kind: step_class, classes: [a, b]}}\n",
        "steps: {x: {dtype: float32, shape: [3]}, word: {dtype: string, num_values: 9, missing: indicator}}\n"
        "context: {age: {dtype: float32, missing: fill}}\nlabel: {next_of: x}\n"
        "max_length: 1\nover_length: truncate_head\n",
        "id: id\nsteps: {n: {dtype: float32, missing: indicator}}\n"
        "label: {name: y, kind: multilabel, classes: [a, b]}\nsplits: {group: id, train: 1}\n",
        "id: id\nsteps: {x: {dtype: float32, shape: [3]}, w: {dtype: float32, shape: [3]}}\n"
        "context: {page: {dtype: int64, num_values: 9, shape: [2]}, age: {dtype: float32, missing: indicator}}\n"
        "label: {name: y, kind: distribution, classes: [a, b]}\nsplits: {from: part}\n",
    )
]
WORDS = [
    b"null", b"true", b"NaN", b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"1e999", b"-", b"-0", b"0" * 40,
    b"1" * 400, b"9223372036854775808", b"18446744073709551616", b"\xff", b"\0", b"\\u0000", b"\\ud800",
    b"\xef\xbb\xbf", b"[[[[",
    b'"x":', b'"id":"s",', b'"abc"', b"[1]", b"[]", b"{}", b"[" * 300, b"[" * 1100,
]  # fmt: skip
# Of one call, after which it hangs.
SECONDS = 60


def mutate(data, chance, words=()):
    """Changes, moves, removes or inserts one to three bytes or pieces."""
    data = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(data) + 1)
        width = chance.choice((0, 1, 1, 2, 9, 40))
        kind = chance.random()
        if kind < 0.3 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif kind < 0.5:
            del data[at : at + width]
        elif kind < 0.7:
            data[at:at] = data[chance.randrange(len(data) + 1) :][:width]
        elif kind < 0.9 and words:
            data[at : at + chance.choice((0, width))] = chance.choice(words)
        else:
            data[at : at + width] = chance.randbytes(width)
    return bytes(data)


@contextlib.contextmanager
def watched(capfd):
    """Yields a function that restarts the time limit of SECONDS; call it before each input.

    A hang in Python fails the test with its input. A hang in C code cannot be interrupted: it ends the process with a
    traceback.
    """

    def hangs(number, frame):
        pytest.fail(f"no result within {SECONDS} seconds")

    armed = 0.0

    def begin():
        nonlocal armed
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        now = time.monotonic()
        if now > armed + 1:  # arming starts a thread
            faulthandler.dump_traceback_later(SECONDS + 10, exit=True, file=stderr)
            armed = now

    with capfd.disabled():  # else pytest captures the traceback and loses it
        stderr = os.fdopen(os.dup(2), "w")
    before = signal.signal(signal.SIGALRM, hangs)
    try:
        yield begin
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
        stderr.close()


@pytest.fixture
def fuzz(capfd):
    """Checks `count` inputs and returns their number; a failure shows its input."""

    def run(number, seed, make, check):
        chance = random.Random(seed)
        answers = 0
        with watched(capfd) as begin:
            for count in range(number):
                data = make(chance)
                begin()
                try:
                    answers += check(data)
                except BaseException as error:
                    raise AssertionError(
                        f"seed {seed}, input {count}: {data!r}: {type(error).__name__}: {error}"
                    ) from error
        with capfd.disabled():
            print(f"\nseed {seed}: {answers:,} answers to {number:,} inputs")
        return answers

    return run


def check_line(line):
    for schema in SCHEMAS:
        try:
            encode_for_shuffle(parse_line(line, schema), Origin(None, 0, 0, 0, b"", None), schema, seed=0)
        except RecordError as error:
            assert error.reason in REASONS and error.message
            assert error.id is None or isinstance(error.id, str)
            error.message.encode()
    return len(SCHEMAS)


EXAMPLES = [
    encode_example({"id": [b"r"], "x": np.arange(40, dtype=np.float32), "y": np.array([3]), "length": np.array([40])}),
    encode_example({"a": np.array([0, 1, 300, -1, 2**62]), "w": [b"", b"word", b"\xff" * 130]}),
    b"",
]


# Of what an Example is made: tags, with and without a size, and sizes that are too large.
TAGS = [b"\x0a", b"\x12", b"\x1a", b"\x0a\0", b"\x12\x01", b"\x80", b"\x7f", b"\xff" * 9 + b"\x01", b"\x80" * 40]


def check_example(data):
    with contextlib.suppress(ValueError):
        assert all(isinstance(name, str) for name in decode_example(data))
    return 1


SHARD = b"".join(map(frame, EXAMPLES * 3))


def damage_shard(chance):
    """Changes bytes anywhere, or a length together with its CRC."""
    if chance.random() < 0.7:
        return mutate(SHARD, chance)
    length = chance.choice((0, 1, 15, 16, 17, len(SHARD), 2**31 - 1, 2**31, 2**63, 2**64 - 1, chance.getrandbits(64)))
    header = struct.pack("<Q", length)
    data = frame(b"a") + header + struct.pack("<I", masked_crc(header)) + SHARD[: chance.randrange(40)]
    return data if chance.random() < 0.5 else mutate(data, chance)


def check_shard(data):
    seen = 0
    with contextlib.suppress(CorruptRecord):
        for record in walk(io.BytesIO(data), num_bytes=len(data)):
            seen += len(record.data)
    assert seen <= len(data)
    return 1


# How inputs are made and checked, and how many there are in the proof; a line is one to each schema.
TARGETS = {
    "lines": (lambda chance: mutate(chance.choice(CORPUS), chance, WORDS), check_line, 200_000),
    "examples": (lambda chance: mutate(chance.choice(EXAMPLES), chance, TAGS), check_example, 400_000),
    "shards": (damage_shard, check_shard, 400_000),
}


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_input_gives_a_documented_result(target, fuzz):
    make, check, _ = TARGETS[target]
    assert fuzz(3000, 0, make, check) >= 3000


@pytest.mark.proof
def test_a_million_damaged_inputs_give_a_documented_result(fuzz):
    assert sum(fuzz(number, 1, make, check) for make, check, number in TARGETS.values()) >= 1_000_000


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small dataset with files of every kind: vocabularies, rejects, shards and indexes."""
    folder = tmp_path_factory.mktemp("tiny")
    records = [
        record
        for split, lengths in (("train", [1, 3, 2, 5]), ("validation", [2]), ("test", [1, 2]))
        for record in every_feature_records(lengths, split=split, kind="class")
    ]
    (folder / "raw.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + "no json\n")
    (folder / "schema.yaml").write_text(
        f"id: id{EVERY_FEATURE}label: {LABELS['class']}\nsplits: {{from: split}}\n", encoding="utf-8"
    )
    prepare(
        PrepareOptions(
            raw=(str(folder / "raw.jsonl"),),
            schema=str(folder / "schema.yaml"),
            output=str(folder / "dataset"),
            num_shards=1,
            max_rejected=0.5,
        )
    )
    return folder / "dataset"


def resign(dataset, before, after):
    """Writes the digest of damaged bytes into the manifest, so that the code that reads them must find the fault."""
    digest = hashlib.sha256(before).hexdigest()

    def tell(values):
        text = json.dumps(values).replace(digest, hashlib.sha256(after).hexdigest())
        values.clear()
        values.update(json.loads(text))
        for split in values["splits"].values():
            for shard in split["shards"]:
                shard["bytes"] = (dataset / shard["path"]).stat().st_size

    edit_manifest(dataset, tell)


def damage_files(fuzz, number, seed, dataset, folder):
    """Counts how often `verify` found no fault in a changed file whose digest is not in the manifest."""
    copy = folder / "copy"
    shutil.copytree(dataset, copy)
    files = sorted(path.relative_to(dataset) for path in dataset.rglob("*") if path.is_file())
    whole = {path: (dataset / path).read_bytes() for path in files}
    assert verify(str(copy)).faults == []
    missed = []

    def make(chance):
        path = chance.choice(files)
        vouched = path.name != FILE_NAME and chance.random() < 0.5
        return str(path), vouched, mutate(whole[path], chance)

    def check(damage):
        path, vouched, data = damage
        (copy / path).write_bytes(data)
        manifest = copy / FILE_NAME
        try:
            if vouched:
                resign(copy, whole[pathlib.Path(path)], data)
            faults = verify(str(copy)).faults
            assert all(isinstance(fault.message, str) and fault.message for fault in faults)
            if not faults and not vouched and data != whole[pathlib.Path(path)]:
                missed.append((path, data))
        except UserError:  # the manifest itself is damaged
            assert path == FILE_NAME or vouched
        finally:
            manifest.write_bytes(whole[pathlib.Path(FILE_NAME)])
            (copy / path).write_bytes(whole[pathlib.Path(path)])
        return 1

    assert fuzz(number, seed, make, check) == number
    return missed


def check_missed(missed):
    """Only what no checksum covers may pass: white space and the like in the manifest, and what no code reads: the lock
    and the copy of a vocabulary that is for people."""
    for path, data in missed:
        copy = path.startswith("vocabulary/") and path.count("/") == 1
        assert path in (FILE_NAME, "commits/lock") or copy, (path, data)


def test_verify_handles_damaged_files(fuzz, tiny, tmp_path):
    check_missed(damage_files(fuzz, 40, 0, tiny, tmp_path))


@pytest.mark.proof
def test_verify_handles_thousands_of_damaged_files(fuzz, tiny, tmp_path):
    check_missed(damage_files(fuzz, 3000, 1, tiny, tmp_path))
