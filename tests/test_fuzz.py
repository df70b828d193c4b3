"""Damaged input of every kind: an answer that is documented, and soon, or the seed and the input that had none."""

import contextlib
import faulthandler
import io
import pathlib
import random
import shutil

import numpy as np
import pytest

from pipeline.encoded import Origin, encode
from pipeline.errors import UserError
from pipeline.examples import decode_example, encode_example
from pipeline.manifest import FILE_NAME
from pipeline.reasons import REASONS, RecordError
from pipeline.records import parse_line
from pipeline.schema import Schema
from pipeline.tfrecord import CorruptRecord, frame, walk
from pipeline.verify import verify

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
    )
]
WORDS = [
    b"null",
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b'"',
    b"\\",
    b"1e999",
    b"-",
    b"0" * 40,
    b"\xff",
    b"\0",
    b"[[[[",
    b'"x":',
]
SECONDS = 120  # of one call, after which it hangs


def mutate(data, chance, words=()):
    """One to three bytes or pieces changed, moved, cut out or put in."""
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


def fuzz(number, seed, make, check):
    """Checks so many inputs; what goes wrong is told with the input."""
    chance = random.Random(seed)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        for count in range(number):
            data = make(chance)
            try:
                check(data)
            except BaseException as error:
                raise AssertionError(
                    f"seed {seed}, input {count}: {data!r}: {type(error).__name__}: {error}"
                ) from error
            if count % 1000 == 0:
                faulthandler.dump_traceback_later(SECONDS, exit=True)
    finally:
        faulthandler.cancel_dump_traceback_later()


def check_line(line):
    for schema in SCHEMAS:
        try:
            encode(parse_line(line, schema), Origin(None, 0, 0, 0, b"", None), schema, seed=0)
        except RecordError as error:
            assert error.reason in REASONS and error.message
            assert error.id is None or isinstance(error.id, str)
            error.message.encode()


EXAMPLES = [
    encode_example({"id": [b"r"], "x": np.arange(40, dtype=np.float32), "y": np.array([3]), "length": np.array([40])}),
    encode_example({"a": np.array([0, 1, 300, -1, 2**62]), "w": [b"", b"word", b"\xff" * 130]}),
    b"",
]


def check_example(data):
    with contextlib.suppress(ValueError):
        assert all(isinstance(name, str) for name in decode_example(data))


SHARD = b"".join(map(frame, EXAMPLES * 3))


def check_shard(data):
    seen = 0
    with contextlib.suppress(CorruptRecord):
        for record in walk(io.BytesIO(data), num_bytes=len(data)):
            seen += len(record.data)
    assert seen <= len(data)


TARGETS = {
    "lines": (lambda chance: mutate(chance.choice(CORPUS), chance, WORDS), check_line, 3),
    "examples": (lambda chance: mutate(chance.choice(EXAMPLES), chance), check_example, 1),
    "shards": (lambda chance: mutate(SHARD, chance), check_shard, 1),
}


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_input_has_an_answer(target):
    fuzz(3000, 0, *TARGETS[target][:2])


@pytest.mark.proof
@pytest.mark.parametrize("target", TARGETS)
def test_a_million_damaged_inputs_have_an_answer(target):
    # A line is an input to each of three schemas.
    fuzz(1_000_000 // 3 // TARGETS[target][2] + 100_000, 1, *TARGETS[target][:2])


@pytest.fixture(scope="module")
def files(dataset):
    """Every file of a small dataset."""
    return [path for path in pathlib.Path(dataset).rglob("*") if path.is_file()]


def damage_files(number, seed, dataset, files, folder):
    copy = folder / "copy"
    shutil.copytree(dataset, copy)
    clean = verify(str(copy))
    assert clean.faults == []
    found = 0

    def make(chance):
        path = chance.choice(files)
        return path.relative_to(dataset), mutate(path.read_bytes(), chance)

    def check(damage):
        nonlocal found
        path, data = damage
        whole = (copy / path).read_bytes()
        (copy / path).write_bytes(data)
        try:
            found += bool(verify(str(copy)).faults)
        except UserError:  # the manifest itself cannot be believed
            assert path.name == FILE_NAME
            found += 1
        finally:
            (copy / path).write_bytes(whole)

    fuzz(number, seed, make, check)
    return found


def test_verify_has_an_answer_to_damaged_files(dataset, files, tmp_path):
    assert damage_files(60, 0, dataset, files, tmp_path) > 40


@pytest.mark.proof
def test_verify_has_an_answer_to_thousands_of_damaged_files(dataset, files, tmp_path):
    assert damage_files(5000, 1, dataset, files, tmp_path) > 4000
