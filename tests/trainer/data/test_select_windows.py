"""The records of selected windows are those that a filter in Python selects, in every reader and plan."""

import collections
import datetime
import json

import datasets
import numpy as np
import plain_prepare
import pytest

import lengthwise as lw
from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.schema.windows import EventWindows
from trainer.data.dataset import open_dataset
from trainer.data.select_windows import describe_selection, select_newest, select_windows

HOUR = 3600
SIZE = 2 * HOUR
WINDOWS = EventWindows(field="at", seconds=SIZE)


def timed_records(kind, *, seed=0):
    """Returns records of three splits with event times of 30 hours, in any order."""
    random, records = np.random.default_rng(seed), []
    for split, count in (("train", 90), ("validation", 20), ("test", 20)):
        records += datasets.random_records(random.integers(1, 9, count).tolist(), split=split, kind=kind, seed=seed)
    times = random.integers(0, 30 * HOUR, len(records)).tolist()
    return [record | {"at": time} for record, time in zip(records, times, strict=True)]


def make(folder, kind="class"):
    """Returns the folder of a dataset in two commits, of which the first one has no windows for ten records."""
    records = timed_records(kind)
    before = [record | {"id": f"before-{n}"} for n, record in enumerate(records[:10])]
    (folder / "schema.yaml").write_text(datasets.schema_text(kind))
    for name, some, windows in (("a", before, None), ("b", records[::2], WINDOWS), ("c", records[1::2], None)):
        raw = folder / f"{name}.jsonl"
        raw.write_text("".join(f"{json.dumps(record)}\n" for record in some))
        options = {"append": True, "windows": windows, "num_shards": 1 if name == "c" else 2}
        plain_prepare.prepare(
            PrepareOptions((str(raw),), str(folder / "schema.yaml"), str(folder / "dataset"), **options)
        )
    return str(folder / "dataset"), records


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("windows"))


def newest_of(records):
    return max(record["at"] for record in records)


