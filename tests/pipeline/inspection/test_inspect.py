"""The summaries that `prepare` and `inspect` print match the dataset, on any terminal."""

import collections
import json
import os
import pathlib
import statistics
import subprocess
import sys

import numpy as np
import pytest
from plain_prepare import prepare

import lengthwise
from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.format.manifest import read_manifest
from pipeline.inspection.inspect import print_details, print_summary, summarize

SCHEMA = """
id: id
steps:
  x: {dtype: float32, shape: [2]}
  page: {dtype: int64, num_values: 300}
label: {name: y, kind: class, classes: ["[red]stop", gö, never]}
splits: {from: part}
max_length: 30
over_length: truncate_head
"""
# The test split has no records, and no record has the class `never`.
RECORDS = [
    {
        "id": n,
        "x": [[n, 0.5]] * (n % 40 + 1),
        "page": [n] * (n % 40 + 1),
        "y": "gö" if n % 3 else "[red]stop",
        "part": "validation" if n % 5 == 0 else "train",
    }
    for n in range(100)
]


def make(folder, schema, lines, **options):
    """Prepares a dataset from lines and returns its folder."""
    (folder / "schema.yaml").write_text(schema)
    (folder / "raw.jsonl").write_text("".join(line + "\n" for line in lines))
    output = str(folder / "dataset")
    prepare(PrepareOptions((str(folder / "raw.jsonl"),), str(folder / "schema.yaml"), output, **options))
    return output


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    lines = [json.dumps(record) for record in RECORDS] + ["no json", "[]", '{"id": 1.5}', "no json either"]
    return make(tmp_path_factory.mktemp("inspect"), SCHEMA, lines, num_shards=2, max_rejected=0.5)


@pytest.fixture(scope="module")
def one_record(tmp_path_factory):
    schema = "{steps: {x: {dtype: float32}}, label: {name: y, kind: regression}, splits: {train: 0.0, test: 1.0}}"
    return make(tmp_path_factory.mktemp("one"), schema, ['{"x": [1, 2, 3], "y": 0.5}'])


def details(capsys, dataset):
    capsys.readouterr()
    print_details(read_manifest(dataset), dataset)
    return capsys.readouterr().out


def rows(text, title):
    """Returns the cells of the table under a title."""
    lines = text.split(f"\n{title}", 1)[1].splitlines()[3:]
    table = lines[: lines.index("")] if "" in lines else lines
    return [line.split() for line in table]


def test_a_summary_has_the_counts_of_the_raw_records(dataset):
    summary = summarize(read_manifest(dataset))
    for name in ("train", "validation"):
        records = [record for record in RECORDS if record["part"] == name]
        lengths = [min(len(record["page"]), 30) for record in records]
        split = summary["splits"][name]
        assert split["records"] == split["labels"] == len(records)
        assert split["steps"] == sum(lengths)
        assert split["lengths"] == {"min": min(lengths), "median": statistics.median(lengths), "max": 30}
        assert split["truncated"] == sum(len(record["page"]) > 30 for record in records)
        assert split["label_counts"] == {"never": 0, **collections.Counter(record["y"] for record in records)}
        assert split["shards"] == 2
    assert summary["splits"]["test"] == {
        "records": 0,
        "steps": 0,
        "lengths": None,
        "labels": 0,
        "label_counts": {},
        "missing": {},
        "unknown": {},
        "truncated": 0,
        "copies": 0,
        "shards": 0,
        "bytes": 0,
    }
    assert summary["records"] == 100
    assert summary["steps"] == sum(split["steps"] for split in summary["splits"].values())
    assert summary["rejected"]["by_reason"] == {"bad_id": 1, "not_a_record": 1, "not_json": 2}
    assert summary["rejected"]["total"] == 4


def test_a_summary_has_the_statistics_of_the_train_split(dataset):
    features = summarize(read_manifest(dataset))["features"]
    steps = [x for record in RECORDS if record["part"] == "train" for x in record["x"][-30:]]
    assert features["x"]["shape"] == [2]
    assert features["x"]["statistics"]["count"] == len(steps)
    np.testing.assert_allclose(features["x"]["statistics"]["mean"], np.mean(steps, axis=0))
    np.testing.assert_allclose(features["x"]["statistics"]["variance"], np.var(steps, axis=0))
    assert features["page"] == {"dtype": "int64", "shape": [], "num_values": 300, "missing": "reject"}


