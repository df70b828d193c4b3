"""The fast parser, which creates arrays, gives the same bytes and the same rejects as the slow parser."""

import contextlib
import json
import random
import signal

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import schemas_and_records

from pipeline.raw import json_arrays as arrays
from pipeline.raw import records
from pipeline.raw.json_arrays import read_object
from pipeline.raw.json_lines import LineBatch
from pipeline.raw.parse_batch import BatchParser
from pipeline.raw.records import parse_line
from pipeline.raw.rejects import Origin, RecordError
from pipeline.raw.values import parse_steps
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import encode_batch_for_shuffle, encode_for_shuffle, from_rows

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


LABEL = "label: {name: y, kind: regression}\n"
ROWS = Schema.parse("id: id\nsteps: {x: {dtype: float32, shape: [3]}, w: {dtype: float32, shape: [3]}}\n" + LABEL)
# Schemas, each with a record that fits it. They cover the fields besides the steps, the kinds of labels, and nulls.
SCHEMAS_AND_RECORDS = [
    (SCHEMA, GOOD),
    (
        Schema.parse(
            "id: id\nsteps: {x: {dtype: float32, shape: [3], missing: fill}, word: {dtype: string, num_values: 9}}\n"
            "context: {age: {dtype: float32, shape: [2]}, city: {dtype: string, vocabulary: 3, missing: indicator},"
            " plan: {dtype: int64, num_values: 9}}\nlabel: {next_of: x}\nmax_length: 1\nover_length: truncate_head\n"
        ),
        {"id": 7, "x": [[1, 2.5, 8], [0, -0.0, 7]], "word": ["a", "[x"], "age": [1, 2.5], "city": None, "plan": 8},
    ),
    (
        Schema.parse(
            "id: id\nsteps: {page: {dtype: int64, num_values: 9, missing: indicator}, n: {dtype: float32}}\n"
            "label: {name: y, kind: distribution, classes: [a, b]}\nsplits: {from: part}\nmax_length: 1\n"
        ),
        {"id": "a", "page": [8], "n": [2.5], "y": [1, 0], "part": "train"},
    ),
    (
        Schema.parse(
            "id: id\nsteps: {bits: {dtype: float32, shape: [2]}, pair: {dtype: string, num_values: 9, shape: [2]}}\n"
            "label: {next_of: bits, kind: multilabel}\ngroup: who\n"
        ),
        {"id": "a", "bits": [[1, 0], [0, 1]], "pair": [["a", "b"], ["a", ""]], "who": 1},
    ),
    (ROWS, {"id": "a", "x": [[1, 2.5, 8]], "w": [[0, 1, 2]], "y": 1}),
]


OVER_LENGTH = ["reject", "truncate_head", "truncate_tail"]
DTYPES = {"float32": np.float64, "int64": np.int64}


def outcome(line, schema):
    """Returns the encoded record of a line with its place in the shuffle, or (reason, message, id) of the reject."""
    try:
        return encode_for_shuffle(parse_line(line, schema), NOWHERE, schema, seed=0)
    except RecordError as error:
        return error.reason, error.message, error.id


def slow_outcome(line, schema):
    """Returns the outcome without the fast parser."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "read_object", lambda line, steps, lists=None: None)
        return outcome(line, schema)


def outcome_in_pieces(line, schema):
    """Returns the outcome with the sizes of a large line and of a piece reduced to a few bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "_LARGE_BYTES", 16)
        patch.setattr(arrays, "_PIECE_BYTES", 5)
        return outcome(line, schema)


def outcome_in_batch(line, schema):
    """Returns the encoded record of a line that `BatchParser` parses; None if it leaves the line."""
    if not BatchParser.can_parse(schema):
        return None
    lines = LineBatch("raw", 0, [0], [0], [line], [b""], 0)
    records, taken, rest = BatchParser(schema).parse(lines)
    assert taken.lines + rest.lines == [line]
    if rest.lines:
        return None
    rows, payloads = encode_batch_for_shuffle(records, taken, schema, seed=0, keep_raw=False)
    (found,) = from_rows(rows)
    return found._replace(origin=NOWHERE, example=payloads[0])


def without_id(schema):
    """Returns the schema without an id, which is then a hash of the record."""
    return schema.model_copy(update={"id": None})


