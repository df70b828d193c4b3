"""The parser gives the same nulls, context and labels as a simple parser."""

import copy
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import plain_example, same_values, schemas_and_records

from pipeline.format.examples import decode_example, encode_record
from pipeline.inspection.verify_records import check_example
from pipeline.raw.records import parse_line, parse_record
from pipeline.raw.rejects import RecordError
from pipeline.schema.labels import Label
from pipeline.schema.record import NO_LABEL, is_missing, named_classes, num_labels
from pipeline.schema.schema import Schema

NULL_HINT = " (set missing: fill or missing: indicator in the schema to allow nulls)"
EVERY = Schema.parse(
    """
id: id
steps:
  x: {dtype: float32, shape: [2], missing: fill}
  deep: {dtype: float32, shape: [2, 2], missing: indicator}
  page: {dtype: int64, num_values: 5, missing: indicator}
  word: {dtype: string, vocabulary: 4, shape: [2], missing: fill}
  strict: {dtype: float32}
context:
  age: {dtype: float32, missing: indicator}
  city: {dtype: string, vocabulary: 3, missing: {fill: york}}
  plan: {dtype: int64, num_values: 3, shape: [2], missing: {fill: 0}}
  size: {dtype: float32, shape: [2]}
  kind: {dtype: string, num_values: 9}
  code: {dtype: int64, num_values: 3}
label: {name: y, kind: step_regression}
"""
)
GOOD = {
    "id": "r",
    "x": [[1, None], None],
    "deep": [[[1, 2], None], [[None, 4], [5, 6]]],
    "page": [4, None],
    "word": [["a", None], None],
    "strict": [1, 2],
    "age": None,
    "city": None,
    "plan": [None, 2],
    "size": [1, 2],
    "kind": "k",
    "code": 2,
    "y": [None, 0.5],
}


def reject(record, schema=EVERY):
    """Parses a record that must be rejected. Returns (reason, message)."""
    with pytest.raises(RecordError) as caught:
        parse_record(record, schema)
    assert caught.value.message == str(caught.value)
    return caught.value.reason, caught.value.message


@settings(suppress_health_check=list(HealthCheck))
@given(schemas_and_records())
def test_any_record_with_nulls_is_parsed_as_by_a_simple_parser(drawn):
    schema, record = drawn
    expected = plain_example(record, schema)
    for sequence in (parse_record(record, schema), parse_line(json.dumps(record), schema)):
        assert [sequence.num_steps] == expected["length"]
        for name, values in (sequence.features | sequence.context | {schema.label.name: sequence.label}).items():
            flat = values if isinstance(values, list) else values.ravel()
            assert same_values(flat, expected[name])
        stored = decode_example(encode_record(sequence, schema))
        assert stored.keys() == expected.keys()
        assert all(same_values(values, expected[name]) for name, values in stored.items())
        assert check_example(stored, schema) == sequence.num_steps
        labelled = [y for y in record[schema.label.name] if y is not None] if schema.label.per_step else [1]
        assert num_labels(sequence, schema) == len(labelled)


@settings(suppress_health_check=list(HealthCheck))
@given(schemas_and_records(), st.data())
def test_a_null_that_is_not_allowed_is_rejected_with_its_place_and_a_hint(drawn, data):
    schema, record = drawn
    strict = [name for name, feature in schema.features.items() if not feature.allows_nulls]
    if not strict:
        return
    name = data.draw(st.sampled_from(strict))
    shape = list(schema.features[name].shape)
    size = [len(record[name])] if name in schema.steps else []
    depth = data.draw(st.integers(len(size), len(size) + len(shape)))
    place = [data.draw(st.integers(0, dimension - 1)) for dimension in [*size, *shape][:depth]]
    record = copy.deepcopy(record)
    *path, last = [name, *place]
    inner = record
    for key in path:
        inner = inner[key]
    inner[last] = None
    reason, message = reject(record, schema)
    assert reason == "wrong_type"
    assert message.startswith(f"{name}{''.join(f'[{position}]' for position in place)}: null, expected ")
    assert message.endswith(NULL_HINT)
    assert "\n" not in message


NAN = float("nan")


