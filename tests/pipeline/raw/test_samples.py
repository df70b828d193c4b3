"""The samples fit their schemas, have correct labels, and depend only on the seed."""

import json
import pathlib
import re

import datasets
import numpy as np
import pytest

from pipeline.raw.records import parse_line
from pipeline.raw.samples import write_sample
from pipeline.schema.schema import Schema

NAMES = ["temporal_order", "adding", "seed"]


def write_and_parse(name, folder, **arguments):
    """Writes a sample and returns (raw records, parsed records, schema)."""
    raw, schema_path = write_sample(name, str(folder / "raw.jsonl"), **arguments)
    schema = Schema.read(schema_path)
    lines = pathlib.Path(raw).read_bytes().splitlines()
    return [json.loads(line) for line in lines], [parse_line(line, schema) for line in lines], schema


def test_the_temporal_order_label_is_the_order_of_the_two_marked_symbols(tmp_path):
    records, sequences, schema = write_and_parse("temporal_order", tmp_path, num_records=400)
    assert [record["id"] for record in records] == list(range(400))
    for record, sequence in zip(records, sequences, strict=True):
        symbols = "".join(record["symbol"])
        assert re.fullmatch(r"E[abcd]*[XY][abcd]*[XY][abcd]*B", symbols) and 20 <= len(symbols) <= 50
        assert record["order"] == re.sub("[^XY]", "", symbols)
        first, second = (match.start() for match in re.finditer("[XY]", symbols))
        assert first < len(symbols) / 3 and second >= len(symbols) // 2
        assert sequence.label.tolist() == [schema.label.classes.index(record["order"])]
    assert {record["order"] for record in records} == {"XX", "XY", "YX", "YY"}
    assert {len(record["symbol"]) for record in records} == set(range(20, 51))


def test_the_adding_label_is_the_sum_of_the_two_marked_numbers(tmp_path):
    records, sequences, _ = write_and_parse("adding", tmp_path, num_records=400)
    for record, sequence in zip(records, sequences, strict=True):
        values, markers = np.array(record["x"]).T
        assert 10 <= len(values) <= 40
        assert sorted(set(markers.tolist())) == [0, 1] and markers.sum() == 2
        assert markers[: len(values) // 2].sum() == 1
        assert record["sum"] == pytest.approx(values @ markers)
        np.testing.assert_allclose(sequence.label, [record["sum"]], rtol=1e-6)
    assert {len(record["x"]) for record in records} == set(range(10, 41))


def test_the_seed_sample_has_50_then_10_then_60_steps_and_random_distributions(tmp_path):
    records, sequences, schema = write_and_parse("seed", tmp_path, num_records=31)
    assert [len(record["x"]) for record in records] == [50] * 11 + [10] * 10 + [60] * 10
    assert {len(step) for record in records for step in record["x"]} == {100}
    labels = np.array([record["y"] for record in records])
    np.testing.assert_allclose(labels.sum(1), 1)
    assert labels.shape == (31, 2) and len(np.unique(labels)) > 50
    np.testing.assert_allclose([sequence.label for sequence in sequences], labels, rtol=1e-6)
    assert schema.label.kind == "distribution"


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bytes(tmp_path, name):
    def write(folder, seed):
        paths = write_sample(name, str(tmp_path / folder / "raw.jsonl"), num_records=20, seed=seed)
        return [pathlib.Path(path).read_bytes() for path in paths]

    assert write("a", 3) == write("b", 3)
    assert write("a2", 3)[0] != write("c", 4)[0]


@pytest.mark.parametrize(("name", "records"), [("temporal_order", 5000), ("adding", 5000), ("seed", 3000)])
def test_the_command_writes_records_and_schema(tmp_path, capsys, name, records):
    if name == "seed":  # by default 90 MB
        records = 60
    count = [] if records == 5000 else ["--num_records", records]
    status, _, err = datasets.call(capsys, "sample", name, "--output", tmp_path / "deep" / "raw.jsonl", *count)
    others = [line for line in err if not re.match("sample: [0-9,]+ records, ", line)]  # progress on a busy machine
    assert (status, others) == (0, [])
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["raw.jsonl", "raw.schema.yaml"]
    assert (tmp_path / "deep" / "raw.jsonl").read_bytes().count(b"\n") == records


def test_existing_files_are_replaced_only_with_overwrite(tmp_path, capsys):
    (tmp_path / "raw.schema.yaml").write_text("mine")
    arguments = ["sample", "adding", "--num_records", 3, "--output", tmp_path / "raw.jsonl"]
    status, out, err = datasets.call(capsys, *arguments)
    assert (status, out) == (1, "")
    assert err == [
        f"lengthwise sample: {tmp_path}/raw.schema.yaml: already exists. Choose another --output, or replace it with "
        "--overwrite."
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["raw.schema.yaml"]
    assert (tmp_path / "raw.schema.yaml").read_text() == "mine"
    assert datasets.call(capsys, *arguments, "--overwrite")[0] == 0
    assert (tmp_path / "raw.schema.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["addding", "--output", "raw.jsonl"], "'addding'"),
        (["adding"], "--output"),
        (["adding", "--output", "raw.jsonl", "--num_records", "0"], "0 is too small, expected an integer of at"),
        (["adding", "--output", "raw.jsonl", "--sed", "0"], "unknown flag --sed; did you mean --seed?"),
    ],
)
def test_a_wrong_flag_is_an_error_of_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = datasets.call(capsys, "sample", *arguments)
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith("lengthwise sample: ") and message in err[0]
    assert list(tmp_path.iterdir()) == []