def same_outcome(line, schema):
    """Checks that both parsers give the same outcome, also when large lines are read in pieces, and returns it."""
    expected = slow_outcome(line, schema)
    assert outcome(line, schema) == expected
    assert outcome(bytearray(line), schema) == expected
    check_object(line, schema)
    assert outcome_in_batch(line, schema) in (None, expected)
    assert outcome_in_pieces(line, schema) == expected
    assert outcome_in_pieces(bytearray(line), schema) == expected
    with contextlib.suppress(UnicodeDecodeError):
        text = line.decode()
        assert outcome(text, schema) == slow_outcome(text, schema)
    return expected


def check_object(line, schema):
    """Checks that `read_object` returns the same record as orjson, including fields that the schema does not have."""
    found = read_object(line, schema.steps)
    if found is None:
        return
    expected = orjson.loads(line)
    assert list(found) == list(expected)
    pairs = []
    for name, value in found.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == DTYPES[schema.steps[name].dtype]
            assert value.shape == (len(expected[name]), *schema.steps[name].shape)
            assert value.tobytes() == np.array(expected[name], value.dtype).tobytes()
        else:
            pairs.append((value, expected[name]))
    while pairs:  # without recursion: lines are nested deeply
        one, other = pairs.pop()
        assert type(one) is type(other)
        if isinstance(one, dict):
            assert list(one) == list(other)
            one, other = list(one.values()), list(other.values())
        if isinstance(one, list):
            pairs += zip(one, other, strict=True)
        else:
            assert repr(one) == repr(other)


def test_numbers_of_plain_records_become_arrays():
    found = read_object(json.dumps(GOOD).encode(), SCHEMA.steps)
    for name, feature in SCHEMA.steps.items():
        assert found[name].dtype == DTYPES[feature.dtype]
        assert found[name].shape == (2, *feature.shape)
        assert found[name].tolist() == GOOD[name]
    assert (found["id"], found["y"]) == ("r", ["a", None])
    # Also with other lists in the line, and brackets in strings.
    found = read_object(json.dumps(GOOD | {"id": "[[", "more": [[], {"a": [1]}]}).encode(), SCHEMA.steps)
    assert all(isinstance(found[name], np.ndarray) for name in SCHEMA.steps)
    assert found["more"] == [[], {"a": [1]}]


@pytest.mark.parametrize("value", ["[[1,2,[3]]]", "[[[1],2]]", "[[[1],2,3]]", "[[1,2,true]]", "[[1,2,null]]", "[[1,2]]",
                                   "[1,2,3]", '["abc"]', '[[1,2,"3"]]', '[{"a":1,"b":2,"c":3}]'])  # fmt: skip
def test_a_list_with_other_values_stays_a_list(value):
    for more in ("", ',"more":[],"z":"["', ',"w":["abc"]', ',"w":[{"a":1,"b":2,"c":3}]'):
        line = f'{{"x":{value}{more}}}'.encode()
        found = read_object(line, ROWS.steps)
        assert type(found["x"]) is list
        assert repr(found) == repr(orjson.loads(line))


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"3", b"null", b' {"x":[]}', b'\xef\xbb\xbf{"x":[]}', b'{"x":[]', b'{"x":[]}}', b'{"x":[]}\0',
        b'{"x":[1],"x":[2]}', b'{"x":[],"a":1,"a":1}', b'{"x":[],"a":1,"\\u0061":1}', b'{"x":[NaN]}', b'{"x":[1e400]}',
        b'{"x":[01]}', b'{"x":[1,]}', b'{"x":["\\ud800"]}', b'{"x":["\xff"]}', b'{"x":[18446744073709551616]}',
        b"{'x':[]}", b'{"x":["\t"]}', b"[" * 300, b'{"x":' * 1100 + b"1" + b"}" * 1100,
    ],
)  # fmt: skip
def test_lines_for_the_slow_parser_return_none(line):
    assert read_object(line, ROWS.steps) is None
    same_outcome(line, ROWS)


@pytest.mark.parametrize("depth", [253, 254, 255, 1021, 1022, 1023, 1024])
@pytest.mark.parametrize("brackets", ["[]", ('{"a":', "}")])
@pytest.mark.parametrize("place", ['"x":%s', '"x":[[1,2,%s]]', '"x":[[1,2,3]],"more":%s'])
def test_deep_nesting_gives_the_same_outcome(depth, brackets, place):
    deep = brackets[0] * depth + "1" + brackets[1] * depth
    same_outcome(('{"id":"r","y":1,"w":[[1,2,3]],' + place % deep + "}").encode(), ROWS)


