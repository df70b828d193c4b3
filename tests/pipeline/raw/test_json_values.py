"""One grammar: whether a line is read does not depend on a number that is not finite in a field that nothing reads."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.raw import json_values
from pipeline.raw.json_arrays import count_keys, list_keys
from pipeline.raw.json_values import load_json
from pipeline.raw.records import parse_line
from pipeline.raw.rejects import RecordError
from pipeline.schema.schema import Schema

SCHEMA = Schema.parse("id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a]}\n")
WITHOUT_ID = Schema.parse("steps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a]}\n")
NON_FINITE = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1.5E+400", b"1" + b"0" * 400]


def fate(line):
    """Returns the value of a line, or the reason why it has none."""
    try:
        return json.dumps(load_json(line))
    except RecordError as error:
        return error.reason


FINITE = [b"0", b"-0", b"1.5e300", b"1e-400", b"12345678901234567890123", b"9" * 250, b"9223372036854775808"]
PIECES = [
    b'"id"',
    b'"a"',
    b'"NaN"',
    b'"\\ud83d"',
    b'"\\""',
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b":",
    b" ",
    b"0",
    b"-",
    b"\xff",
]
PIECES += [b"null", b"\xef\xbb\xbf", b"1e", b"x", b"\x00"] + FINITE
VALID = st.recursive(
    st.sampled_from(FINITE + [b'"a"', b'"NaN"', b"null"]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: b"[" + b",".join(items) + b"]")
        | st.lists(st.tuples(st.sampled_from([b'"a"', b'"b"', b'"NaN"', b'"\\u0061"']), inner), max_size=3).map(
            lambda pairs: b"{" + b", ".join(b"%b:%b" % pair for pair in pairs) + b"}"
        )
    ),
)
MIXED = st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([*PIECES, "é☃😀".encode(), b"\xc3", b"\xf0\x9f", b"\xed\xa0\xbd"])).map(b"".join),
    st.integers(4, 9),
)
def test_the_first_byte_that_is_not_utf_8_is_named_with_its_offset(monkeypatch, line, piece_bytes):
    monkeypatch.setattr(json_values, "_PIECE_BYTES", piece_bytes)
    try:
        line.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(
            RecordError, match=f"byte 0x{line[error.start]:02x} at offset {error.start} of the line is not"
        ):
            load_json(line)
    else:
        assert json_values._describe_wrong_byte(line) is None


def test_a_line_in_another_encoding_is_rejected_with_the_wrong_byte_and_what_is_around_it():
    long = "é" * 100 + " caf"
    for line, message in (
        (
            '{"y":"café"}'.encode("latin-1"),
            """byte 0xe9 at offset 9 of the line is not valid UTF-8 (invalid continuation \
byte), in '{"y":"caf\ufffd"}'; expected UTF-8""",
        ),
        (
            long.encode() + b"\xe9",
            f"byte 0xe9 at offset 204 of the line is not valid UTF-8 (unexpected end of data), in \
'{long[-14:]}\ufffd'; expected UTF-8",
        ),
        (
            "{}".encode("utf-16"),
            "byte 0xff at offset 0 of the line is not valid UTF-8 (invalid start byte), in \
'\ufffd\ufffd{\\x00}\\x00'; expected UTF-8",
        ),
        (
            b'{"a":NaN,"\xff":0}',
            'byte 0xff at offset 10 of the line is not valid UTF-8 (invalid start byte), in \
\'{"a":NaN,"\ufffd":0}\'; expected UTF-8',
        ),
    ):
        for text in (line, bytearray(line)):
            with pytest.raises(RecordError) as caught:
                load_json(text)
            assert (caught.value.reason, caught.value.message) == ("not_json", message)


@given(VALID | MIXED, st.sampled_from(NON_FINITE))
def test_a_line_has_the_same_fate_beside_a_non_finite_number(value, number):
    plain, beside = fate(b"[0,%b]" % value), fate(b"[%b,%b]" % (number, value))
    if plain == "not_json":
        assert beside == "not_json"
    else:
        assert json.loads(beside)[1:] == json.loads(plain)[1:]
        assert not math.isfinite(json.loads(beside)[0])


@pytest.mark.parametrize("number", NON_FINITE)
@pytest.mark.parametrize(
    "line",
    [
        b'{"id":12345678901234567890123,"x":[1.0],"y":"a"}',
        b'{"id":"a","text":"cut \\ud83d","x":[1.0],"y":"a"}',
        b'\xef\xbb\xbf{"id":"a","x":[1.0],"y":"a"}',
        b'{"id":"a","x":[1.0],"y":"a",}',
        '{"id":"a","x":[1.0],"y":"a"}'.encode("utf-16"),
        b'{"id":"a","x":[01.0],"y":"a"}',
        b'{"id":"a","x":[1.0],"y":"a","id":"a"}',
        b'{"id":"a","x":[1.0],"y":"a"}',
        b'{"id":"a","x":' + b"[" * 2000 + b"]" * 2000 + b',"y":"a"}',
    ],
)
def test_a_record_has_the_same_fate_beside_a_non_finite_number_that_nothing_reads(line, number):
    def reason(text, schema):
        try:
            parse_line(text, schema)
        except RecordError as error:
            return error.reason
        return None

    beside = line.replace(b'"x"', b'"note":%b,"x"' % number)
    for schema in (SCHEMA, WITHOUT_ID):
        assert reason(line, schema) == reason(beside, schema)
    assert (reason(line, SCHEMA) is None) == (line == b'{"id":"a","x":[1.0],"y":"a"}')


@pytest.mark.parametrize(
    "text",
    [
        b"01e999",
        b"1.e999",
        b"+1e999",
        b"-NaN",
        b"NaNNaN",
        b"nan",
        b"1e999.5",
        b"--1e999",
        b"1e999.",
        b"1e999e",
        b"1e999+",
    ],
)
def test_what_only_looks_like_a_non_finite_number_is_not_json(text):
    assert fate(b"[%b]" % text) == "not_json"
    assert fate(b"{%b:0}" % text) == fate(b"{NaN:0}") == "not_json"


@pytest.mark.parametrize("schema", [SCHEMA, WITHOUT_ID])
@pytest.mark.parametrize(
    "extra", [b"", b',"big":12345678901234567890123', b',"note":[NaN,{"y":1}]', b',"\\u0000":{"x":0}']
)
def test_a_record_with_a_duplicate_key_is_rejected(schema, extra):
    once = b'{"id":"r","x":[1.0],"y":"a"%b}' % extra
    assert parse_line(once, schema).num_steps == 1
    assert parse_line(once.decode(), schema).num_steps == 1
    for text in (b'"y":"a"', b'"\\u0079":0', b'"y" : NaN'):
        for twice in (once[:-1] + b"," + text + b"}", b"{" + text + b"," + once[1:]):
            for line in (twice, bytearray(twice), twice.decode()):
                with pytest.raises(RecordError, match='^"y": the record has this key 2 times, expected once$') as error:
                    parse_line(line, schema)
                assert error.value.reason == "duplicate_key"


@given(st.lists(st.tuples(st.sampled_from("abc\0"), VALID), max_size=5))
def test_keys_are_counted_at_the_top_only(pairs):
    line = b"{" + b",".join(b"%b: %b" % (json.dumps(name).encode(), value) for name, value in pairs) + b"}"
    assert count_keys(line) == len(pairs)
    assert list_keys(line) == [name for name, _ in pairs]


def test_a_string_is_no_number_even_if_it_holds_the_marker(monkeypatch):
    line = b'{"a":[NaN,"NaN"],"b":{"c":"-Infinity","d":[[1e999]]}}'
    found = load_json(line)
    assert math.isnan(found["a"][0])
    assert found["a"][1:] + [found["b"]] == ["NaN", {"c": "-Infinity", "d": [[math.inf]]}]
    assert json_values.load_json('["\\u00e9", NaN]')[0] == "é"
