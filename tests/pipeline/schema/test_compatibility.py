"""A schema may replace another one if it accepts more, and encodes what the other accepts to the same bytes."""

import json

import pytest

from pipeline.format.examples import encode_record
from pipeline.raw.records import parse_line
from pipeline.raw.rejects import RecordError
from pipeline.schema.compatibility import find_difference, find_widest
from pipeline.schema.schema import Schema
from pipeline.shuffle.hashing import choose_split

OLD = """\
id: id
steps:
  x: {dtype: float32, shape: [2]}
  word: {dtype: string, vocabulary: 5}
  page: {dtype: int64, num_values: 6}
  bucket: {dtype: string, num_values: 9}
context:
  age: {dtype: float32}
label: {name: y, kind: class, classes: [a, b]}
splits: {train: 0.6, test: 0.4}
max_length: 4
"""


def change(*pairs, text=OLD):
    for old, new in pairs:
        assert text.count(old) == 1
        text = text.replace(old, new)
    return Schema.parse(text)


def per_step(text=OLD):
    return text.replace("kind: class", "kind: step_class")


def multilabel(text=OLD):
    return text.replace("kind: class", "kind: multilabel")


WIDER = {
    "max_length": change(("max_length: 4", "max_length: 5")),
    "no max_length": change(("max_length: 4", "")),
    "truncation": change(("max_length: 4", "max_length: 4\nover_length: truncate_tail")),
    "longer, and truncation": change(("max_length: 4", "max_length: 7\nover_length: truncate_head")),
    "missing numbers": change(("shape: [2]", "shape: [2], missing: {fill: mean}")),
    "missing strings": change(("vocabulary: 5", "vocabulary: 5, missing: indicator")),
    "missing categories": change(("values: 6", "values: 7, missing: {fill: 6}")),
    "missing context": change(("age: {dtype: float32}", "age: {dtype: float32, missing: {fill: 3}}")),
    "nan": change(
        ("shape: [2]", "shape: [2], missing: fill"), ("max_length: 4", "max_length: 4\nnan_is_missing: true")
    ),
    "num_values": change(("values: 6", "values: 7")),
    "classes": change(("[a, b]", "[a, b, c, 1]")),
    "all": change(
        ("max_length: 4", ""), ("[a, b]", "[a, b, c]"), ("values: 6", "values: 8"), ("[2]", "[2], missing: fill")
    ),
}
OTHER = {
    "max_length": (change(("max_length: 4", "max_length: 3")), "max_length is 3, but 4 in the dataset"),
    "fewer num_values": (change(("values: 6", "values: 5")), "steps.page.num_values is 5, but 6 in"),
    "hashed strings": (change(("values: 9", "values: 10")), "steps.bucket.num_values is 10, but 9 in"),
    "vocabulary": (change(("vocabulary: 5", "vocabulary: 6")), "steps.word.vocabulary is 6, but 5 in"),
    "hashed instead": (change(("vocabulary: 5", "num_values: 5")), "steps.word.vocabulary is null, but 5 in"),
    "shape": (change(("shape: [2]", "shape: [1, 2]")), "steps.x.shape is"),
    "dtype": (change(("dtype: int64, num_values: 6", "dtype: float32")), "steps.page.dtype is"),
    "id": (change(("id: id\n", "")), "id is null, but"),
    "feature": (change(("context:\n", "  z: {dtype: float32}\ncontext:\n")), "steps.z is {"),
    "context": (change(("context:\n  age: {dtype: float32}\n", "")), "context.age is null"),
    "order": (
        change(
            ("  page: {dtype: int64, num_values: 6}\n", ""),
            ("steps:\n", "steps:\n  page: {dtype: int64, num_values: 6}\n"),
        ),
        r"steps has the order \[.page., .x.",
    ),
    "order of splits": (change(("{train: 0.6, test: 0.4}", "{test: 0.4, train: 0.6}")), "splits has the order"),
    "shares": (change(("{train: 0.6, test: 0.4}", "{train: 0.5, test: 0.5}")), "splits.train is 0.5, but 0.6 in"),
    "hashed splits": (
        change(("{train: 0.6, test: 0.4}", "{from: s, validation: 0.1}")),
        "splits.train is null, but 0.6 in",
    ),
    "group": (change(("max_length: 4", "max_length: 4\ngroup: user")), "group is"),
    "label": (change(("name: y", "name: z")), "label.name is"),
    "kind": (Schema.parse(multilabel()), "label.kind is"),
    "fewer classes": (change(("[a, b]", "[a]")), "label.classes is"),
    "another first class": (change(("[a, b]", "[b, a, c]")), "label.classes is"),
}


