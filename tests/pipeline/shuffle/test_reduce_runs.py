"""Any number of runs becomes at most 64, in passes that read each byte as seldom as promised."""

import collections
import contextlib
import math
import operator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shuffle import merge_runs as merging
from pipeline.shuffle import reduce_runs as reducing
from pipeline.shuffle.hashing import END_NUMBER
from pipeline.shuffle.merge_runs import MAX_RUNS, merge_runs
from pipeline.shuffle.reduce_runs import group_runs, reduce_runs
from pipeline.shuffle.runs import PAYLOADS_ENDING, Run, new_run
from pipeline.shuffle.sorted_rows import KEY_COLUMN, Block, RowKind

COLUMNS = pa.schema([KEY_COLUMN, ("time", pa.int64())])


def sort_keys(rows):
    return list(zip(rows["key"].to_pylist(), rows["time"].to_pylist(), strict=True))


# Other rows than records: events, which are sorted by the hash of a person and then by time.
EVENTS = RowKind(COLUMNS, sort_keys)


def write_events(events, folder):
    """Writes (key, time, payload) to a run."""
    events = sorted(events, key=operator.itemgetter(0, 1))
    columns = [[event[number] for event in events] for number in range(2)]
    rows = pa.table([pa.array(column, field.type) for column, field in zip(columns, COLUMNS, strict=True)], COLUMNS)
    with new_run(folder, EVENTS) as writer:
        writer.add(Block(rows, [event[2] for event in events]))
    return writer.run({"events": len(events)})


def read_events(runs):
    found = []
    for block in merge_runs(runs, 0, END_NUMBER, EVENTS):
        columns = (block.rows[name].to_pylist() for name in COLUMNS.names)
        found += zip(*columns, block.payloads, strict=True)
    return found


class Reads:
    """Counts the runs that are open at the same time, how often each file is opened, and the bytes read from it."""

    def __init__(self, patch):
        self.now, self.most, self.opens, self.bytes = 0, 0, collections.Counter(), collections.Counter()
        open_read = merging.open_read

        @contextlib.contextmanager
        def counting(path):
            self.opens[path] += 1
            self.now += 1
            self.most = max(self.most, self.now)
            with open_read(path) as file:
                yield _Counted(file, path, self.bytes)
            self.now -= 1

        patch.setattr(merging, "open_read", counting)


class _Counted:
    def __init__(self, file, path, counts):
        self._file, self._path, self._counts = file, path, counts

    def read(self, size=-1):
        data = self._file.read(size)
        self._counts[self._path] += len(data)
        return data

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize(("num_runs", "max_runs"), [(150, 5), pytest.param(6000, 64, marks=pytest.mark.proof)])
def test_many_runs_are_read_in_passes_with_few_open(tmp_path, monkeypatch, num_runs, max_runs):
    monkeypatch.setattr(merging, "MAX_RUNS", max_runs)
    monkeypatch.setattr(reducing, "MAX_RUNS", max_runs)
    random, folder, runs, events = np.random.default_rng(0), str(tmp_path), [], []
    people = [random.bytes(16) for _ in range(2000)]
    for _ in range(num_runs):
        some = [(people[random.integers(2000)], int(random.integers(99)), random.bytes(30)) for _ in range(2)]
        events += some
        runs.append(write_events(some, folder))
    reads = Reads(monkeypatch)
    reduced = reduce_runs(runs, folder, EVENTS)
    assert len(reduced) == max_runs
    assert sum(run.totals["events"] for run in reduced) == sum(run.num_rows for run in reduced) == len(events)
    found = read_events(reduced)
    assert [event[:2] for event in found] == sorted(event[:2] for event in events)
    assert sorted(found) == sorted(events)
    # Each of the two files of a run is read once.
    assert reads.most <= 2 * max_runs
    assert set(reads.opens.values()) == {1}
    once = sum(len(payload) for _, _, payload in events)
    assert sum(reads.bytes[path] for path in reads.opens if path.endswith(PAYLOADS_ENDING)) <= once * (
        1 + math.log(len(runs), max_runs)
    )
    # The runs that were written are kept, and of the others only those that are needed.
    left = {path.stem for path in tmp_path.iterdir()}
    assert left == {run.path.rsplit("/", 1)[1] for run in [*runs, *reduced]}


@given(sizes=st.lists(st.integers(0, 9), max_size=300), more=st.sampled_from([0, 4000, 9000]))
def test_groups_hold_each_run_once_and_few_runs_are_merged(sizes, more):
    runs = [Run(f"{place:06}", 1, size, (), {}) for place, size in enumerate([*sizes, *[5] * more])]
    groups = group_runs(runs)
    assert sorted(run for group in groups for run in group) == sorted(runs)
    assert len(groups) == min(len(runs), MAX_RUNS)
    merged = [run for group in groups if len(group) > 1 for run in group]
    excess = max(0, len(runs) - MAX_RUNS)
    assert len(merged) == (excess and excess + sum(len(group) > 1 for group in groups))
    if len(runs) <= MAX_RUNS**2:
        assert max(map(len, groups), default=0) <= MAX_RUNS
    # The smallest runs are merged.
    alone = [run.num_bytes for group in groups if len(group) == 1 for run in group]
    assert max((run.num_bytes for run in merged), default=0) <= min(alone, default=9)


def test_more_runs_than_can_be_open_are_refused(tmp_path):
    runs = [write_events([(bytes(16), 0, b"")], str(tmp_path))] * (MAX_RUNS + 1)
    with pytest.raises(ValueError, match="expected at most 64 runs, not 65: reduce_runs makes larger ones"):
        read_events(runs)


@pytest.mark.parametrize("merged_rows", [1, 10_000])
def test_many_rows_with_one_key_are_merged_in_their_order(tmp_path, monkeypatch, merged_rows):
    """With 1, they are merged row by row."""
    monkeypatch.setattr(merging, "_MERGED_ROWS", merged_rows)
    events = [(bytes(16), time, f"{time}".encode()) for time in range(900)]
    runs = [write_events(events[number::3], str(tmp_path)) for number in range(3)]
    assert read_events(runs) == events


def test_a_merge_that_fails_leaves_no_file(tmp_path, monkeypatch):
    runs = [write_events([(bytes(16), time, b"a" * time)], str(tmp_path)) for time in range(3)]
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(reducing, "merge_runs", lambda *_: iter([None]))
    with pytest.raises(AttributeError):
        reducing.merge_group(runs, str(tmp_path), EVENTS)
    assert set(tmp_path.iterdir()) == before