# A list is hidden among numbers, and another value has the length of a row or of a list without an opening bracket.
@pytest.mark.parametrize("more", ['"w":["abc"]', '"w":[{"a":1,"b":2,"c":3}]', '"w":[[0,1,2]],"q":[],"q\\u0000":5'])
def test_a_list_among_numbers_is_found_whatever_other_fields_hold(more):
    result = same_outcome(f'{{"id":"r","x":[[[1],2,3]],{more},"y":1}}'.encode(), ROWS)
    assert result == ("wrong_shape", "x[0][0]: [1], expected a number", "r")


@pytest.mark.parametrize("key", ["q\\u0000r", "\\u0000", "x\\u0000", "id\\u0000", "y\\u0000z", "\\u0078x"])
def test_a_key_with_escapes_is_compared_as_a_whole(key):
    record = json.dumps(SCHEMAS_AND_RECORDS[-1][1])[1:-1]
    for line in (f'{{{record},"{key}":[5]}}', f'{{"{key}":[[5,5,5]],{record}}}'):
        assert same_outcome(line.encode(), ROWS).id == "a"


@pytest.mark.parametrize("keys", ["group: x\nid: id", "splits: {from: x}\nid: id", "id: x"])
def test_a_step_feature_that_is_also_a_key_is_shown_as_written(keys):
    schema = Schema.parse(f"{keys}\nsteps: {{x: {{dtype: float32, shape: [3]}}}}\n{LABEL}")
    assert same_outcome(b'{"id":"r","x":[[1,2,3]],"y":1}', schema)[1].startswith("x: [[1, 2, 3]], expected ")


@pytest.mark.parametrize(
    "text", ['"}[[1,2,3]]"', '\\"}[[1,2,3]]\\"', "[[1,2,3]]", '"x":[[1,2,3]]', '"}, "x":[[1,2,3]]']
)
def test_a_list_in_a_string_is_not_a_list(text):
    record = SCHEMAS_AND_RECORDS[-1][1] | {"x": {"b": text}}
    assert same_outcome(json.dumps(record).encode(), ROWS)[0] == "wrong_type"


