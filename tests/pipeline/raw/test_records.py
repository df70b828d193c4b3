"""A raw record is parsed, or rejected with a reason, the place, the value and what was expected."""

import dataclasses
import json
import math
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.raw.records import LIMITS, Limits, parse_line, parse_record
from pipeline.raw.rejects import REASONS, RecordError
from pipeline.schema.record import MISSING_STRING, NO_LABEL, ParsedRecord
from pipeline.schema.schema import Schema

STEPS = """\
steps:
  x: {dtype: float32, shape: [2]}
  page: {dtype: int64, num_values: 5}
  word: {dtype: string, num_values: 9}
"""
CLASS = "label: {name: y, kind: class, classes: [a, 1, true]}\n"
GOOD = {"id": "r", "x": [[1, 2], [3, 4.5]], "page": [0, 4], "word": ["u", "ü"], "y": "a", "who": "p", "part": "test"}

SCHEMA = Schema.parse("id: id\nmax_length: 3\n" + STEPS + CLASS)
GROUPED = Schema.parse("id: id\ngroup: who\n" + STEPS + CLASS)
FROM_FIELD = Schema.parse("id: id\nsplits: {from: part}\n" + STEPS + CLASS)
WITHOUT_ID = Schema.parse(STEPS + CLASS)
KINDS = {
    kind: Schema.parse(f"id: id\n{STEPS}label: {{name: y, kind: {kind}{classes}}}\n")
    for kind, classes in {
        "class": ", classes: [a, b]",
        "distribution": ", classes: [a, b]",
        "regression": "",
        "step_class": ", classes: [a, b]",
        "multilabel": ", classes: [a, b]",
        "step_multilabel": ", classes: [a, b]",
        "step_regression": "",
    }.items()
}
# Nulls are allowed everywhere, and the label is the next value of a feature.
WITH_NULLS = Schema.parse(
    "id: id\nlabel: {next_of: x}\n"
    + STEPS.replace("shape: [2]", "shape: [2], missing: fill")
    + "context: {who: {dtype: string, vocabulary: 3, missing: indicator}}\n"
)
# A feature with nested lists.
DEEP = Schema.parse("id: id\nsteps: {x: {dtype: float32, shape: [2, 3]}}\n" + CLASS)
ALL_SCHEMAS = [SCHEMA, GROUPED, FROM_FIELD, WITHOUT_ID, DEEP, WITH_NULLS, *KINDS.values()]


def reject(record, schema=SCHEMA):
    """Parses a record that must be rejected. Returns (reason, message, id)."""
    parse = parse_line if isinstance(record, str | bytes) else parse_record
    with pytest.raises(RecordError) as caught:
        parse(record, schema)
    return caught.value.reason, caught.value.message, caught.value.id