def with_nan(value, draw):
    """Returns a value of a float feature with NaN in place of some of its nulls."""
    if isinstance(value, list):
        return [with_nan(inner, draw) for inner in value]
    return NAN if value is None and draw(st.booleans()) else value


@settings(suppress_health_check=list(HealthCheck))
@given(schemas_and_records(), st.data(), st.booleans())
def test_with_nan_is_missing_a_record_with_nan_is_parsed_as_with_null(drawn, data, has_id):
    schema, record = drawn
    names = [name for name, feature in schema.features.items() if feature.dtype == "float32" and feature.allows_nulls]
    names += [schema.label.name] if schema.label.kind == "step_regression" else []
    if not names:
        return
    values = schema.canonical() | {"nan_is_missing": True} | ({} if has_id else {"id": None})
    schema = Schema.model_validate(values)
    changed = record | {name: with_nan(record[name], data.draw) for name in names if name in record}
    expected = encode_record(parse_record(record, schema), schema)
    for line in (json.dumps(changed), json.dumps(changed).encode()):
        assert encode_record(parse_line(line, schema), schema) == expected
    arrays = {}
    for name in names:
        try:
            arrays[name] = -np.array(changed[name], np.float64)  # the sign of a NaN must not be stored
            arrays[name] = -arrays[name]
        except (KeyError, TypeError, ValueError):  # with a null, or rows of different lengths
            continue
    parsed = parse_record(changed | {"id": record["id"]} | arrays, schema)
    parsed.id = parse_record(record, schema).id
    assert encode_record(parsed, schema) == expected


WITH_NAN = Schema.model_validate(EVERY.canonical() | {"nan_is_missing": True})


def test_a_nan_is_a_missing_value_only_where_a_null_is():
    changed = {"x": [[1, NAN], NAN], "deep": [[[1, 2], NAN], [[NAN, 4], [5, 6]]], "age": NAN, "y": [NAN, 0.5]}
    expected = encode_record(parse_record(GOOD, EVERY), EVERY)
    assert encode_record(parse_line(json.dumps(GOOD | changed), WITH_NAN), WITH_NAN) == expected
    scalars = {"x": [[1, np.float32(NAN)], np.float32(NAN)], "y": [np.float32(NAN), 0.5]}
    assert encode_record(parse_record(GOOD | changed | scalars, WITH_NAN), WITH_NAN) == expected
    array = np.array([[1, NAN], [-NAN, NAN]], np.float32)
    assert encode_record(parse_record(GOOD | changed | {"x": array}, WITH_NAN), WITH_NAN) == expected
    finite = ", expected a finite number in the range of float32"
    both = " (set missing: fill or missing: indicator, and nan_is_missing: true, in the schema to read NaN as null)"
    one = " (set nan_is_missing: true in the schema to read NaN as null)"
    for schema, change, message in (
        (EVERY, {"x": [[1, NAN], None]}, f"x[0][1]: NaN{finite}{one}"),
        (EVERY, {"x": array}, f"x[0][1]: NaN{finite}{one}"),
        (EVERY, {"y": [NAN, 0.5]}, f"y[0]: NaN{finite}{one}"),
        (EVERY, {"strict": [1, NAN]}, f"strict[1]: NaN{finite}{both}"),
        (WITH_NAN, {"strict": [1, NAN]}, f"strict[1]: NaN{finite}{both}"),
        (WITH_NAN, {"size": [1, NAN]}, f"size[1]: NaN{finite}{both}"),
        (WITH_NAN, {"x": [[NAN, math.inf], None]}, f"x[0][1]: Infinity{finite}"),
        (WITH_NAN, {"x": array * np.float32([math.inf, 1])}, f"x[0][0]: Infinity{finite}"),
        (WITH_NAN, {"y": [NAN, -math.inf]}, f"y[1]: -Infinity{finite}"),
        (WITH_NAN, {"y": [NAN, 1e39]}, f"y[1]: 1e+39{finite}"),
        (WITH_NAN, {"x": [["NaN", 1], None]}, 'x[0][0]: "NaN", expected a number'),
        (WITH_NAN, {"page": [4, NAN]}, "page[1]: NaN, expected an integer"),
        (WITH_NAN, {"word": [["a", NAN], None]}, "word[0][1]: NaN, expected a string"),
        (WITH_NAN, {"word": NAN}, "word: NaN, expected a list with one value per step"),
    ):
        assert reject(GOOD | change, schema)[1] == message