def by_hand(records, split, start, end):
    """Returns the records of a split in the windows that overlap [start, end), the slow way."""
    return [
        record
        for record in records
        if record["split"] == split
        and (end is None or record["at"] // SIZE * SIZE < end)
        and (start is None or record["at"] // SIZE * SIZE + SIZE > start)
    ]


def ids_in(dataset, split):
    return sorted(dataset.index(split)["id"].to_pylist()) if dataset.split(split).records else []


RANGES = [
    (0, 4 * HOUR),
    (HOUR, 2 * HOUR),
    (2 * HOUR, 2 * HOUR + 1),
    (None, 3 * HOUR),
    (20 * HOUR, None),
    (None, None),
    (9.5 * HOUR, 10 * HOUR - 0.25),
]


@pytest.mark.parametrize("limits", RANGES)
def test_the_windows_that_overlap_a_range_are_selected(made, limits):
    path, records = made
    dataset = open_dataset(path)
    selected = select_windows(dataset, "train", limits)
    expected = by_hand(records, "train", *limits)
    assert ids_in(selected, "train") == sorted(record["id"] for record in expected)
    split = selected.split("train")
    assert (split.records, split.labels) == (len(expected), len(expected))
    assert split.steps == sum(len(record["x"]) for record in expected)
    assert split.length_counts == collections.Counter(len(record["x"]) for record in expected)
    # All else is that of the whole dataset.
    assert selected.split("test") == dataset.split("test")
    assert selected.manifest.fingerprint == dataset.manifest.fingerprint


def test_the_index_of_a_dataset_has_the_event_times_of_records_that_have_any(made):
    path, records = made
    rows = open_dataset(path).index("train").to_pylist()
    expected = {record["id"]: record["at"] * 10**6 for record in records if record["split"] == "train"}
    assert {row["id"]: row["event_time"] for row in rows if not row["id"].startswith("before")} == expected
    assert [row["event_time"] for row in rows if row["id"].startswith("before")] == [None] * 10


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("90m", 5400), ("6h", 6 * HOUR), ("10d", 10 * 86400)])
def test_a_duration_ends_with_the_newest_event_time(made, text, seconds):
    path, records = made
    newest = newest_of(records)
    expected = by_hand(records, "train", newest - seconds, newest + 1)
    for selected in (
        select_windows(open_dataset(path), "train", text),
        select_newest(open_dataset(path), "train", seconds),
    ):
        assert ids_in(selected, "train") == sorted(record["id"] for record in expected)
    starts = [record["at"] // SIZE * SIZE for record in expected]
    assert describe_selection(selected, "train") == {
        "start": datetime.datetime.fromtimestamp(min(starts), datetime.UTC).strftime("%FT%TZ"),
        "end": datetime.datetime.fromtimestamp(max(starts) + SIZE, datetime.UTC).strftime("%FT%TZ"),
        "records": len(expected),
    }
    assert select_newest(open_dataset(path), "train", None).manifest == open_dataset(path).manifest


def test_times_may_be_written_in_every_way(made):
    path, _ = made
    time = datetime.datetime(1970, 1, 1, 8, tzinfo=datetime.UTC)
    ways = [8 * HOUR, 8.0 * HOUR, time, "1970-01-01T08:00:00Z", "1970-01-01T09:00:00+01:00", "1970-01-01T08:00"]
    selected = [select_windows(open_dataset(path), "train", (way, None)) for way in ways]
    assert len({dataset.split("train").shards for dataset in selected}) == 1


@pytest.mark.parametrize("batching", datasets.some(["window", "bucket", "pad", "exact"], ["window", "bucket"]))
def test_batches_and_plans_have_the_records_of_the_windows_once(made, batching):
    path, records = made
    options = {"batching": batching, "batch_size": 7, "windows": "10h"}
    plan = lw.plan_epoch(open_dataset(path), "train", **options)
    newest = newest_of(records)
    expected = by_hand(records, "train", newest - 10 * HOUR, newest + 1)
    found = collections.Counter()
    num_batches = 0
    for features, _, _ in lw.batches(path, "train", **options):
        num_batches += 1
        for x, length in zip(features["x"].numpy(), features["length"].numpy(), strict=True):
            found[x[:length].tobytes()] += 1
    assert found == collections.Counter(np.array(record["x"], np.float32).tobytes() for record in expected)
    assert (plan.records, plan.num_batches) == (len(expected), num_batches)


@pytest.mark.parametrize(
    "kind", datasets.some(["step_class", "step_multilabel", "step_regression", "multilabel"], ["step_multilabel"])
)
def test_labels_are_counted_without_reading_a_record(tmp_path, kind):
    path, records = make(tmp_path, kind)
    expected = by_hand(records, "train", 6 * HOUR, 20 * HOUR)
    count = len(expected)
    if kind.startswith("step"):
        count = sum(label is not None for record in expected for label in record["y"])
    assert select_windows(open_dataset(path), "train", (6 * HOUR, 20 * HOUR)).split("train").labels == count


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ("week", "windows: week is not a duration, expected a number and a unit"),
        ((5, 5), r"windows is \[5, 5\], expected a start before the end"),
        (("noon", None), "expected a duration such as '7d', or a start and an end: .*'noon'"),
        ((1,), "expected a duration such as '7d', or a start and an end"),
        (7, "windows is 7, expected a duration such as '7d'"),
    ],
)
def test_a_wrong_range_is_named(made, windows, message):
    with pytest.raises(ValueError, match=message):
        select_windows(open_dataset(made[0]), "train", windows)


def test_an_empty_selection_names_the_newest_window(made, tmp_path):
    path, records = made
    newest = max(record["at"] // SIZE * SIZE for record in records if record["split"] == "train")
    text = datetime.datetime.fromtimestamp(newest, datetime.UTC).strftime("%FT%TZ")
    with pytest.raises(UserError, match=f"the split 'train' has no record in .* its newest window begins at {text}"):
        select_windows(open_dataset(path), "train", ("2026-01-01", None))
    with pytest.raises(UserError, match="has no windows of event time, so that none can be selected. Prepare it with"):
        select_windows(open_dataset(datasets.of_kind("class").path), "train", "7d")
    with pytest.raises(UserError, match="has no split 'extra'"):
        select_windows(open_dataset(path), "extra", "7d")


def test_the_command_plan_counts_the_newest_windows(made, capsys):
    path, records = made
    out = datasets.call(capsys, "plan", path, "--newest", "10h", "--json")[1]
    newest = newest_of(records)
    expected = by_hand(records, "train", newest - 10 * HOUR, newest + 1)
    assert {plan["records"] for plan in json.loads(out).values()} == {len(expected)}
