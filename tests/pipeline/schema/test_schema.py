"""A wrong schema is an error before any work, with the path of the key, the value and what was expected."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.schema.features import Feature
from pipeline.schema.labels import Label, class_name
from pipeline.schema.schema import Schema

GOOD = "steps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a, b]}\n"


def feature(text: str) -> str:
    return f"steps: {{x: {text}}}\nlabel: {{name: y, kind: regression}}\n"


def label(text: str) -> str:
    return f"steps: {{x: {{dtype: float32}}}}\nlabel: {text}\n"


def next_of(text: str, more: str = "") -> str:
    return f"steps: {{x: {text}}}\nlabel: {{next_of: x{more}}}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # values
        (feature("{dtype: float64}"), "steps.x.dtype: \"float64\": should be 'float32', 'int64' or 'string'."),
        (feature("{dtype: float32, shape: [2, 0]}"), "steps.x.shape.1: 0: should be greater than or equal to 1."),
        (feature("{dtype: float32, shape: [-1]}"), "steps.x.shape.0: -1: should be greater than or equal to 1."),
        (feature("{dtype: float32, shape: [1.5]}"), "steps.x.shape.0: 1.5: should be a valid integer."),
        (feature("{dtype: float32, shape: 3}"), "steps.x.shape: 3: should be a list: [a, b]."),
        (feature("float32"), 'steps.x: "float32": should be keys and values: {key: value}.'),
        (feature("{shape: [3]}"), "steps.x.dtype: this key is missing."),
        (
            feature("{dtype: int64}"),
            'steps.x: {"dtype": "int64"}: int64 is a category and needs num_values (use float32 for a quantity).',
        ),
        (feature("{dtype: int64, num_values: 0}"), "steps.x.num_values: 0: should be greater than or equal to 1."),
        (
            feature("{dtype: int64, num_values: 4294967296}"),
            "steps.x.num_values: 4294967296: should be less than or equal to 2147483647.",
        ),
        (label("{name: y, kind: class}"), "kind class needs classes: a list of the class names, or auto."),
        (
            label("{name: y, kind: class, classes: [1.5]}"),
            "label.classes.0: 1.5: a class should be a string, an integer, true or false.",
        ),
        (
            label("{name: y, kind: class, classes: [null]}"),
            "label.classes.0: null: a class should be a string, an integer, true or false.",
        ),
        (label("{name: y, kind: class, classes: [1, '1']}"), "the class '1' is a duplicate"),
        (label("{name: y, kind: regression, classes: [a]}"), "a regression has no classes."),
        (label("{name: '', kind: regression}"), 'label.name: "": should have at least one character.'),
        (label("{name: x, kind: regression}"), "label.name: 'x' is also a step feature; expected a unique name."),
        (GOOD + "max_length: 0", "max_length: 0: should be greater than or equal to 1."),
        (GOOD + "max_length: 1_000", 'max_length: "1_000": should be a valid integer.'),
        (GOOD + "format: csv", "format: \"csv\": should be 'jsonl'."),
        (
            GOOD + "over_length: cut",
            "over_length: \"cut\": should be 'reject', 'truncate_head', 'truncate_tail' or 'parts'.",
        ),
        (GOOD + "over_length: parts", "over_length: parts: needs max_length, the number of steps of a part; add it."),
        (GOOD + "id: 3", "id: 3: should be a valid string."),
        ("steps: {}\nlabel: {name: y, kind: regression}", "steps: expected at least one feature."),
        ("label: {name: y, kind: regression}", "steps: this key is missing."),
        (
            GOOD + "nan_is_missing: true",
            "nan_is_missing: true: has no effect, because no float32 feature allows missing values; give one of them "
            "missing: fill or missing: indicator, or remove nan_is_missing.",
        ),
        (
            GOOD.replace("float32", "int64, num_values: 3, missing: indicator") + "nan_is_missing: true",
            "nan_is_missing: true: has no effect, because no float32 feature allows",
        ),
        (
            GOOD.replace("classes: [a, b]", "classes: automatic"),
            'label.classes: "automatic": expected a list of the class names, [a, b], or auto.',
        ),
        (GOOD + "nan_is_missing: 1", "nan_is_missing: 1: should be true or false."),
        # splits
        (GOOD + "splits: {train: 0.7, test: 0.2}", "splits: the shares add up to 0.9, expected 1."),
        (GOOD + "splits: {train: 1.5}", "train: expected a share between 0 and 1, not 1.5."),
        (GOOD + "splits: {train: '1'}", "train: expected a share between 0 and 1, not '1'."),
        (GOOD + "splits: {../x: 1}", "splits.../x: expected a name of letters, digits and _."),
        (GOOD + "splits: {1: 1.0}", "1: expected a name of letters, digits and _."),
        (GOOD + "splits: []", "splits: []: expected shares such as {train: 0.8, test: 0.2}, or {from: field}."),
        (GOOD + "splits: {from: 3}", "splits.from: 3: should be a valid string."),
        (
            GOOD + "splits: {from: s, train: 1}",
            "splits.train: 1: with from, the field names the split; expected no other",
        ),
        (
            GOOD + "splits: {from: s, dev: 0.1}",
            "splits.dev: 0.1: with from, the field names the split; expected no other",
        ),
        (
            GOOD + "splits: {from: s, validation: -0.1}",
            "splits.validation: -0.1: should be greater than or equal to 0.",
        ),
        (GOOD + "splits: {from: s, validation: '0.1'}", 'splits.validation: "0.1": should be a valid number.'),
        (GOOD + "splits: {from: s, validation: true}", "splits.validation: true: should be a valid number."),
        (
            GOOD + "splits: {from: s, test: 1}",
            "splits: the share of train for test 1 is 1, expected less than 1: the rest stays in train.",
        ),
        (
            GOOD + "splits: {from: s, test: 0.5, validation: 0.6}",
            "splits: the shares of train for validation 0.6 and test 0.5 add up to 1.1, expected less than 1",
        ),
        (GOOD + "group: g\nsplits: {train: 1, group: g}", "group: is given twice, at the top and inside splits"),
        # reserved names
        (feature("{dtype: float32}").replace("x:", "length:"), "steps.length: this name is reserved"),
        (feature("{dtype: float32}").replace("x:", "id:"), "steps.id: this name is reserved"),
        (label("{name: length, kind: regression}"), "label.name: 'length' is reserved"),
        (feature("{dtype: float32}").replace("x:", '"\\ud800":'), "steps.'\\ud800': expected a name without control"),
        (feature("{dtype: float32}").replace("x:", "a/b:"), "steps.'a/b': expected a name without control characters"),
        (feature("{dtype: float32}").replace("x:", "3:"), "steps.3: 3: should be a valid string."),
        # unknown keys
        (GOOD + "max_lenght: 3", "max_lenght: unknown key; did you mean 'max_length'?"),
        (
            GOOD + "colour: red",
            "colour: unknown key; known keys: format, id, steps, context, label, splits, group, max_",
        ),
        (GOOD + '"a\\nb": 3', '"a\\nb": unknown key'),
        (feature("{dtype: float32, shap: [3]}"), "steps.x.shap: unknown key; did you mean 'shape'?"),
        (label("{name: y, kind: class, clases: [a]}"), "label.clases: unknown key; did you mean 'classes'?"),
        # vocabularies
        (
            feature("{dtype: string}"),
            "string needs either vocabulary (the number of frequent strings with a category of",
        ),
        (
            feature("{dtype: string, vocabulary: 9, num_values: 9}"),
            "string needs either vocabulary (the number of frequent",
        ),
        (feature("{dtype: string, vocabulary: 0}"), "steps.x.vocabulary: 0: should be greater than or equal to 1."),
        (feature("{dtype: string, vocabulary: all}"), 'steps.x.vocabulary: "all": should be a valid integer.'),
        (feature("{dtype: int64, vocabulary: 9}"), "vocabulary applies only to the dtype string, not to int64."),
        (feature("{dtype: float32, vocabulary: 9}"), "vocabulary applies only to the dtype string, not to float32."),
        (
            feature("{dtype: float32, num_values: 9}"),
            "num_values applies only to the dtypes int64 and string, not to float32",
        ),
        # missing values
        (feature("{dtype: float32, missing: 0}"), "steps.x.missing: 0: should be 'reject', 'fill' or 'indicator'."),
        (
            feature("{dtype: float32, missing: {mean: 1}}"),
            "missing: {'mean': 1}: expected reject, indicator, fill, or {f",
        ),
        (
            feature("{dtype: float32, missing: {fill: 1, of: 2}}"),
            "missing: {'fill': 1, 'of': 2}: expected reject, indic",
        ),
        (
            feature("{dtype: float32, missing: {fill: 1}, fill_value: 1}"),
            "fill_value: is given twice, here and inside miss",
        ),
        (
            feature("{dtype: float32, fill_value: 1}"),
            "fill_value: 1: applies only to missing: fill, not to missing: reject.",
        ),
        (
            feature("{dtype: float32, missing: indicator, fill_value: 1}"),
            "fill_value: 1: applies only to missing: fill, not to missing: indicator.",
        ),
        (
            feature("{dtype: float32, missing: {fill: median}}"),
            "'median': expected a number in the range of float32, or",
        ),
        (
            feature("{dtype: float32, missing: {fill: 1.0e+39}}"),
            "1e+39: expected a number in the range of float32, or m",
        ),
        (feature("{dtype: float32, missing: {fill: .inf}}"), "steps.x.fill_value: Infinity: expected a finite number."),
        (
            feature("{dtype: float32, missing: {fill: true}}"),
            "steps.x.fill_value: true: expected a number, a string, or",
        ),
        (
            feature("{dtype: float32, missing: {fill: [1]}}"),
            "steps.x.fill_value: [1]: expected a number, a string, or m",
        ),
        (
            feature("{dtype: string, vocabulary: 2, missing: {fill: 1}}"),
            "fill_value: 1: expected a string other than mean",
        ),
        (
            feature("{dtype: string, vocabulary: 2, missing: {fill: mean}}"),
            "fill_value: 'mean': expected a string other than mean",
        ),
        (feature('{dtype: string, vocabulary: 2, missing: {fill: "\\ud800"}}'), "expected valid Unicode."),
        (
            feature("{dtype: int64, num_values: 5, missing: fill}"),
            "is missing: expected a value of this category, 0 to 4",
        ),
        (feature("{dtype: int64, num_values: 5, missing: {fill: 5}}"), "5: expected a value of this category, 0 to 4."),
        (
            feature("{dtype: int64, num_values: 5, missing: {fill: -1}}"),
            "-1: expected a value of this category, 0 to 4.",
        ),
        (
            feature("{dtype: int64, num_values: 5, missing: {fill: 1.0}}"),
            "1.0: expected a value of this category, 0 to",
        ),
        (
            feature("{dtype: int64, num_values: 5, missing: {fill: mean}}"),
            "'mean': expected a value of this category, 0",
        ),
        # context
        (GOOD + "context: {x: {dtype: float32}}", "context.x: is also a step feature; expected a unique name."),
        (
            GOOD + "context: {y: {dtype: float32}}",
            "label.name: 'y' is also a context feature; expected a unique name.",
        ),
        (GOOD + "context: {length: {dtype: float32}}", "context.length: this name is reserved"),
        (GOOD + "context: {a/b: {dtype: float32}}", "context.'a/b': expected a name without control characters"),
        (GOOD + "context: {age: {}}", "context.age.dtype: this key is missing."),
        (GOOD + "context: [age]", 'context: ["age"]: should be keys and values: {key: value}.'),
        # labels
        (label("{name: y, kind: multilabel}"), "kind multilabel needs classes: a list of the class names, or auto."),
        (label("{name: y, kind: step_multilabel, classes: []}"), "kind step_multilabel needs classes"),
        (label("{name: y, kind: step_regression, classes: [a]}"), "a regression has no classes."),
        (
            label("{name: y, kind: next}"),
            "label.kind: \"next\": should be 'class', 'distribution', 'multilabel', 'regress",
        ),
        (label('{name: y, kind: class, classes: ["\\ud800"]}'), "expected valid Unicode."),
        (label("{kind: regression}"), "expected either name (a field of the record) or next_of (a step feature)."),
        (label("{name: y, next_of: x}"), "expected either name (a field of the record) or next_of (a step feature)."),
        (label("{next_of: z}"), "label.next_of: 'z': expected the name of a step feature; there are x."),
        (label("{next_of: [x]}"), "label.next_of: ['x']: expected the name of a step feature; there are x."),
        (
            label("{next_of: x, classes: [a]}"),
            "classes: not allowed with next_of, because the feature determines the classes.",
        ),
        (
            next_of("{dtype: string, vocabulary: 3}", ", kind: regression"),
            "'regression': expected class, to predict the next value of a feature of dtype string.",
        ),
        (
            next_of("{dtype: int64, num_values: 3}", ", kind: multilabel"),
            "'multilabel': expected class, to predict the next value of a feature of dtype int64.",
        ),
        (
            next_of("{dtype: float32}", ", kind: class"),
            "expected regression or multilabel, to predict the next value of a feature of dtype float32.",
        ),
        (
            next_of("{dtype: string, num_values: 3}"),
            "label.next_of: x: is hashed into num_values, so the next string cannot be predicted; expec",
        ),
        (
            next_of("{dtype: int64, num_values: 3, shape: [2]}"),
            "has the shape [2]; expected no shape (one category per step)",
        ),
        (
            next_of("{dtype: float32, shape: [2, 2]}"),
            "has the shape [2, 2]; expected no shape (one number per step), or [2 or",
        ),
        (
            next_of("{dtype: float32, shape: [1]}"),
            "has the shape [1]; expected no shape (one number per step), or [2 or more].",
        ),
        (
            next_of("{dtype: float32}", ", kind: multilabel"),
            "has the shape []; expected [classes]: 0 or 1 for each class",
        ),
        # An error in the feature is reported instead of an error of the label.
        (next_of("float32"), 'steps.x: "float32": should be keys and values: {key: value}.'),
        (next_of("{dtype: float32, shape: 3}"), "steps.x.shape: 3: should be a list: [a, b]."),
        (next_of("{dtype: [1]}"), "steps.x.dtype: [1]: should be 'float32', 'int64' or 'string'."),
        (
            "steps: {next_step: {dtype: float32}}\nlabel: {next_of: next_step}\nmax_length: 2\nover_length: parts",
            "next_step: this name is reserved with over_length: parts and next_of; expected another.",
        ),
    ],
)
def test_a_wrong_schema_is_an_error_with_key_value_and_what_was_expected(text, message):
    with pytest.raises(UserError) as caught:
        Schema.parse(text, origin="my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nsteps: 2", "my.yaml, line 1, column 1: not valid YAML: the key 'steps' is a duplicate."),
        (feature("{dtype: float32, dtype: int64}"), "my.yaml, line 1, column 12: not valid YAML: the key 'dtype' is"),
        ("steps: [", "my.yaml, line 1, column 9: not valid YAML: expected the node content"),
        (b"\xff\xfe\x00", "my.yaml: not valid YAML: "),
        (feature("!!map word"), "my.yaml, line 1, column 12: not valid YAML: expected a mapping node"),
        (feature("!!python/object:os.system {}"), "not valid YAML: could not determine a constructor"),
        (
            "steps: {x: &a {dtype: float32}, y: *a}",
            "my.yaml, line 1, column 36: not valid YAML: the alias *a is not supported; write the value out.",
        ),
        ("? [a]\n: b", "not valid YAML: a key must be a string, not ['a']."),
        ("[" * 5000, "my.yaml: not valid YAML: nested too deeply."),
        ("- a", 'my.yaml: contains ["a"], expected keys and values (key: value).'),
        ("", "my.yaml: contains null, expected keys and values (key: value)."),
    ],
)
def test_invalid_yaml_is_an_error_with_line_and_column(text, message):
    with pytest.raises(UserError) as caught:
        Schema.parse(text, origin="my.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"\x80"])
def test_an_unreadable_schema_file_is_named(tmp_path, content):
    path = tmp_path / "my.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: (cannot be read: No such file|not valid YAML)"):
        Schema.read(str(path))


def test_booleans_numbers_and_dates_of_yaml_1_1_stay_strings():
    text = label("{name: y, kind: class, classes: [yes, no, on, Off, y, 010, 1_000, 0x1A, 1:30, 2020-01-01]}")
    assert Schema.parse(text).label.classes == tuple(
        "yes no on Off y 010 1_000 0x1A 1:30 2020-01-01".split(),
    )


def test_classes_may_be_integers_and_booleans():
    classes = Schema.parse(label("{name: y, kind: class, classes: [0, -12, true, False, b]}")).label.classes
    assert list(map(repr, classes)) == ["0", "-12", "True", "False", "'b'"]
    assert [class_name(c) for c in classes] == ["0", "-12", "true", "false", "b"]


def test_group_is_read_at_the_top_level_and_inside_splits():
    top = Schema.parse(GOOD + "group: person\nsplits: {train: 0.5, test: 0.5}")
    inside = Schema.parse(GOOD + "splits: {train: 0.5, test: 0.5, group: person}")
    assert top == inside
    assert top.group == "person"
    assert top.split_names == ("train", "test")


def test_splits_from_a_field_are_train_validation_and_test():
    assert Schema.parse(GOOD + "splits: {from: part}").split_names == ("train", "validation", "test")


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        GOOD + "id: key\ngroup: person\nmax_length: 9\nover_length: truncate_head\nsplits: {a: 1}",
        label("{name: y, kind: step_class, classes: [1, true, '010', 'null', é]}") + "splits: {from: part}",
        GOOD + "splits: {test: 0, validation: 0.1, from: part, group: who}",
        feature("{dtype: string, shape: [2, 3], num_values: 7}"),
        feature("{dtype: string, vocabulary: 7, missing: {fill: none}}"),
        feature("{dtype: float32, missing: fill}") + "context: {age: {dtype: float32, missing: {fill: -1}}}",
        feature("{dtype: float32, missing: {fill: 0.1}}")
        + "context: {a: {dtype: string, vocabulary: 1, missing: fill}}",
        feature("{dtype: int64, num_values: 7, missing: {fill: 6}}"),
        next_of("{dtype: string, vocabulary: 7}"),
        next_of("{dtype: float32, shape: [3]}", ", kind: multilabel"),
        label("{name: y, kind: step_multilabel, classes: [a, true]}"),
    ],
)
def test_the_canonical_form_parses_to_an_equal_schema(text):
    schema = Schema.parse(text)
    again = Schema.parse(json.dumps(schema.canonical()))
    assert again == schema
    assert again.fingerprint == schema.fingerprint


def test_the_fingerprint_depends_on_the_values_and_not_on_the_yaml():
    reordered = "label: {classes: [a, b], kind: class, name: y}\nformat: jsonl\nsteps:\n  x:\n    dtype: float32\n"
    assert Schema.parse(reordered).fingerprint == Schema.parse(GOOD).fingerprint
    assert Schema.parse(GOOD + "max_length: 9").fingerprint != Schema.parse(GOOD).fingerprint


def test_the_width_of_a_feature_is_the_product_of_its_shape():
    schema = Schema.parse(
        "steps: {a: {dtype: float32}, b: {dtype: float32, shape: [4, 3]}}\nlabel: {name: y, kind: regression}"
    )
    assert {name: feature.width for name, feature in schema.steps.items()} == {"a": 1, "b": 12}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("missing: {fill: 0}", "missing: fill, fill_value: 0.0"),
        ("missing: fill", "missing: {fill: mean}"),
        ("missing: {fill: null}", "fill_value: mean, missing: fill"),
        ("missing: reject", "shape: []"),
    ],
)
def test_equivalent_notations_give_equal_schemas(one, other):
    schemas = [Schema.parse(feature(f"{{dtype: float32, {text}}}")) for text in (one, other)]
    assert schemas[0] == schemas[1]
    assert schemas[0].fingerprint == schemas[1].fingerprint


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (next_of("{dtype: string, vocabulary: 7}"), "step_class"),
        (next_of("{dtype: int64, num_values: 7}", ", kind: class"), "step_class"),
        (next_of("{dtype: float32}"), "step_regression"),
        (next_of("{dtype: float32, shape: [4]}"), "step_regression"),
        (next_of("{dtype: float32, shape: [4]}", ", kind: step_multilabel"), "step_multilabel"),
    ],
)
def test_the_kind_of_a_next_of_label_follows_from_the_feature(text, kind):
    schema = Schema.parse(text)
    assert (schema.label.kind, schema.label.per_step, schema.label.title) == (kind, True, "next x")
    assert Schema.parse(json.dumps(schema.canonical())) == schema


def test_a_label_built_in_python_is_checked_against_the_features():
    steps = {"x": Feature(dtype="float32")}
    with pytest.raises(ValueError, match="'z': expected the name of a step feature; there are x"):
        Schema(steps=steps, label=Label(next_of="z", kind="step_class"))
    with pytest.raises(
        ValueError, match="expected regression or multilabel, to predict the next value of a feature of dtype float32"
    ):
        Schema(steps=steps, label=Label(next_of="x", kind="step_class"))
    assert Schema(steps=steps, label=Label(next_of="x", kind="step_regression")) == Schema.parse(label("{next_of: x}"))


def test_features_are_the_step_features_then_the_context_features():
    schema = Schema.parse(
        "steps: {a: {dtype: float32, shape: [2]}, b: {dtype: int64, num_values: 3}}\n"
        "context: {c: {dtype: float32}, d: {dtype: string, vocabulary: 4, missing: indicator}}\n"
        "label: {name: y, kind: step_regression}\n"
    )
    assert list(schema.features) == ["a", "b", "c", "d"]
    assert schema.statistics_widths == {"a": 2, "c": 1, "y": 1}
    assert [name for name in ("a", "b", "c", "d", "y") if schema.is_per_step(name)] == ["a", "b", "y"]
    assert [name for name, feature in schema.features.items() if feature.allows_nulls] == ["d"]


@pytest.mark.parametrize(
    ("vocabulary", "same"),
    [
        ("{size: 5000}", "5000"),
        ("{size: 5000, min_count: 1, lowercase: false}", "5000"),
        ("{min_count: 2}", "{size: 100000, min_count: 2}"),
        ("5000, min_count: 2, lowercase: true", "{lowercase: true, min_count: 2, size: 5000}"),
    ],
)
def test_vocabularies_that_mean_the_same_have_the_same_fingerprint(vocabulary, same):
    schemas = [Schema.parse(feature(f"{{dtype: string, vocabulary: {text}}}")) for text in (vocabulary, same)]
    assert schemas[0].canonical() == schemas[1].canonical()
    assert schemas[0].fingerprint == schemas[1].fingerprint
    assert Schema.parse(json.dumps(schemas[0].canonical())) == schemas[0]
    plain = Schema.parse(feature("{dtype: string, vocabulary: 5000}"))
    assert {"min_count", "lowercase"}.isdisjoint(plain.canonical()["steps"]["x"])


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        ("{}", "vocabulary: expected a size (the largest number of strings), a min_count, or both"),
        ("{lowercase: true}", "vocabulary: expected a size (the largest number of strings), a min_count, or both"),
        ("{sise: 3}", "vocabulary.sise: unknown key; known keys: size, min_count, lowercase"),
        ("{min_count: 0}", "steps.x.min_count: 0: should be greater than or equal to 1"),
        ("{min_count: 2}, min_count: 2", "min_count: is given twice, here and inside vocabulary; keep one"),
        ("{size: 3, lowercase: 1}", "steps.x.lowercase: 1: should be true or false"),
        ("{size: [3]}", "steps.x.vocabulary: [3]: should be a valid integer"),
    ],
)
def test_a_wrong_vocabulary_is_an_error(vocabulary, message):
    with pytest.raises(UserError) as caught:
        Schema.parse(feature(f"{{dtype: string, vocabulary: {vocabulary}}}"))
    assert message in str(caught.value)
    with pytest.raises(UserError, match="min_count and lowercase apply only to a string with a vocabulary"):
        Schema.parse(feature("{dtype: string, num_values: 9, lowercase: true}"))


def test_a_field_with_another_name_is_part_of_the_schema_and_absent_by_default():
    text = "steps: {x: {dtype: float32, from: X 1}}\nlabel: {name: y, from: id, kind: class, classes: [a, b]}\n"
    schema = Schema.parse(text)
    assert (schema.raw_fields, schema.label.field) == ({"x": "X 1"}, "id")
    assert Schema.parse(json.dumps(schema.canonical())) == schema
    assert (schema.canonical()["steps"]["x"]["from"], schema.canonical()["label"]["from"]) == ("X 1", "id")
    plain = Schema.parse(GOOD)
    assert (plain.raw_fields, plain.label.field) == ({"x": "x"}, "y")
    assert "from" not in {**plain.canonical()["steps"]["x"], **plain.canonical()["label"]}
    assert plain.fingerprint != schema.fingerprint
    with pytest.raises(UserError, match="from: not allowed with next_of; give it to the feature"):
        Schema.parse(next_of("{dtype: float32}", ", from: y"))
    with pytest.raises(UserError, match='steps.x.from: "": should have at least one character'):
        Schema.parse(text.replace("X 1", "''"))


def test_nan_is_missing_needs_a_number_that_may_be_missing_and_false_is_the_default():
    may_be_missing = GOOD.replace("float32", "float32, missing: fill")
    per_step = label("{name: y, kind: step_regression}")
    assert all(Schema.parse(text + "nan_is_missing: true").nan_is_missing for text in (may_be_missing, per_step))
    plain, off = Schema.parse(may_be_missing), Schema.parse(may_be_missing + "nan_is_missing: false")
    assert plain == off and plain.fingerprint == off.fingerprint
    assert "nan_is_missing" not in off.canonical()
    assert Schema.parse(may_be_missing + "nan_is_missing: true").fingerprint != plain.fingerprint
    assert "NaN" in Schema.model_json_schema()["properties"]["nan_is_missing"]["description"]