def test_a_nan_in_a_label_of_the_record_is_rejected():
    values = EVERY.canonical() | {"nan_is_missing": True, "label": {"name": "y", "kind": "regression"}}
    assert reject(GOOD | {"y": NAN}, Schema.model_validate(values))[0] == "not_finite"


def test_a_record_of_every_kind_of_feature_is_stored_with_its_nulls():
    sequence = parse_record(GOOD, EVERY)
    stored = decode_example(encode_record(sequence, EVERY))
    nan = math.nan
    for name, expected in {
        "x": [1, nan, nan, nan],
        "deep": [1, 2, nan, nan, nan, 4, 5, 6],
        "page": [4, -1],
        "age": [nan],
        "plan": [-1, 2],
        "size": [1, 2],
        "code": [2],
        "y": [nan, 0.5],
    }.items():
        np.testing.assert_array_equal(stored[name], expected)
    assert stored["word"] == [b"a", b"\xff", b"\xff", b"\xff"]
    assert (stored["city"], stored["kind"]) == ([b"\xff"], [b"k"])
    assert {name: values.shape for name, values in sequence.context.items() if name not in ("city", "kind")} == {
        "age": (),
        "plan": (2,),
        "size": (2,),
        "code": (),
    }


def test_a_missing_context_field_is_null_if_nulls_are_allowed():
    short = {name: value for name, value in GOOD.items() if name not in ("age", "city", "plan")}
    sequence = parse_record(short, EVERY)
    assert np.isnan(sequence.context["age"])
    assert (sequence.context["city"], sequence.context["plan"].tolist()) == ([b"\xff"], [-1, -1])
    reason, message = reject({name: value for name, value in GOOD.items() if name != "size"})
    assert (reason, message.split(";")[0]) == ("missing_field", "size: this field is missing")


@pytest.mark.parametrize(
    ("change", "reason", "message"),
    [
        ({"strict": [1, None]}, "wrong_type", f"strict[1]: null, expected a number{NULL_HINT}"),
        ({"size": [1, None]}, "wrong_type", f"size[1]: null, expected a number{NULL_HINT}"),
        ({"size": None}, "wrong_type", f"size: null, expected a list of 2 values{NULL_HINT}"),
        ({"kind": None}, "wrong_type", f"kind: null, expected a string{NULL_HINT}"),
        ({"code": None}, "wrong_type", f"code: null, expected an integer{NULL_HINT}"),
        # A null instead of all steps does not say how many steps there are.
        ({"x": None}, "wrong_type", "x: null, expected a list with one value per step"),
        # Values that are wrong for another reason are still rejected where nulls are allowed.
        ({"x": [[1, "a"], None]}, "wrong_type", 'x[0][1]: "a", expected a number'),
        ({"x": [[1], None]}, "wrong_shape", "x[0]: [1], expected 2 values, not 1"),
        ({"x": [None, 3]}, "wrong_shape", "x[1]: 3, expected a list of 2 values"),
        ({"x": [[None, math.nan], None]}, "not_finite", "x[0][1]: NaN, expected a finite number in the range of flo"),
        ({"x": [[None, 1e39], None]}, "not_finite", "x[0][1]: 1e+39, expected a finite number in the range of float32"),
        ({"page": [None, 5]}, "unknown_class", "page[1]: 5, expected 0 to 4"),
        ({"page": [None, -1]}, "unknown_class", "page[1]: -1, expected 0 to 4"),
        ({"page": [None, True]}, "wrong_type", "page[1]: true, expected an integer"),
        ({"word": [["a", None], [b"\xff", "b"]]}, "wrong_type", "word[1][0]: "),
        ({"age": [1]}, "wrong_shape", "age: [1], expected a number"),
        ({"age": "1"}, "wrong_type", 'age: "1", expected a number'),
        ({"age": 1e39}, "not_finite", "age: 1e+39, expected a finite number"),
        ({"size": 1}, "wrong_shape", "size: 1, expected a list of 2 values"),
        ({"size": [1, 2, 3]}, "wrong_shape", "size: [1, 2, 3], expected 2 values, not 3"),
        ({"plan": [0, 3]}, "unknown_class", "plan[1]: 3, expected 0 to 2"),
        ({"y": [None, "1"]}, "wrong_type", 'y[1]: "1", expected a number'),
        ({"y": [None, math.nan]}, "not_finite", "y[1]: NaN, expected a finite number"),
        ({"y": [None]}, "uneven_lengths", "x has 2, deep has 2, page has 2, word has 2, strict has 2, y has 1 steps"),
        ({"y": None}, "wrong_type", "y: null, expected a list with one value per step"),
    ],
)
def test_a_wrong_value_among_nulls_is_rejected_with_its_place(change, reason, message):
    found = reject(GOOD | change)
    assert found[0] == reason
    assert found[1].startswith(message)
    assert message.endswith(NULL_HINT) == found[1].endswith(NULL_HINT)