def test_a_valid_record_is_parsed():
    sequence = parse_line(json.dumps(GOOD), SCHEMA)
    assert (sequence.id, sequence.num_steps, sequence.truncated) == ("r", 2, False)
    assert (sequence.group, sequence.split) == (None, None)
    assert sequence.features["x"].tolist() == [[1, 2], [3, 4.5]]
    assert sequence.features["page"].tolist() == [0, 4]
    assert sequence.features["word"] == [b"u", "ü".encode()]
    assert sequence.label.tolist() == [0]
    assert [a.dtype for a in (sequence.features["x"], sequence.features["page"], sequence.label)] == [
        np.float32,
        np.int64,
        np.int64,
    ]


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("{", "not_json", "column 2"),
        ("", "not_json", "zero-length"),
        ('{"a":1}{"b":2}', "not_json", "unexpected content after document (column 8)"),
        (b'{"id": "\xff"}', "not_json", "byte 0xff at offset 8 of the line is not valid UTF-8"),
        ('{"id": "\\ud800"}', "not_json", "no low surrogate in string"),
        ("[" * 2000 + "]" * 2000, "not_json", "depth limit exceeded"),
        ("3", "not_a_record", "expected an object with fields, not 3"),
        ('["a"]', "not_a_record", 'expected an object with fields, not ["a"]'),
        ("null", "not_a_record", "expected an object with fields, not null"),
        ("[" * 1000 + "]" * 1000, "not_a_record", "expected an object with fields, not "),
        (b"[" + b" " * LIMITS.record_bytes, "too_large", "larger than 67,108,864 bytes"),
    ],
)
def test_a_line_that_is_not_a_record_is_rejected_with_the_cause(line, reason, message):
    found_reason, found_message, record_id = reject(line)
    assert (found_reason, record_id) == (reason, None)
    assert message in found_message
    assert found_message.isprintable()


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"x": None}, "wrong_type", "x: null, expected a list with one value per step"),
        ({"x": "12"}, "wrong_type", 'x: "12", expected a list with one value per step'),
        (
            {"x": [[1, 2], None]},
            "wrong_type",
            "x[1]: null, expected a list of 2 values (set missing: fill or missing: indica",
        ),
        ({"x": [[1, 2], {"a": 1}]}, "wrong_type", 'x[1]: {"a": 1}, expected a list of 2 values'),
        ({"x": [[1, 2], 3]}, "wrong_shape", "x[1]: 3, expected a list of 2 values"),
        ({"x": [[1, 2], [3]]}, "wrong_shape", "x[1]: [3], expected 2 values, not 1"),
        ({"x": [[1, 2], [3, [4]]]}, "wrong_shape", "x[1][1]: [4], expected a number"),
        ({"x": [[1, 2], [3, "4"]]}, "wrong_type", 'x[1][1]: "4", expected a number'),
        ({"x": [[1, 2], [3, True]]}, "wrong_type", "x[1][1]: true, expected a number"),
        (
            {"x": [[1, 2], [None, 4]]},
            "wrong_type",
            "x[1][0]: null, expected a number (set missing: fill or missing: indicator in ",
        ),
        ({"x": [[1, 2], [3, 1e39]]}, "not_finite", "x[1][1]: 1e+39, expected a finite number in the range of float32"),
        ({"x": [[1, 2], [3, -((10**30) ** 20)]]}, "not_finite", "x[1][1]: -1000000"),
        ({"page": [0, 5]}, "unknown_class", "page[1]: 5, expected 0 to 4"),
        ({"page": [-1, 0]}, "unknown_class", "page[0]: -1, expected 0 to 4"),
        ({"page": [0, 10**30]}, "unknown_class", "page[1]: 1000000000000000000000000000000, expected 0 to 4"),
        ({"page": [0, 1.0]}, "wrong_type", "page[1]: 1.0, expected an integer"),
        ({"word": ["u", 3]}, "wrong_type", "word[1]: 3, expected a string"),
        ({"word": ["u", "\ud800"]}, "wrong_type", "word: '\\ud800' is not valid Unicode"),
        ({"x": [], "page": [], "word": []}, "empty_sequence", "x, page, word: no steps; expected at least one"),
        ({"page": [0]}, "uneven_lengths", "x has 2, page has 1, word has 2 steps; expected the same number"),
        ({"x": [[0, 0]] * 4, "page": [0] * 4, "word": ["u"] * 4}, "over_length", "has 4 steps, expected at most 3"),
        ({"y": "c"}, "unknown_class", 'y: "c", expected one of ["a", "1", "true"]'),
        ({"y": None}, "wrong_type", "y: null, expected the name of a class"),
        ({"y": 1.0}, "wrong_type", "y: 1.0, expected the name of a class"),
        ({"y": ["a"]}, "wrong_type", 'y: ["a"], expected the name of a class'),
    ],
)
def test_a_wrong_value_is_rejected_with_its_place_and_the_cause(change, reason, message):
    found_reason, found_message, record_id = reject(GOOD | change)
    assert (found_reason, record_id) == (reason, "r")
    assert message in found_message
    assert found_message.isprintable()


@pytest.mark.parametrize("field", ["x", "page", "word", "y"])
def test_a_missing_field_is_rejected_with_its_name_and_the_fields_of_the_record(field):
    record = {name: value for name, value in GOOD.items() if name != field}
    reason, message, record_id = reject(record)
    assert (reason, record_id) == ("missing_field", "r")
    assert message.startswith(f'{field}: this field is missing; the record has ["id", ')


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999", "1e39", "-1e39", "1" + "0" * 400])
def test_a_non_finite_number_is_rejected_in_every_notation(word):
    line = json.dumps(GOOD).replace("4.5", word)
    reason, message, record_id = reject(line)
    assert (reason, record_id) == ("not_finite", "r")
    assert message.startswith("x[1][1]: ")


