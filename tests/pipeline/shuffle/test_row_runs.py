"""Rows are sorted through files, whatever their number, with few files open at the same time."""

import contextlib
import random

import pytest

from pipeline.raw.json_lines import ChunkSummary
from pipeline.shuffle import row_runs
from pipeline.shuffle.chunk_runs import ChunkBuffer, merge_chunk_runs
from pipeline.shuffle.row_runs import RowBuffer, merge_row_runs


@pytest.fixture
def open_files(monkeypatch):
    """Lets a merge have three open files, and returns a list of the number of open files after each opening."""
    real, counts, number = row_runs.open_read, [], 0

    @contextlib.contextmanager
    def counted(path):
        nonlocal number
        with real(path) as file:
            number += 1
            counts.append(number)
            yield file
        number -= 1

    monkeypatch.setattr(row_runs, "_MAX_OPEN", 3)
    monkeypatch.setattr(row_runs, "open_read", counted)
    return counts


def to_row(value):
    return [value, None, "\ud800" if value % 3 else "ü\n", 2**63 - value]


@pytest.mark.parametrize("num_values", [0, 1, 20, 21, 22, 200])
@pytest.mark.parametrize("key", [None, lambda row: -row[0]])
def test_any_number_of_runs_gives_all_rows_sorted(tmp_path, monkeypatch, open_files, num_values, key):
    monkeypatch.setattr(row_runs, "_BUFFER_VALUES", 7)
    values = [random.Random(num_values).randrange(50) for _ in range(num_values)]
    buffer = RowBuffer(str(tmp_path), ".test", to_row, key)
    runs = [run for value in values for run in buffer.add(value)] + buffer.flush()
    assert len(runs) == -(-num_values // 7)
    assert all(run.path.endswith(".test") for run in runs)
    with merge_row_runs(runs, key) as rows:
        assert list(rows) == sorted(map(to_row, values), key=key)
    assert max(open_files, default=0) <= 3


def test_large_rows_are_sorted_in_smaller_runs_of_which_fewer_are_open(tmp_path, monkeypatch, open_files):
    monkeypatch.setattr(row_runs, "_BUFFER_BYTES", 1000)
    monkeypatch.setattr(row_runs, "_MAX_BYTES", 1000)
    values = random.Random(0).sample([str(n).zfill(n % 400) for n in range(1, 301)], 300)
    buffer = RowBuffer(str(tmp_path), ".test", list)
    runs, num_bytes = [], 0
    for value in values:
        num_bytes += len(value) * 4 + 1  # as JSON
        written = buffer.add(value)
        assert len(written) == (num_bytes >= 1000)
        num_bytes *= not written
        runs += written
    runs += buffer.flush()
    assert max(run.largest for run in runs) == max(len((tmp_path / run.path).read_bytes().split()[0]) for run in runs)
    with merge_row_runs(runs) as rows:
        assert list(rows) == sorted(map(list, values))
    assert max(open_files) == 2


def test_chunks_are_sorted_by_file_and_place_without_duplicates(tmp_path, open_files):
    chunks = [
        ChunkSummary(path, start, start + 1, 2, 3, bytes([start]) * 32)
        for path in ("/b", "/a", "/a!", "/ü", "/ü\U0001f600")
        for start in (0, 20, 100)
    ]
    runs = []
    for part in (chunks, chunks[3:9], chunks[5:]):
        shuffled = random.Random(5).sample(part, len(part))
        for start in range(0, len(shuffled), 4):
            buffer = ChunkBuffer(str(tmp_path))
            runs += [run for chunk in shuffled[start : start + 4] for run in buffer.add(chunk)] + buffer.flush()
    with merge_chunk_runs(runs) as merged:
        assert list(merged) == sorted(chunks)