def test_arrays_may_hold_nulls_like_lists():
    as_arrays = GOOD | {"x": [np.array([1, 2], np.float32), None], "page": np.array([4, None], object)}
    sequence = parse_record(as_arrays, EVERY)
    np.testing.assert_array_equal(sequence.features["x"], [[1, 2], [math.nan, math.nan]])
    assert sequence.features["page"].tolist() == [4, -1]
    assert parse_record(GOOD | {"age": np.float32(3), "size": np.array([1, 2])}, EVERY).context["age"] == 3


def labels(kind):
    return Schema.parse(
        f"id: id\nsteps: {{n: {{dtype: float32}}}}\nlabel: {{name: y, kind: {kind}, classes: [a, 1, true]}}"
    )


def test_a_multilabel_is_a_list_of_class_names():
    schema = labels("multilabel")
    record = {"id": 1, "n": [0, 0]}
    assert parse_record(record | {"y": []}, schema).label.tolist() == [0, 0, 0]
    assert parse_record(record | {"y": [True, "a", "a"]}, schema).label.tolist() == [1, 0, 1]
    assert parse_record(record | {"y": np.array(["1"])}, schema).label.tolist() == [0, 1, 0]
    for bad, reason, message in [
        (None, "wrong_type", "y: null, expected a list of class names"),
        ("a", "wrong_type", 'y: "a", expected a list of class names'),
        (["a", None], "wrong_type", "y: null, expected the name of a class"),
        ([["a"]], "wrong_type", 'y: ["a"], expected the name of a class'),
        (["b"], "unknown_class", 'y: "b", expected one of ["a", "1", "true"]'),
    ]:
        assert reject(record | {"y": bad}, schema) == (reason, message)


def test_a_multilabel_of_a_step_is_a_list_or_null():
    schema = labels("step_multilabel")
    record = {"id": 1, "n": [0, 0, 0]}
    assert parse_record(record | {"y": [["a"], None, []]}, schema).label.tolist() == [
        [1, 0, 0],
        [-1, -1, -1],
        [0, 0, 0],
    ]
    assert reject(record | {"y": [["a"], "1", []]}, schema) == (
        "wrong_type",
        'y[1]: "1", expected a list of class names',
    )
    assert reject(record | {"y": [["a"], None]}, schema)[0] == "uneven_lengths"
    assert reject(record | {"y": [["a"], None, ["b"]]}, schema)[1] == 'y[2]: "b", expected one of ["a", "1", "true"]'


def test_a_label_of_a_record_is_never_null():
    schema = Schema.parse("id: id\nsteps: {n: {dtype: float32}}\nlabel: {name: y, kind: regression}")
    assert reject({"id": 1, "n": [0], "y": None}, schema) == ("wrong_type", "y: null, expected a number")
    shares = labels("distribution")
    assert reject({"id": 1, "n": [0], "y": [1, 0, None]}, shares)[1] == "y[2]: null, expected a number"


NEXT = "id: id\nsteps: {{f: {{{0}}}}}\nlabel: {{next_of: f{1}}}\n"