def test_a_non_finite_number_in_a_field_outside_the_schema_is_ignored():
    line = json.dumps(GOOD)[:-1] + f', "note": [NaN, -Infinity, 1e999, 1{"0" * 5000}]}}'
    assert parse_line(line, SCHEMA).features["x"].tolist() == GOOD["x"]


def test_the_place_in_a_nested_feature_has_every_index():
    record = {"id": "r", "y": "a", "x": [[[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, None, 6]]]}
    assert reject(record, DEEP)[1].startswith("x[1][1][1]: null, expected a number (set missing: ")
    record["x"][1][1] = [4, 5]
    assert reject(record, DEEP)[:2] == ("wrong_shape", "x[1][1]: [4, 5], expected 3 values, not 2")


@pytest.mark.parametrize("bad", [None, True, 1.5, ["a"], {"a": 1}, "\ud800", float("nan")])
def test_an_id_that_is_not_a_string_or_an_integer_is_rejected(bad):
    reason, message, record_id = reject(GOOD | {"id": bad})
    assert (reason, record_id) == ("bad_id", None)
    assert message.startswith("id: ")


def test_a_missing_id_is_rejected():
    assert reject({"x": []}) == (
        "bad_id",
        "id: this field is missing; expected a string or an integer of up to 64 bits",
        None,
    )


@pytest.mark.parametrize("record_id", [1, "1", np.int64(1), np.str_("1")])
def test_the_integer_1_and_the_string_1_are_the_same_id(record_id):
    assert parse_record(GOOD | {"id": record_id}, SCHEMA).id == "1"


