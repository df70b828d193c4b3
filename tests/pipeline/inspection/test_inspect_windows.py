"""`inspect` shows the records and shards of each window of event time."""

import json

import pytest
from datasets import call

from pipeline.inspection import inspect_windows
from pipeline.schema.windows import EventWindows

SCHEMA = """\
id: id
steps: {x: {dtype: float32}}
label: {name: y, kind: regression}
splits: {from: part}
"""
HOURS = EventWindows(field="at", seconds=3600)


def record(number, at, part="train"):
    return {"id": number, "x": [1.0, 2.0], "y": 0.5, "at": at, "part": part}


@pytest.fixture
def dataset(tmp_path, run_prepare, write_raw):
    def prepare(*records, name, windows):
        raw = write_raw(records, name)
        run_prepare(raw, schema=SCHEMA, append=True, windows=windows, plain=True)
        return tmp_path / "dataset"

    prepare(record(0, 0), record(1, 0), name="before", windows=None)
    prepare(*(record(n, 3600 * n + 0.5) for n in range(10, 30)), name="first", windows=HOURS)
    late = [record(n, 11 * 3600, "train" if n % 3 else "validation") for n in range(30, 36)]
    return prepare(*late, record(40, "1970-01-02T05:59:59Z", "test"), name="late", windows=None)


def test_the_json_has_every_window(dataset, capsys):
    found = json.loads(call(capsys, "inspect", dataset, "--json")[1])["windows"]
    windows = found.pop("windows")
    shard = {"bytes": found["without_window"]["train"]["bytes"]}
    none = {"records": 0, "shards": 0, "bytes": 0}
    assert found == {
        "field": "at",
        "unit": "s",
        "seconds": 3600,
        "oldest": "1970-01-01T10:00:00.500000Z",
        "newest": "1970-01-02T05:59:59Z",
        "without_window": {"train": {"records": 2, "shards": 1, **shard}, "validation": none, "test": none},
    }
    assert [window["start"] for window in windows] == [
        f"1970-01-0{hour // 24 + 1}T{hour % 24:02d}:00:00Z" for hour in range(10, 30)
    ]
    assert windows[1]["end"] == windows[2]["start"]
    counts = {name: (part["records"], part["shards"]) for name, part in windows[1]["splits"].items()}
    assert counts == {"train": (5, 2), "validation": (2, 1), "test": (0, 0)}
    assert {name: part["records"] for name, part in windows[-1]["splits"].items()} == {
        "train": 1,
        "validation": 0,
        "test": 1,
    }


@pytest.mark.parametrize(("first", "last", "more"), [(2, 3, "16 more"), (3, 20, None), (10, 10, None)])
def test_of_many_windows_the_first_and_the_last_are_shown(dataset, capsys, monkeypatch, first, last, more):
    monkeypatch.setattr(inspect_windows, "_NUM_FIRST", first)
    monkeypatch.setattr(inspect_windows, "_NUM_LAST", last)
    out = call(capsys, "inspect", dataset)[1].splitlines()
    title = (
        "Event time: 20 windows of 1h by the field 'at', events from 1970-01-01T10:00:00.500000Z to "
        "1970-01-02T05:59:59Z"
    )
    text = " ".join(" ".join(out).split())
    assert title in text
    begin = next(number for number, line in enumerate(out) if line.split()[:1] == ["window"]) + 2
    rows = [line.split() for line in out[begin : begin + (first + last + 1 if more else 21)]]
    assert [row[0] for row in rows[:2]] == ["none", "1970-01-01T10:00:00Z"]
    assert (rows[-1][0], rows[-1][1:5]) == ("1970-01-02T05:00:00Z", ["1", "0", "1", "2"])
    assert [f"{row[0]} more" for row in rows if row[1] == "more"] == ([more] if more else [])
    # Every record is in one of the rows.
    assert sum(int(row[-6]) for row in rows) == 2 + 20 + 4


def test_a_dataset_without_windows_has_no_table(tmp_path, run_prepare, write_raw, capsys):
    run_prepare(write_raw([record(0, 0)]), schema=SCHEMA, plain=True)
    assert "Event time" not in call(capsys, "inspect", tmp_path / "dataset")[1]
    assert json.loads(call(capsys, "inspect", tmp_path / "dataset", "--json")[1])["windows"] is None
