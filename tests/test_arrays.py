"""Numbers that never become Python objects: the same bytes and the same rejects as by the exact way."""

import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import schemas_and_records

from pipeline import arrays, records
from pipeline.arrays import read_object
from pipeline.encoded import Origin, encode
from pipeline.reasons import RecordError
from pipeline.records import parse_line
from pipeline.schema import Schema

NOWHERE = Origin(None, 0, 0, 0, b"", None)
SCHEMA = Schema.parse(
    "id: id\nsteps:\n  x: {dtype: float32, shape: [3]}\n  z: {dtype: float32, shape: [2, 2]}\n  n: {dtype: float32}\n"
    "  page: {dtype: int64, num_values: 9}\n  pair: {dtype: int64, num_values: 9, shape: [2]}\n"
    "label: {name: y, kind: step_class, classes: [a, b]}\nmax_length: 5\nover_length: truncate_tail\n"
)
GOOD = {
    "id": "r",
    "x": [[1, 2.5, -3], [0, -0.0, 7]],
    "z": [[[1, 2], [3, 4]], [[5, 6], [7, 8e-3]]],
    "n": [1, 0.1],
    "page": [0, 8],
    "pair": [[1, 2], [3, 4]],
    "y": ["a", None],
}


def outcome(line, schema):
    """What becomes of a line: its bytes and where it goes, or why it does not."""
    try:
        return encode(parse_line(line, schema), NOWHERE, schema, seed=0)
    except RecordError as error:
        return error.reason, error.message, error.id


def exact(line, schema):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "read_object", lambda line, steps: None)
        return outcome(line, schema)


def both(line, schema):
    """What becomes of a line by both ways, of which the first reads large lines in pieces too."""
    expected = exact(line, schema)
    assert outcome(line, schema) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_LARGE_BYTES", 16)
        patch.setattr(arrays, "_PIECE_BYTES", 5)
        assert outcome(line, schema) == expected
        assert outcome(bytearray(line), schema) == expected
    return expected


def test_plain_records_come_as_arrays():
    found = read_object(json.dumps(GOOD).encode(), SCHEMA.steps)
    for name, feature in SCHEMA.steps.items():
        assert found[name].dtype == {"float32": np.float64, "int64": np.int64}[feature.dtype]
        assert found[name].tolist() == GOOD[name]
    assert (found["id"], found["y"]) == ("r", ["a", None])
    # Also where other lists stand beside them, and brackets in strings.
    found = read_object(json.dumps(GOOD | {"id": "[[", "more": [[], {"a": [1]}]}).encode(), SCHEMA.steps)
    assert all(isinstance(found[name], np.ndarray) for name in SCHEMA.steps)
    assert found["more"] == [[], {"a": [1]}]


def test_a_large_record_is_read_in_pieces(monkeypatch):
    monkeypatch.setattr(arrays, "_LARGE_BYTES", 1000)
    monkeypatch.setattr(arrays, "_PIECE_BYTES", 100)
    numbers = np.random.default_rng(0)
    record = GOOD | {"x": numbers.normal(size=(700, 3)).tolist(), "page": numbers.integers(0, 9, 2000).tolist()}
    found = read_object(json.dumps(record).encode(), SCHEMA.steps)
    assert (found["x"] == np.array(record["x"], np.float32)).all() and found["x"].dtype == np.float32
    assert found["page"].tolist() == record["page"]
    assert found["z"].tolist() == GOOD["z"]


@settings(deadline=None, max_examples=150)
@given(schemas_and_records())
def test_records_of_every_kind_give_the_same_bytes_either_way(schema_and_record):
    schema, record = schema_and_record
    for separators in ((",", ":"), (" , ", ": ")):
        text = json.dumps(record, separators=separators, ensure_ascii=separators == (",", ":"))
        try:
            line = text.encode()
        except UnicodeEncodeError:
            continue
        assert (
            both(line, schema).example == encode(records.parse_record(record, schema), NOWHERE, schema, seed=0).example
        )