def shuffled(value, rng):
    """Returns `value` with the keys of all objects in random order."""
    if isinstance(value, dict):
        items = list(value.items())
        rng.shuffle(items)
        return {key: shuffled(inner, rng) for key, inner in items}
    return [shuffled(inner, rng) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize("extra", [{}, {"big": 10**30}, {"deep": {"b": [{"d": 1, "c": 2}], "a": 0.1}}])
def test_without_an_id_field_the_id_is_a_hash_that_ignores_white_space_and_key_order(extra):
    rng = random.Random(1)
    record = {name: value for name, value in GOOD.items() if name != "id"} | extra
    lines = [json.dumps(shuffled(record, rng), indent=rng.choice([None, 2])) for _ in range(6)]
    assert len(set(lines)) > 1
    assert len({parse_line(line, WITHOUT_ID).id for line in lines}) == 1
    assert parse_record(record | {"x": [[1, 2], [3, 4]]}, WITHOUT_ID).id != parse_line(lines[0], WITHOUT_ID).id


def test_the_hash_of_a_record_depends_on_every_value_of_its_arrays():
    def record(value):
        x = np.zeros((2, 4000), np.float32)
        x[0, 2000] = value
        # An array that is not contiguous, and an integer of more than 64 bits: orjson cannot write either.
        return {"x": x.T, "page": np.zeros(4000, int), "word": ["u"] * 4000, "y": "a", "big": 10**30, 3: "key"}

    assert parse_record(record(1), WITHOUT_ID).id != parse_record(record(2), WITHOUT_ID).id
    assert parse_record(record(1), WITHOUT_ID).id == parse_record(record(1), WITHOUT_ID).id


def test_a_record_without_id_that_is_nested_too_deeply_is_rejected():
    line = json.dumps(GOOD)[:-1] + ', "note": ' + "[" * 1000 + "]" * 1000 + "}"
    assert reject(line, WITHOUT_ID) == ("not_json", "nested deeper than 254 levels", None)
    assert parse_line(line, SCHEMA).id == "r"


@pytest.mark.parametrize(
    ("given_values", "plain"),
    [
        (np.array([[1, 2], [3, 4.5]], np.float16), GOOD["x"]),
        ([np.array([1, 2]), np.array([3, 4.5], np.float32)], GOOD["x"]),
        ([[np.float32(1), np.int8(2)], [np.float64(3), 4.5]], GOOD["x"]),
    ],
)
def test_numpy_arrays_and_scalars_are_parsed_like_lists_and_numbers(given_values, plain):
    record = GOOD | {"x": given_values, "page": np.array([0, 4], np.int32), "y": np.str_("a")}
    sequence = parse_record(record, SCHEMA)
    assert sequence.features["x"].tolist() == plain
    assert sequence.features["page"].tolist() == [0, 4]
    assert reject(GOOD | {"x": [np.array([1, 2]), np.array([3, np.nan])]})[0] == "not_finite"
    assert reject(GOOD | {"x": [np.array([1, 2]), np.array([3])]})[:2] == (
        "wrong_shape",
        "x[1]: [3], expected 2 values, not 1",
    )
    assert reject(GOOD | {"x": np.array([1, 2])})[0] == "wrong_shape"


@pytest.mark.parametrize(("value", "index"), [("a", 0), (1, 1), ("1", 1), (True, 2), ("true", 2)])
def test_a_class_may_be_a_string_an_integer_or_a_boolean(value, index):
    assert parse_record(GOOD | {"y": value}, SCHEMA).label.tolist() == [index]


def test_a_distribution_is_a_probability_for_each_class():
    schema = KINDS["distribution"]
    assert parse_record(GOOD | {"y": [0.25, 0.75]}, schema).label.tolist() == [0.25, 0.75]
    assert parse_record(GOOD | {"y": [0.3333, 0.6666]}, schema).label.dtype == np.float32
    for bad, reason, message in [
        ([0.5, 0.4], "wrong_type", "y: [0.5, 0.4], expected probabilities of at least 0 that add up to 1, not 0.9"),
        ([-0.5, 1.5], "wrong_type", "y: [-0.5, 1.5], expected probabilities of at least 0 that add up to 1, not 1"),
        ([1], "wrong_shape", "y: 1 value, expected 2: a probability for each class"),
        ([0.5, math.nan], "not_finite", "y[1]: NaN, expected a finite number"),
        ([0.5, "0.5"], "wrong_type", 'y[1]: "0.5", expected a number'),
        (0.5, "wrong_type", "y: 0.5, expected a list"),
    ]:
        found_reason, found_message, _ = reject(GOOD | {"y": bad}, schema)
        assert found_reason == reason
        assert found_message.startswith(message)


def test_a_regression_is_a_finite_number():
    schema = KINDS["regression"]
    assert parse_record(GOOD | {"y": 3}, schema).label.tolist() == [3.0]
    assert reject(GOOD | {"y": 1e39}, schema)[:1] == ("not_finite",)
    assert reject(GOOD | {"y": "3"}, schema)[:2] == ("wrong_type", 'y: "3", expected a number')
    assert reject(GOOD | {"y": True}, schema)[:2] == ("wrong_type", "y: true, expected a number")


def test_step_classes_may_be_null_and_have_the_length_of_the_features():
    schema = KINDS["step_class"]
    assert parse_record(GOOD | {"y": ["b", None]}, schema).label.tolist() == [1, NO_LABEL]
    assert reject(GOOD | {"y": ["b"]}, schema)[0] == "uneven_lengths"
    assert reject(GOOD | {"y": ["b", "c"]}, schema)[1] == 'y[1]: "c", expected one of ["a", "b"]'
    assert reject(GOOD | {"y": None}, schema)[0] == "wrong_type"


@pytest.mark.parametrize(("over_length", "kept"), [("truncate_head", [2, 3, 4]), ("truncate_tail", [0, 1, 2])])
def test_truncate_head_drops_the_first_steps_and_truncate_tail_the_last(over_length, kept):
    schema = Schema.parse(
        f"id: id\nmax_length: 3\nover_length: {over_length}\n"
        "steps: {x: {dtype: float32, shape: [2]}, n: {dtype: float32}, w: {dtype: string, num_values: 9, shape: [2]}}\n"
        "label: {name: y, kind: step_class, classes: [0, 1, 2, 3, 4]}\n"
    )
    steps = list(range(5))
    record = {"id": 1, "x": [[s, -s] for s in steps], "n": steps, "w": [[f"{s}", f"{s}'"] for s in steps], "y": steps}
    sequence = parse_record(record, schema)
    assert (sequence.num_steps, sequence.truncated) == (3, True)
    assert sequence.features["x"].tolist() == [[s, -s] for s in kept]
    assert sequence.features["n"].tolist() == kept
    assert sequence.features["w"] == [word for s in kept for word in (b"%d" % s, b"%d'" % s)]
    assert sequence.label.tolist() == kept
    short = parse_record({name: v[:3] if name != "id" else v for name, v in record.items()}, schema)
    assert (short.num_steps, short.truncated) == (3, False)


def test_a_group_is_a_key_like_an_id():
    assert parse_record(GOOD | {"who": 7}, GROUPED).group == "7"
    assert reject(GOOD | {"who": None}, GROUPED)[:2] == (
        "wrong_type",
        "who: null, expected a string or an integer of up to 64 bits",
    )
    assert reject({k: v for k, v in GOOD.items() if k != "who"}, GROUPED)[0] == "missing_field"


def test_a_field_of_the_record_may_name_its_split():
    assert parse_record(GOOD, FROM_FIELD).split == "test"
    assert parse_record(GOOD | {"part": np.str_("train")}, FROM_FIELD).split == "train"
    assert reject(GOOD | {"part": "dev"}, FROM_FIELD)[:2] == (
        "unknown_class",
        'part: "dev", expected one of train, validation, test',
    )
    for bad in (None, ["train"], np.array(["train", "test"])):
        assert reject(GOOD | {"part": bad}, FROM_FIELD)[0] == "wrong_type"
    assert reject({k: v for k, v in GOOD.items() if k != "part"}, FROM_FIELD)[0] == "missing_field"


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(["a", "train", [1, 2], [[1, 2]], [0.5, 0.5], ["u"], [None]]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def check_outcome(parse, record, schema):
    """Checks that `parse` returns a valid record, or raises a RecordError with a known reason."""
    try:
        sequence = parse(record, schema)
    except RecordError as error:
        assert error.reason in REASONS
        assert error.message.isprintable()
    else:
        assert isinstance(sequence, ParsedRecord)
        assert sequence.num_steps >= 1
        sequence.id.encode()
        for name, feature in schema.steps.items():
            values = sequence.features[name]
            assert len(values) == sequence.num_steps * (feature.width if isinstance(values, list) else 1)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(ALL_SCHEMAS), st.dictionaries(st.sampled_from(list(GOOD)), JSON_VALUES, max_size=3))
@example(WITHOUT_ID, {"x": [[1, 10**400], [3, 4]]})
def test_any_json_value_in_any_field_gives_a_record_or_a_reason(schema, change):
    record = GOOD | change
    check_outcome(parse_record, record, schema)
    check_outcome(parse_line, json.dumps(record), schema)


@given(JSON_VALUES | st.text(), st.sampled_from(ALL_SCHEMAS))
def test_any_json_gives_a_record_or_a_reason(value, schema):
    check_outcome(parse_record, value, schema)
    check_outcome(parse_line, json.dumps(value), schema)


@given(st.binary(max_size=60) | st.text(st.characters(), max_size=60), st.integers(0, 150), st.integers(0, 5))
def test_any_damage_to_a_line_gives_a_record_or_a_reason(junk, start, width):
    line = json.dumps(GOOD)
    if isinstance(junk, bytes):
        line = line.encode()
    check_outcome(parse_line, junk, SCHEMA)
    check_outcome(parse_line, line[:start] + junk + line[start + width :], SCHEMA)


def test_tuples_are_parsed_like_lists():
    """Beam's own transforms return tuples."""
    record = GOOD | {"x": ((1, 2), [3, 4.5]), "page": (0, 4), "word": ("u", "ü")}
    ours, theirs = parse_record(record, SCHEMA), parse_record(GOOD, SCHEMA)
    assert ours.features["x"].tolist() == theirs.features["x"].tolist()
    assert ours.features["page"].tolist() == theirs.features["page"].tolist()
    assert ours.features["word"] == theirs.features["word"]


def test_a_record_above_custom_limits_is_too_large():
    line = json.dumps(GOOD)
    assert parse_line(line, SCHEMA, limits=Limits(len(line), len(GOOD["x"]))).id == GOOD["id"]
    for limits, message in [
        (Limits(record_bytes=len(line) - 1), f"larger than {len(line) - 1} bytes"),
        (Limits(record_steps=len(GOOD["x"]) - 1), f"has {len(GOOD['x'])} steps, expected at most {len(GOOD['x']) - 1}"),
    ]:
        with pytest.raises(RecordError, match=message) as caught:
            parse_line(line, SCHEMA, limits=limits)
        assert caught.value.reason == "too_large"


def test_a_string_of_a_vocabulary_in_lower_case_is_lowered_when_it_is_parsed():
    feature = "{dtype: string, vocabulary: {size: 9, lowercase: true}, missing: fill}"
    schema = Schema.parse(f"id: id\nsteps: {{word: {feature}}}\ncontext: {{city: {feature}}}\nlabel: {{next_of: word}}")
    parsed = parse_line(json.dumps({"id": 1, "word": ["THE", None, "\u0130\u03a3"], "city": "\u00c4"}), schema)
    assert parsed.features["word"] == [b"the", MISSING_STRING, "i\u0307\u03c2".encode()]
    assert parsed.context["city"] == ["\u00e4".encode()]


RENAMED_TEXT = """id: {USER}
steps:
  XXX: {{dtype: float32, shape: [2], from: {XXX}}}
  PAGE: {{dtype: int64, num_values: 5, from: {PAGE}}}
context: {{LEN: {{dtype: float32, from: {LEN}, missing: fill}}}}
label: {{name: YYY, from: {YYY}, kind: step_class, classes: [a, b]}}
splits: {{from: {PART}}}
max_length: 3
"""
FIELDS = {"USER": "User ID", "XXX": "Sensor 1", "PAGE": "id", "LEN": "length", "YYY": "the label", "PART": "x"}
RENAMED, PLAIN = (Schema.parse(RENAMED_TEXT.format(**names)) for names in (FIELDS, {name: name for name in FIELDS}))
TO_RENAME = {"USER": "r", "XXX": [[1, 2], [3, 4.5]], "PAGE": [0, 4], "LEN": 3, "YYY": ["a", None], "PART": "test"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"LEN": None},
        {"YYY": ["a", "c"]},
        {"YYY": ["a"]},
        {"YYY": "a"},
        {"XXX": [[1, 2], [3]]},
        {"XXX": [[1, 2]] * 4, "PAGE": [0] * 4, "YYY": ["a"] * 4},
        {"PAGE": [0, 5]},
        {"LEN": "1"},
        {"PART": "all"},
        {"USER": None},
    ],
)
def test_a_field_with_another_name_is_read_as_one_with_the_name_of_the_feature(change):
    record = TO_RENAME | change
    renamed = json.dumps({FIELDS[name]: value for name, value in record.items()})
    for line in (renamed, renamed.encode()):  # value by value, and as arrays
        if not {*change} - {"LEN"} and change.get("LEN") is None:
            assert show_record(parse_line(line, RENAMED)) == show_record(parse_record(record, PLAIN))
            continue
        theirs = reject(record, PLAIN)
        for name, field in FIELDS.items():
            theirs = (theirs[0], theirs[1].replace(name, field), theirs[2])
        assert reject(line, RENAMED) == theirs


def show_record(record):
    return {name: str(value) for name, value in dataclasses.asdict(record).items()}


def test_two_features_may_have_the_same_field():
    schema = Schema.parse(
        "id: id\nsteps: {number: {dtype: float32, from: n}, category: {dtype: int64, num_values: 5, from: n}}\n"
        "context: {name: {dtype: string, vocabulary: 3, from: id}}\nlabel: {name: y, kind: step_regression, from: n}\n"
    )
    record = parse_line(b'{"id": "r", "n": [1, 4]}', schema)
    assert (record.features["number"].tolist(), record.features["category"].tolist()) == ([1.0, 4.0], [1, 4])
    assert (record.label.tolist(), record.context["name"]) == ([1.0, 4.0], [b"r"])