@contextlib.contextmanager
def time_limit(seconds):
    def stop(number, frame):
        pytest.fail(f"takes more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Each line is truncated, as the last line of a file may be. It takes some hundredths of a second.
@pytest.mark.parametrize("part", ['\\"', '\\"h', "\\\\", '\\\\\\"', '","', '":[1,"', '":["', "[", "{", "]", " ", "],"])
@pytest.mark.parametrize("start", ['{"id":"', '{"x":[[1,2,3', '{"x":[['])
def test_a_large_truncated_line_is_parsed_in_linear_time(start, part, monkeypatch):
    monkeypatch.setattr(arrays, "_LARGE_BYTES", 2**18)
    line = (start + part * ((2**18 + 9) // len(part))).encode()
    with time_limit(10):
        assert outcome(line, ROWS)[0] == "not_json"


def test_a_line_of_many_keys_is_parsed_in_linear_time():
    line = orjson.dumps(GOOD | {f"key {n}": n for n in range(100_000)})
    with time_limit(20):
        assert outcome(line, SCHEMA).id == "r"
    assert same_outcome(orjson.dumps(GOOD | {f"key {n}": n for n in range(300)}), SCHEMA).id == "r"


def test_a_line_that_is_not_json_is_shown_in_part_and_its_numbers_become_no_objects(monkeypatch):
    line = ('{"id":"\u20ac","x":[' + ",".join(["0.5", "1e99", "-12"] * 30_000)).encode()
    parsed = []
    monkeypatch.setattr(json, "loads", lambda *arguments, **options: parsed.append(1) or {})
    assert parse_error(line).endswith(r': "{\"id\":\"€\",\"x\":[0.5,1e99,-12,0.5,1e99,-12,0.5,1e99,...')
    assert not parsed


def parse_error(line):
    with pytest.raises(RecordError) as error:
        parse_line(line, SCHEMA)
    assert error.value.reason == "not_json"
    return error.value.message


def test_a_large_record_is_read_in_pieces(monkeypatch):
    monkeypatch.setattr(arrays, "_LARGE_BYTES", 1000)
    monkeypatch.setattr(arrays, "_PIECE_BYTES", 100)
    numbers = np.random.default_rng(0)
    record = GOOD | {"x": numbers.normal(size=(700, 3)).tolist(), "page": numbers.integers(0, 9, 2000).tolist()}
    found = read_object(json.dumps(record).encode(), SCHEMA.steps)
    assert (found["x"] == np.array(record["x"], np.float32)).all() and found["x"].dtype == np.float32
    assert found["page"].tolist() == record["page"]
    assert found["z"].tolist() == GOOD["z"]


def test_the_array_of_a_large_record_is_not_copied(monkeypatch):
    monkeypatch.setattr(arrays, "_LARGE_BYTES", 64)
    found = read_object(json.dumps(GOOD).encode(), SCHEMA.steps)["x"]
    assert parse_steps(found, "x", SCHEMA.steps["x"]) is found and not found.flags.writeable
    # One that a caller could change is copied.
    found = found.copy()
    assert not np.shares_memory(parse_steps(found, "x", SCHEMA.steps["x"]), found)
    found.flags.writeable = False
    assert not np.shares_memory(parse_steps(found[:1], "x", SCHEMA.steps["x"]), found)


# Numbers and keys whose canonical form differs from their text, keys in another order than that of UTF-16, and a large
# list that no feature has.
UNUSUAL = [
    '{"x": [[1, 2.50, -0], [1E5, 1e-7, -0.0]], "w":[[10.0,2,3] , [4,5,6]],"y":1}',
    '{"\\u0079":0.50,"w":[[1,1,1],[0.1,1e22,1e21]],"x":[[9007199254740993,2,3],[4,5,123456789.12345678]]}',
    '{"y":1,"x":[[1,2,3],[4,5,6]],"\uffff":1,"\U00010000":[[1,1,1]],"w":[[7,8,9],[7,8,9]],"":{"x":[1],"a":"\\u00e9"}}',
    '{"y":1,"w":[[7,8,9],[7,8,9]],"v":[[1,2,3],[4,5,6.0]],"x":[[1,2,3],[4,5,null]]}',
    '{"y":1,"w":[[7,8,9],[7,8,9]],"v":[[1,2,3],[4,5,6.0]],"x":[[1,2,3],[4,5,NaN]]}',
    '{"y":1,"w":[[7,8,9],[7,8,9]],"x":[[1,2,3],[4,5,6]],"v":NaN}',
    '{"y":1,"w":[[7,8,9],[7,8,9]],"x":[[1,2,3],[4,5,6]],"x":[[1,2,3],[4,5,7]]}',
    '{"y":1,"w":[[7,8,9],[7,8,9]],"x":[[1,2,3],[4,5,6]],"v":' + "[" * 254 + "]" * 254 + "}",
]


@pytest.mark.parametrize("line", UNUSUAL)
def test_a_large_record_has_the_same_hash_as_its_id(line):
    same_outcome(line.encode(), without_id(ROWS))


LABELS_PER_STEP = {
    "kind: step_class, classes: [a, 'b,c', 7, true]": ['"a"', '"b,c"', "7", "true", "null"],
    "kind: step_regression": ["1", "-2.50", "1e3", "null", "123456789012345678901234567890"],
    "kind: step_multilabel, classes: [a, 'b],c', 7]": ['["a"]', '[ "b],c",7 ]', "[]", "null", '["a", "a"]'],
}
# What a label may have instead of its last value.
FAULTS = ["", "1,", '"d"', "{}", "[[1]]", "NaN", "1e999", '"\\ud800"', "1]", '"', "]"]


@pytest.mark.parametrize("kind", LABELS_PER_STEP)
@pytest.mark.parametrize("nan_is_missing", ["", "nan_is_missing: true\n"])
def test_a_label_per_step_of_a_large_record_is_read_in_pieces(kind, nan_is_missing, monkeypatch):
    schema = Schema.parse(
        f"id: id\nsteps: {{n: {{dtype: float32, missing: fill}}}}\nlabel: {{name: y, {kind}}}\n{nan_is_missing}"
    )
    read = []
    monkeypatch.setattr(
        records, "_read_label", lambda *given, real=records._read_label: read.append(real(*given)) or read[-1]
    )
    values = LABELS_PER_STEP[kind]
    for label in (values, values[:1] * 9, *([*values[:1], fault] for fault in FAULTS)):
        for separator in (",", " , "):
            numbers = ",".join(["1"] * len(label))
            for text in (
                f'"y":[{separator.join(label)}],"n":[{numbers}]',
                f'"n":[{numbers}],"y":[{separator.join(label)} ]',
            ):
                line = f'{{"id":"r",{text},"z":[1, 2, 3, 4, 5]}}'.encode()
                same_outcome(line, schema)
                same_outcome(line, without_id(schema))
    # A label whose values contain what looks like the end of a step is left to the slow parser.
    assert any(label is not None for label in read)


@st.composite
def schemas_and_records_of_all_kinds(draw):
    """Draws a schema and a record that fits it, with the other keys of a schema: max_length, group, splits, next_of."""
    schema, record = draw(schemas_and_records())
    document = schema.canonical()
    if draw(st.booleans()):
        document |= {"max_length": draw(st.integers(1, 6)), "over_length": draw(st.sampled_from(OVER_LENGTH))}
    beside = draw(st.sampled_from(["", "group", "from"]))
    if beside == "group":
        document["group"], record["a group"] = "a group", draw(st.text(max_size=3) | st.integers(-9, 2**63 - 1))
    if beside == "from":
        document["splits"], record["a split"] = (
            {"from": "a split"},
            draw(st.sampled_from(["train", "validation", "test"])),
        )
    # Features whose next value is one number, or a row of two or more.
    next_of_names = [
        name for name, f in schema.steps.items() if f.dtype == "float32" and len(f.shape) < 2 and f.shape != (1,)
    ]
    if next_of_names and draw(st.booleans()):
        document["label"] = {"next_of": draw(st.sampled_from(next_of_names))}
    return Schema.parse(json.dumps(document, ensure_ascii=False)), record


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(schemas_and_records_of_all_kinds())
def test_records_of_every_kind_give_the_same_bytes(schema_and_record):
    schema, record = schema_and_record
    for separators in ((",", ":"), (" , ", ": ")):
        text = json.dumps(record, separators=separators, ensure_ascii=separators == (",", ":"))
        try:
            line = text.encode()
        except UnicodeEncodeError:
            continue
        assert outcome_in_pieces(line, without_id(schema)) == slow_outcome(line, without_id(schema))
        result = same_outcome(line, schema)
        if schema.over_length == "reject" and len(result) == 3:
            assert result[0] == "over_length"
        else:
            assert (
                result.example
                == encode_for_shuffle(records.parse_record(record, schema), NOWHERE, schema, seed=0).example
            )


REPLACEMENTS = [
    b"null", b"true", b"false", b'"a"', b'"["', b'"]"', b'"\\u005b"', b'"\\ud800"', b"[]", b"[1]", b"[[1]]", b"{}",
    b'{"a":[1]}',     b"-0", b"-0.0", b"1e400", b"-1e400", b"1e39", b"3.4028235677973366e38", b"3.4028235e38",
    b"1e-46", b"1e-400",
    b"NaN",     b"Infinity", b"-Infinity", b"9", b"-1", b"1.0", b"01", b".5", b"1.", b"+1", b"-",
    b"9223372036854775807",
    b"9223372036854775808", b"18446744073709551615", b"18446744073709551616", b"1" * 400,
    b"", b" ", b",", b"[", b"]", b"{", b"}",
    b'"', b"\\", b"\0", b"\xff", b"\xef\xbb\xbf", b"\t", b"\r", b"\x0b", b'"id":"q",', b'"x":[],', b'"y":["b","b"],',
    b'"ab"', b'"abc"', b'{"a":1,"b":2}', b'{"a":1,"b":2,"c":3}', b'"q\\u0000r":[],', b'"x\\u0000":1,', b'"q":[],',
    b'"more":[[1],{"a":1,"a":[2]}],', b'"\\u0078":[],', b"5e-324", b"16777217", b"9007199254740993",
    b'{"id":"r","id":"s","y":1},', b"[" * 253 + b"]" * 253, b"[" * 254 + b"]" * 254, b"[" * 255 + b"]" * 255,
    b"[" * 300 + b"]" * 300,
    b"[" * 1022 + b"]" * 1022, b"[" * 1023 + b"]" * 1023, b"[" * 1100 + b"]" * 1100,
]  # fmt: skip
REPLACED = [b"1", b"2.5", b"[", b"]", b",", b'"a"', b"null", b":", b'"x"', b"{", b"}", b"0", b"8"]


def damage(chance, record):
    """Returns the line of a record in which up to three parts are replaced, or have an unusual value before them."""
    line = json.dumps(record, separators=(",", ":")).encode()
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        if chance.random() < 0.2:
            place = chance.randrange(len(line))
            start, stop = place, place + chance.randrange(4)
        else:
            part = chance.choice(REPLACED)
            places = [at for at in range(len(line)) if line.startswith(part, at)] or [0]
            start = chance.choice(places)
            stop = start + chance.choice([0, len(part), len(part)])
        line = line[:start] + chance.choice(REPLACEMENTS) + line[stop:]
    return line


def check_damaged_lines(number, seed):
    """Checks `number` damaged lines. Returns their reasons, and "good" for records that are still valid."""
    chance = random.Random(seed)
    reasons = set()
    for count in range(number):
        schema, record = chance.choice(SCHEMAS_AND_RECORDS)
        line = damage(chance, record)
        try:
            result = same_outcome(line, schema)
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, line {count} of schema {SCHEMAS_AND_RECORDS.index((schema, record))}: {line!r}"
            ) from error
        reasons.add(result[0] if len(result) == 3 else "good")
    return reasons


def test_damaged_lines_give_the_same_outcome():
    reasons = check_damaged_lines(2000, 0)
    assert {"good", "not_json", "missing_field", "wrong_type", "wrong_shape", "not_finite", "unknown_class"} <= reasons
    assert {"uneven_lengths", "bad_id"} <= reasons


# Position of the replaced part as a fraction of the line; number of its bytes; the replacement.
EDITS = st.tuples(st.floats(0, 1), st.integers(0, 6), st.sampled_from(REPLACEMENTS) | st.binary(max_size=3))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SCHEMAS_AND_RECORDS) | schemas_and_records_of_all_kinds(), st.lists(EDITS, min_size=1, max_size=3)
)
def test_edited_records_of_every_kind_give_the_same_outcome(schema_and_record, edits):
    schema, record = schema_and_record
    line = json.dumps(record).encode()
    for share, width, odd in edits:
        start = round(share * len(line))
        line = line[:start] + odd + line[start + width :]
    same_outcome(line, schema)


