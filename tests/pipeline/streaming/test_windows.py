"""A stream labels its shards with windows of event time: late data are in an old window of a later commit."""

import pytest
from datasets import call
from prepare_jobs import read_whole
from streams import Place, lines

from pipeline.errors import UserError
from pipeline.schema.windows import EventWindows
from pipeline.streaming import rounds

HOURS = EventWindows(field="at", seconds=3600)


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path)


def windows_of(manifest):
    """Returns the number of records of each window."""
    found = {}
    for split in manifest.splits.values():
        for shard in split.shards:
            found[shard.window] = found.get(shard.window, 0) + shard.records
    return found


def test_late_records_are_added_to_an_old_window_in_a_later_commit(place, capsys):
    place.append("a.jsonl", lines(range(30), at=10) + lines(range(30, 40), at="1970-01-01T05:30:00+01:00"))
    first = place.once(windows=HOURS)
    assert windows_of(first) == {0: 30, 4 * 3600: 10}
    place.append("a.jsonl", lines(range(40, 60), at=3599) + lines(range(60, 65), at=20_000))
    # Another stream takes the windows from the dataset.
    second = place.once()
    assert "has windows of 1h by the field 'at', which the new shards get, too." in capsys.readouterr().err
    assert windows_of(second) == {0: 50, 4 * 3600: 10, 5 * 3600: 5}
    shards = [{shard.path for shard in m.splits["train"].shards} for m in (first, second)]
    assert shards[0] < shards[1]
    assert read_whole(place.dataset) == second
    place.append("a.jsonl", lines(range(70, 80), at=0))
    with pytest.raises(UserError, match="has windows of 1h by the field 'at', so records with windows of 1m"):
        place.once(windows=EventWindows(field="at", seconds=60))


def test_a_stream_names_the_windows_of_the_dataset_once(place, capsys):
    place.append("a.jsonl", lines(range(5), at=10))
    place.once(windows=HOURS)
    capsys.readouterr()
    place.append("a.jsonl", lines(range(5, 10), at=10))
    place.follow(*(lambda n=n: place.append("a.jsonl", lines(range(n, n + 5), at=n)) for n in (10, 15)))
    assert capsys.readouterr().err.count("has windows of 1h") == 1


def test_a_stream_merges_the_shards_of_each_window_only_if_there_are_too_many(place, monkeypatch):
    monkeypatch.setattr(rounds, "_MAX_SHARDS", 6)
    # Each round has a window of its own: there is nothing to merge.
    steps = [lambda n=n: place.append("a.jsonl", lines(range(40 * n, 40 * n + 40), at=3600 * n)) for n in range(5)]
    assert place.follow(*steps, windows=HOURS).commit == 5
    steps = [lambda n=n: place.append("a.jsonl", lines(range(40 * n, 40 * n + 40), at=9 * 3600)) for n in range(5, 9)]
    manifest = place.follow(*steps)
    # Of the last window, the shards of three commits are more than six beyond those of the first one.
    assert (manifest.commit, len(manifest.generations)) == (10, 6)
    assert windows_of(read_whole(place.dataset)) == {3600 * n: 40 for n in range(5)} | {9 * 3600: 160}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--window", "1h"], "argument --window: expected --window and --event_time together; --event_time is missing"),
        (["--event_time", "at"], "argument --event_time: expected --window and --event_time together; --window is mis"),
        (["--event_time_unit", "ms"], "argument --event_time_unit: expected --window and --event_time together"),
        (["--window", "0.5s", "--event_time", "at"], "argument --window: 0.5 s, expected whole seconds from 1s to 366"),
        (["--window", "9999d", "--event_time", "at"], "argument --window: 8.63914e+08 s, expected whole seconds"),
        (["--window", "hour", "--event_time", "at"], "argument --window: hour is not a duration"),
    ],
)
def test_wrong_flags_are_refused(place, capsys, flags, message):
    arguments = [place.logs, "--schema", place.folder / "schema.yaml", "--output", place.dataset, *flags]
    status, _, errors = call(capsys, "prepare", *arguments)
    assert (status, message in errors[0]) == (2, True)
    assert not place.dataset.exists()


def test_the_flags_of_prepare(tmp_path, capsys):
    place = Place(tmp_path)
    place.append("a.jsonl", lines(range(20), at=7_200_000) + lines(range(20, 30), at=3_599_999) + lines([40]))
    arguments = [place.logs, "--schema", tmp_path / "schema.yaml", "--output", place.dataset, "--max_rejected", "0.1"]
    flags = ["--window", "1h", "--event_time", "at", "--event_time_unit", "ms"]
    assert call(capsys, "prepare", *arguments, *flags)[0] == 0
    manifest = read_whole(place.dataset)
    assert manifest.windows == EventWindows(field="at", seconds=3600, unit="ms")
    assert windows_of(manifest) == {0: 10, 7200: 20}
    assert manifest.rejected.by_reason == {"missing_field": 1}