def test_the_json_of_both_commands_is_the_summary(capsys, dataset):
    assert lengthwise.main(["inspect", dataset, "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out) == json.loads(json.dumps(summarize(read_manifest(dataset))))
    manifest = read_manifest(dataset)
    summary = json.loads(out)
    assert summary["fingerprint"] == manifest.fingerprint
    assert summary["generations"] == list(manifest.generations)
    assert (summary["seed"], summary["format_version"], summary["commit"]) == (0, 2, 1)


def test_prepare_prints_the_result_in_a_few_lines(capsys, dataset):
    manifest = read_manifest(dataset)
    print_summary(manifest, dataset)
    assert capsys.readouterr().out.splitlines() == [
        f"{dataset}: 100 records",
        f"  train       80 records, {manifest.splits['train'].steps:,} steps (2 to 30 per record)",
        f"  validation  20 records, {manifest.splits['validation'].steps:,} steps (1 to 30 per record)",
        "  test        no record",
        "20 records cut to 30 steps",
        "rejected 4 of 104 records: 1 bad_id, 1 not_a_record, 2 not_json; "
        f"listed in {dataset}/{manifest.rejected.files[0]}",
        f"fingerprint {manifest.fingerprint}",
    ]


def test_prepare_prints_one_record_in_the_singular(capsys, one_record):
    print_summary(read_manifest(one_record), one_record)
    out = capsys.readouterr().out.splitlines()
    assert out[:4] == [
        f"{one_record}: 1 record",
        "  train  no record",
        "  test   1 record, 3 steps (3 per record)",
        "no record rejected",
    ]


def test_inspect_shows_splits_lengths_classes_features_and_rejects(capsys, dataset):
    manifest = read_manifest(dataset)
    text = details(capsys, dataset)
    train = manifest.splits["train"]
    assert rows(text, "Splits")[0][:8] == ["train", "80", f"{train.steps:,}", "2", "18", "30", "16", "2"]
    assert rows(text, "Splits")[2][:8] == ["test", "0", "0", "-", "-", "-", "0", "0"]
    assert rows(text, "Label y: class, 3 classes") == [
        ["[red]stop", "27", "7", "0", "34", "34.0%"],
        ["gö", "53", "13", "0", "66", "66.0%"],
        ["never", "0", "0", "0", "0", "0.0%"],
    ]
    assert [row[:4] for row in rows(text, "Features")] == [["x", "float32", "2", "-"], ["page", "int64", "-", "300"]]
    assert rows(text, "Rejected: 4")[2:3] == [["not_json", "2"]]
    assert f"{dataset}/{manifest.rejected.files[0]}" in text
    assert manifest.fingerprint in text


def test_the_histogram_of_inspect_counts_every_record(capsys, dataset):
    histogram = rows(details(capsys, dataset), "Lengths")
    assert sum(int(row[3] if row[1] == "to" else row[1]) for row in histogram) == 100
    longest = max(histogram, key=lambda row: len(row[-1]))
    assert longest[-1] == "█" * 40


def test_inspect_shows_a_single_record_with_a_regression_label(capsys, one_record):
    text = details(capsys, one_record)
    assert rows(text, "Splits")[1][:6] == ["test", "1", "3", "3", "3", "3"]
    assert rows(text, "Lengths") == [["3", "1", "█" * 40]]
    assert rows(text, "Features") == [["x", "float32", "-", "-", "-", "-", "-", "-"]]
    assert "\nLabel y: regression\n" in text
    assert text.endswith("Rejected: 0\n")


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, "generations g0"),
        (3, "generations g0, g1, g2"),
        (99, "generations g0, g1, g2 and 96 more"),
        (100, "100 generations: `lengthwise compact {dataset}` merges those with small shards"),
    ],
)
def test_inspect_counts_many_generations_and_names_the_command_that_merges_them(capsys, dataset, number, line):
    names = tuple(f"g{n}" for n in range(number))
    manifest = read_manifest(dataset).model_copy(update={"generations": names})
    print_details(manifest, dataset)
    assert line.format(dataset=dataset) in capsys.readouterr().out
    print_summary(manifest, dataset)
    assert ("lengthwise compact" in capsys.readouterr().out) == (number == 100)


def test_without_a_terminal_inspect_prints_at_most_100_columns(capsys, dataset):
    text = details(capsys, dataset)
    assert max(len(line) for line in text.splitlines() if dataset not in line) <= 100
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "\x1b" not in text