@pytest.mark.parametrize(
    ("feature", "kind", "values", "expected"),
    [
        ("dtype: string, vocabulary: 2, missing: fill", "", ["a", None, "b", "c"], 2),
        ("dtype: string, vocabulary: 2", "", ["a", "b"], 1),
        ("dtype: int64, num_values: 9, missing: indicator", "", [None, 1, None], 1),
        ("dtype: float32, missing: fill", "", [1, None, None, 2], 1),
        ("dtype: float32, shape: [2], missing: fill", "", [[1, 2], [3, None], [5, 6], None], 1),
        ("dtype: float32, shape: [2]", ", kind: multilabel", [[0, 1]] * 5, 4),
        ("dtype: float32", "", [1], 0),
    ],
)
def test_a_step_has_a_next_of_label_if_the_next_step_exists_without_missing_values(feature, kind, values, expected):
    schema = Schema.parse(NEXT.format(feature, kind))
    sequence = parse_record({"id": 1, "f": values}, schema)
    assert sequence.label is None
    assert num_labels(sequence, schema) == expected
    assert sorted(decode_example(encode_record(sequence, schema))) == ["f", "id", "length"]


def test_a_multilabel_next_of_feature_holds_zeros_and_ones():
    schema = Schema.parse(NEXT.format("dtype: float32, shape: [2], missing: fill", ", kind: multilabel"))
    assert parse_record({"id": 1, "f": [[0, 1], None]}, schema).num_steps == 2
    assert reject({"id": 1, "f": [[0, 1], [0, 0.5]]}, schema) == (
        "wrong_type",
        "f: 0.5, expected 0 or 1 for a multilabel next_of",
    )


def test_a_record_to_predict_needs_no_label_group_or_split():
    schema = Schema.parse(
        "id: id\ngroup: who\nsteps: {n: {dtype: float32}}\ncontext: {age: {dtype: float32}}\n"
        "label: {name: y, kind: step_class, classes: [a]}"
    )
    sequence = parse_record({"id": 1, "n": [1, 2], "age": 3}, schema, labelled=False)
    assert (sequence.label, sequence.group, sequence.num_steps) == (None, None, 2)
    # A wrong label of another length is ignored too.
    assert parse_record({"id": 1, "n": [1, 2], "age": 3, "y": [7], "who": []}, schema, labelled=False).num_steps == 2
    with pytest.raises(ValueError, match="Record '1' has no label, but the schema has one: y"):
        encode_record(sequence, schema)


@pytest.mark.parametrize(("over_length", "kept"), [("truncate_head", slice(1, 3)), ("truncate_tail", slice(0, 2))])
def test_truncated_records_keep_their_context_and_the_labels_of_their_steps(over_length, kept):
    schema = Schema.parse(
        f"id: id\nmax_length: 2\nover_length: {over_length}\nsteps: {{n: {{dtype: float32, missing: fill}}}}\n"
        "context: {pair: {dtype: string, num_values: 3, shape: [2]}}\n"
        "label: {name: y, kind: step_multilabel, classes: [a, b]}"
    )
    record = {"id": 1, "n": [1, None, 3], "pair": ["p", "q"], "y": [["a"], None, ["a", "b"]]}
    sequence = parse_record(record, schema)
    np.testing.assert_array_equal(sequence.features["n"], [1, math.nan, 3][kept])
    assert sequence.label.tolist() == [[1, 0], [-1, -1], [1, 1]][kept]
    assert sequence.context["pair"] == [b"p", b"q"]
    assert (sequence.num_steps, num_labels(sequence, schema)) == (2, 1)


def test_a_string_of_one_unusual_character_is_not_a_null():
    schema = Schema.parse(NEXT.format("dtype: string, vocabulary: 2, missing: fill", ""))
    sequence = parse_record({"id": 1, "f": ["\xff", "", "\x00", None]}, schema)
    assert is_missing(sequence.features["f"]).tolist() == [False, False, False, True]


def test_the_classes_of_a_label_are_returned_once_for_each_step():
    label = Label(name="y", kind="step_class", classes=("a", "b"))
    assert named_classes(np.array([1, NO_LABEL, 0, 1]), label).tolist() == [1, 0, 1]
    assert named_classes(np.array([0.5]), Label(name="y", kind="regression")).tolist() == []