ODD = [
    b"null", b"true", b"false", b'"a"', b'"["', b'"]"', b'"\\u005b"', b'"\\ud800"', b"[]", b"[1]", b"[[1]]", b"{}",
    b'{"a":[1]}',     b"-0", b"-0.0", b"1e400", b"-1e400", b"1e39", b"3.4028235677973366e38", b"3.4028235e38",
    b"1e-46", b"1e-400",
    b"NaN",     b"Infinity", b"-Infinity", b"9", b"-1", b"1.0", b"01", b".5", b"1.", b"+1", b"-",
    b"9223372036854775807",
    b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"1" * 400,
    b"", b" ", b",", b"[", b"]", b"{", b"}",
    b'"', b"\\", b"\0", b"\xff", b"\xef\xbb\xbf", b"\t", b"\r", b"\x0b", b'"id":"q",', b'"x":[],', b'"y":["b","b"],',
    b"[" * 300 + b"]" * 300,
    b"[" * 1022 + b"]" * 1022, b"[" * 1023 + b"]" * 1023, b"[" * 1100 + b"]" * 1100,
]  # fmt: skip
PLACES = [b"1", b"2.5", b"[", b"]", b",", b'"a"', b"null", b":", b'"x"', b"{", b"}", b"0", b"8"]


def damaged(chance):
    """A good line in which something odd stands instead of something, or before it."""
    line = json.dumps(GOOD, separators=(",", ":")).encode()
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if chance.random() < 0.2:
            place = chance.randrange(len(line))
            start, stop = place, place + chance.randrange(4)
        else:
            part = chance.choice(PLACES)
            places = [at for at in range(len(line)) if line.startswith(part, at)] or [0]
            start = chance.choice(places)
            stop = start + chance.choice([0, len(part), len(part)])
        line = line[:start] + chance.choice(ODD) + line[stop:]
    return line


def agree_on(number, seed):
    chance = random.Random(seed)
    reasons = set()
    for _ in range(number):
        line = damaged(chance)
        result = both(line, SCHEMA)
        reasons.add(result[0] if len(result) == 3 else "good")
    return reasons


def test_hostile_lines_have_the_same_end_either_way():
    reasons = agree_on(4000, 0)
    assert {"good", "not_json", "missing_field", "wrong_type", "wrong_shape", "not_finite", "unknown_class"} <= reasons
    assert {"uneven_lengths", "bad_id"} <= reasons


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_hundred_thousand_hostile_lines_have_the_same_end_either_way(seed):
    agree_on(100_000, seed)


@pytest.mark.parametrize(
    "x",
    [
        "[[[1],2,3]]", "[[[],[1,2],3]]", "[[1,2,3],[]]", "[[1,2],[3,4,5,6]]", "[1,2,3]", "[[1,2,3],4]", '["abc"]',
        '[{"a":1,"b":2,"c":3}]', "[[1,2,true]]", "[[1,2,null]]", '[[1,2,"3"]]', "[[1,2,3],null]", "[]", "{}", "3",
        "[[1,2,1e400]]",         "[[1,2,3],[1,2,3],]", "[[1,2,3],,[1,2,3]]", "[[1,2,3] [1,2,3]]", "[[1,2,3],[1,2,3]",
        "[[1,2,3]]]", "[[1,2,3e]]",
    ],
)  # fmt: skip
def test_what_is_no_list_of_rows_has_the_same_end_either_way(x):
    schema = Schema.parse("id: id\nsteps: {x: {dtype: float32, shape: [3]}}\nlabel: {name: y, kind: regression}\n")
    for more in ("", ',"more":[[1],2]', ',"x":[[1,2,3]]'):
        both(b'{"id":"r","x":%b,"y":1%b}' % (x.encode(), more.encode()), schema)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 3), min_size=1, max_size=9), st.integers(0, 3))
def test_lists_that_are_cut_into_pieces_are_one_list(rows, spaces):
    schema = Schema.parse("id: id\nsteps: {x: {dtype: float32, shape: [3]}}\nlabel: {name: y, kind: regression}\n")
    text = json.dumps({"id": 1, "x": rows, "y": 2}).replace("Infinity", "1e999").replace(",", " " * spaces + ",")
    both(text.encode(), schema)