def test_inspect_prints_ascii_where_needed_and_loads_neither_beam_nor_tensorflow(dataset):
    code = (
        "import lengthwise, sys; status = lengthwise.main(['inspect', sys.argv[1]]); "
        "sys.exit(status or [name for name in ('apache_beam', 'tensorflow', 'keras') if name in sys.modules] or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, dataset],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"g?" in done.stdout
    assert b"#" * 40 in done.stdout


def test_control_characters_of_a_class_never_reach_the_terminal(capsys, tmp_path):
    schema = '{steps: {x: {dtype: float32}}, label: {name: y, kind: class, classes: ["\\e[2J", b]}}'
    dataset = make(tmp_path, schema, [json.dumps({"x": [1], "y": "\x1b[2J"}), '{"x": [2], "y": "b"}'])
    text = details(capsys, dataset)
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


def test_many_classes_are_cut_to_the_most_frequent(capsys, tmp_path):
    classes = [f"c{number}" for number in range(50)]
    schema = f"{{steps: {{x: {{dtype: float32}}}}, label: {{name: y, kind: class, classes: {classes}}}}}"
    lines = [json.dumps({"x": [n], "y": f"c{n % 50}"}) for n in range(75)]
    table = rows(details(capsys, make(tmp_path, schema, lines)), "Label y: class, 50 classes")
    assert len(table) == 21
    assert {row[0] for row in table[:20]} <= set(classes[:25])
    assert table[20] == ["30", "more", "35", "46.7%"]


@pytest.mark.parametrize(("name", "why"), [("", "has no manifest.json"), ("/none", "there is no such folder")])
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_folder_that_is_no_dataset_is_an_error_of_one_line(capsys, tmp_path, command, name, why):
    assert lengthwise.main([command, f"{tmp_path}{name}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"lengthwise {command}: {tmp_path}{name}: not a dataset: {why}; make one with `lengthwise prepare`.\n"
    )


@pytest.mark.parametrize("text", ["", "{}", "[]", "\xff", "null", '{"format_version": 1}', '{"format_version": 9}'])
def test_an_invalid_manifest_is_an_error_of_one_line(capsys, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    assert lengthwise.main(["inspect", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lengthwise inspect: {tmp_path}/manifest.json: ")


def test_a_manifest_with_contradicting_counts_is_an_error(tmp_path, dataset):
    values = json.loads(pathlib.Path(dataset, "manifest.json").read_bytes())
    values["splits"]["train"]["records"] = 81
    (tmp_path / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(
        UserError, match=r"splits\.train\.records is 81, but its shards say 80\. Was this file edited\?"
    ):
        read_manifest(str(tmp_path))


EVERY = """
id: id
steps:
  x: {dtype: float32, shape: [2], missing: {fill: mean}}
  word: {dtype: string, vocabulary: 2, missing: fill}
  a long name for what was sold: {dtype: int64, num_values: 20000, missing: indicator}
context:
  age: {dtype: float32, missing: indicator}
  city: {dtype: string, vocabulary: 5000}
label: LABEL
splits: {from: part}
"""
# Two words are not among the two most frequent ones; one of them occurs in the test split only. Every third value is
# missing.
WORDS = ["a", "a", "a", "b", "b", "c"]
EVERY_RECORDS = [
    {
        "id": n,
        "part": "test" if n % 4 == 3 else "train",
        "x": [[n, None] if n % 3 == 0 else [n, 1]] * 6,
        "word": [*WORDS[:5], None if n % 3 == 0 else "z" if n % 4 == 3 else "c"],
        "a long name for what was sold": [None, 1, 2, 3, 4, 5],
        "age": None if n % 3 == 0 else 40,
        "city": ["york", "ely", "york", "wells"][n % 4],
        "y": [None, ["p"], ["p", "q"], [], ["p"], None],
    }
    for n in range(40)
]


@pytest.fixture(scope="module")
def make_every(tmp_path_factory):
    """Returns a function that prepares these records with a label and returns the folder."""

    def of(label):
        folder = tmp_path_factory.mktemp("every")
        return make(folder, EVERY.replace("LABEL", label), [json.dumps(record) for record in EVERY_RECORDS])

    return of


@pytest.fixture(scope="module")
def every(make_every):
    return make_every("{name: y, kind: step_multilabel, classes: [p, q, r]}")


def count(split, of):
    return sum(of(record) for record in EVERY_RECORDS if record["part"] == split)


def missing_words(record):
    return record["word"].count(None)


def test_a_summary_has_missing_and_unknown_with_their_share(every):
    summary = summarize(read_manifest(every))
    for split in ("train", "test"):
        found = summary["splits"][split]
        records = count(split, lambda record: 1)
        words = count(split, missing_words)
        unknown = count(split, lambda record: sum(word in ("c", "z") for word in record["word"]))
        ages = count(split, lambda record: record["age"] is None)
        assert found["missing"] == {
            "x": {"count": 6 * ages, "share": 6 * ages / (12 * records)},
            "word": {"count": words, "share": words / (6 * records)},
            "a long name for what was sold": {"count": records, "share": 1 / 6},
            "age": {"count": ages, "share": ages / records},
        }
        assert found["unknown"] == {
            "word": {"count": unknown, "share": unknown / (6 * records - words)},
            "city": {"count": 0 if split == "train" else records, "share": 0.0 if split == "train" else 1.0},
        }
        assert (found["labels"], found["label_counts"]) == (4 * records, {"p": 3 * records, "q": records, "r": 0})
    nothing = summary["splits"]["validation"]
    assert nothing["missing"]["age"] == nothing["unknown"]["city"] == {"count": 0, "share": 0.0}


def test_a_summary_has_the_features_of_steps_and_context_with_their_vocabularies(every):
    summary = summarize(read_manifest(every))
    assert list(summary["features"]) == ["x", "word", "a long name for what was sold"]
    assert list(summary["context"]) == ["age", "city"]
    assert summary["features"]["word"] == {
        "dtype": "string",
        "shape": [],
        "vocabulary": 2,
        "missing": "fill",
        "vocabulary_size": 2,
    }
    assert summary["context"]["city"]["vocabulary_size"] == 2
    age = summary["context"]["age"]["statistics"]
    assert (age["count"], age["mean"]) == (30, [40.0])
    assert age["missing"] == [count("train", lambda record: record["age"] is None)]
    assert json.loads(json.dumps(summary)) == summary


def test_inspect_shows_context_vocabularies_missing_and_unknown(capsys, every):
    text = details(capsys, every)
    assert [row[:4] for row in rows(text, "Features")][:2] == [["x", "float32", "2", "-"], ["word", "string", "-", "2"]]
    assert rows(text, "Features")[2][-7:] == ["int64", "-", "20,000", "-", "-", "-", "-"]
    assert [row[:5] for row in rows(text, "Context, one value per record")] == [
        ["age", "float32", "-", "-", "40"],
        ["city", "string", "-", "2", "-"],
    ]
    gaps = rows(text, "Missing values, and strings outside the vocabulary")
    assert [row[-6:] for row in gaps] == [
        ["missing", "60", "0", "24", "84", "17.5%"],
        ["missing", "10", "0", "4", "14", "5.8%"],
        ["unknown", "20", "0", "6", "26", "11.5%"],
        ["missing", "30", "0", "10", "40", "16.7%"],
        ["missing", "10", "0", "4", "14", "35.0%"],
        ["unknown", "0", "0", "10", "10", "25.0%"],
    ]
    assert max(map(len, text.splitlines()[3:])) <= 100
    assert not any(line.endswith("\u2026") for line in text.splitlines())


def test_inspect_shows_the_number_of_labelled_steps_and_of_steps_per_class(capsys, every):
    text = details(capsys, every)
    assert rows(text, "Label y: step_multilabel, 3 classes") == [
        ["p", "90", "0", "30", "120", "75.0%"],
        ["q", "30", "0", "10", "40", "25.0%"],
        ["r", "0", "0", "0", "0", "0.0%"],
    ]
    assert rows(text, "Steps with a label") == [["steps", "120", "0", "40", "160", "66.7%"]]


@pytest.mark.parametrize(
    ("label", "title", "steps"),
    [
        ("{next_of: word}", "Label next word: step_class", ["steps", "140", "0", "46", "186", "77.5%"]),
        ("{next_of: x}", "Label next x: step_regression", ["steps", "100", "0", "30", "130", "54.2%"]),
    ],
)
def test_inspect_shows_the_number_of_steps_with_a_next_value(capsys, make_every, label, title, steps):
    dataset = make_every(label)
    text = details(capsys, dataset)
    assert f"\n{title}\n\nSteps with a label\n" in text
    assert rows(text, "Steps with a label") == [steps]
    summary = summarize(read_manifest(dataset))
    assert sum(split["labels"] for split in summary["splits"].values()) == int(steps[4])
    assert "name" not in summary["label"]


def test_inspect_shows_the_statistics_of_a_regression_per_step(capsys, tmp_path):
    schema = "{steps: {x: {dtype: float32}}, label: {name: y, kind: step_regression}, splits: {train: 1.0}}"
    text = details(capsys, make(tmp_path, schema, ['{"x": [1, 2, 3], "y": [2, null, 4]}']))
    assert rows(text, "Label y: step_regression") == [["y", "float32", "-", "-", "3", "1", "2", "4"]]
    assert rows(text, "Steps with a label") == [["steps", "2", "2", "66.7%"]]