@pytest.mark.proof
@pytest.mark.parametrize("seed", range(1, 5))
def test_a_hundred_thousand_damaged_lines_give_the_same_outcome(seed):
    check_damaged_lines(100_000, seed)


@pytest.mark.parametrize(
    "x",
    [
        "[[[1],2,3]]", "[[[],[1,2],3]]", "[[1,2,3],[]]", "[[1,2],[3,4,5,6]]", "[1,2,3]", "[[1,2,3],4]", '["abc"]',
        '[{"a":1,"b":2,"c":3}]', "[[1,2,true]]", "[[1,2,null]]", '[[1,2,"3"]]', "[[1,2,3],null]", "[]", "{}", "3",
        "[[1,2,1e400]]",         "[[1,2,3],[1,2,3],]", "[[1,2,3],,[1,2,3]]", "[[1,2,3] [1,2,3]]", "[[1,2,3],[1,2,3]",
        "[[1,2,3]]]", "[[1,2,3e]]",
    ],
)  # fmt: skip
def test_a_feature_that_is_not_a_list_of_rows_gives_the_same_outcome(x):
    schema = Schema.parse("id: id\nsteps: {x: {dtype: float32, shape: [3]}}\nlabel: {name: y, kind: regression}\n")
    for more in ("", ',"more":[[1],2]', ',"x":[[1,2,3]]'):
        same_outcome(b'{"id":"r","x":%b,"y":1%b}' % (x.encode(), more.encode()), schema)


@given(st.lists(st.tuples(*[st.floats(width=32, allow_nan=False)] * 3), min_size=1, max_size=9), st.integers(0, 3))
def test_a_list_read_in_pieces_is_one_list(rows, spaces):
    schema = Schema.parse("id: id\nsteps: {x: {dtype: float32, shape: [3]}}\nlabel: {name: y, kind: regression}\n")
    text = json.dumps({"id": 1, "x": rows, "y": 2}).replace("Infinity", "1e999").replace(",", " " * spaces + ",")
    same_outcome(text.encode(), schema)