@pytest.mark.parametrize("name", WIDER)
def test_a_schema_may_accept_more(name):
    old, new = Schema.parse(OLD), WIDER[name]
    assert find_difference(new, old, may_widen=True) is None
    assert find_difference(new, old, may_widen=False) is not None
    assert find_difference(old, new, may_widen=True) is not None  # the old one accepts less
    assert find_widest([old, new, old]) is new
    assert find_widest([new, old]) is new


@pytest.mark.parametrize("name", OTHER)
def test_any_other_change_is_named(name):
    new, message = OTHER[name]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(find_difference(new, Schema.parse(OLD), may_widen=True))


def test_of_schemas_that_store_records_differently_none_is_the_widest():
    new, message = OTHER["dtype"]
    with pytest.raises(ValueError, match=message):
        find_widest([Schema.parse(OLD), new])
    # Each of the two accepts records that the other one rejects.
    with pytest.raises(ValueError, match="steps.page.num_values is 6, but 7"):
        find_widest([WIDER["classes"], WIDER["num_values"]])


def test_a_dataset_without_nan_may_get_nan_as_missing_values_and_keeps_it():
    old = WIDER["missing numbers"]
    new = Schema.model_validate(old.canonical() | {"nan_is_missing": True})
    assert find_difference(new, old, may_widen=True) is None
    assert find_difference(new, old, may_widen=False) == "nan_is_missing is true, but null in the dataset"
    assert find_difference(old, new, may_widen=True) == "nan_is_missing is null, but true in the dataset"
    with_null = [line for line in records() if b'"x": [null' in line and encode(line, old)]
    with_nan = [line.replace(b"null", b"NaN") for line in with_null]
    assert with_nan and not any(encode(line, old) for line in with_nan)
    assert [encode(line, new) for line in with_nan] == [encode(line, old) for line in with_null]


def test_what_truncation_has_cut_is_not_taken_back():
    cut = change(("max_length: 4", "max_length: 4\nover_length: truncate_tail"))
    for limits in ("", "max_length: 5\nover_length: truncate_tail", "max_length: 4\nover_length: truncate_head"):
        assert "_length" in find_difference(change(("max_length: 4", limits)), cut, may_widen=True)


def test_a_class_is_added_only_to_labels_of_one_class():
    for kind, allowed in ((per_step, True), (multilabel, False)):
        old, new = Schema.parse(kind()), Schema.parse(kind().replace("[a, b]", "[a, b, c]"))
        assert (find_difference(new, old, may_widen=True) is None) == allowed
    # true and 1 are different classes, although they are equal numbers.
    old, new = change(("[a, b]", "[1, a]")), change(("[a, b]", "[true, a, b]"))
    assert find_difference(new, old, may_widen=True).startswith("label.classes is")


def records():
    """Yields raw lines that some of the schemas above accept."""
    for number in range(60):
        length = number % 6 + 1
        record = {
            "id": f"{number}",
            "x": [[number, n] for n in range(length)],
            "word": [f"w{n}" for n in range(length)],
            "page": [(number + n) % 8 for n in range(length)],
            "bucket": ["b"] * length,
            "age": number,
            "y": ["a", "b", "c", 1][number % 4],
        }
        for place, name in enumerate(("x", "word", "page")):
            if number % 7 == place:
                record[name][0] = None
        if number % 7 == 3:
            del record["age"]
        yield json.dumps(record).encode()


def encode(line, schema):
    try:
        record = parse_line(line, schema)
    except RecordError:
        return None
    return encode_record(record, schema), choose_split(record.id, schema.splits, seed=0), record.truncated


def test_a_wider_schema_encodes_accepted_records_to_the_same_bytes_and_accepts_others():
    old, lines = Schema.parse(OLD), list(records())
    before = {line: encode(line, old) for line in lines}
    for name, schema in WIDER.items():
        after = {line: encode(line, schema) for line in lines}
        assert {line: after[line] for line in lines if before[line]} == {k: v for k, v in before.items() if v}, name
        assert sum(v is not None for v in after.values()) > sum(v is not None for v in before.values()), name
