"""Messages that are copied to a file come out as they went in, by partition."""

import hashlib
import random

import pytest

from pipeline.errors import TryAgain
from pipeline.files import list_files
from pipeline.raw import spooled_messages
from pipeline.raw.find_files import FileRange, RawFile
from pipeline.raw.json_lines import ChunkSummary
from pipeline.raw.spooled_messages import SpoolWriter, read_messages, split_input
from pipeline.writing.paths import is_written_by_prepare

TAIL = bytes(32)


def part(spool, path, start, stop):
    return RawFile(path, 0, None, FileRange(start, 7, 0, TAIL), spool.spool(path, stop))


def read(file, **options):
    """Returns the (offset, value) pairs of a part, and the summaries of its chunks."""
    pairs, summaries = [], []
    for chunk in split_input(file, **options):
        for item in read_messages(chunk):
            if isinstance(item, ChunkSummary):
                summaries.append(item)
                continue
            assert item.path == file.path
            assert item.digests == [hashlib.sha256(line).digest() for line in item.lines]
            pairs += zip(item.offsets, item.lines, strict=True)
    return pairs, summaries


@pytest.mark.parametrize("buffer_bytes", [1, 5000, 2**30])
def test_any_values_come_out_by_partition(tmp_path, monkeypatch, buffer_bytes):
    monkeypatch.setattr(spooled_messages, "_BUFFER_BYTES", buffer_bytes)
    monkeypatch.setattr(spooled_messages, "BATCH_BYTES", 2000)
    chance = random.Random(0)
    expected = {f"kafka://t/{number}": [] for number in range(3)}
    with SpoolWriter(str(tmp_path)) as spool:
        for offset in range(0, 3000, 3):
            path = f"kafka://t/{chance.randrange(3)}"
            value = chance.randbytes(chance.choice([0, 1, 20, 300])) + chance.choice([b"", b"\n", b"\r\n", b" "])
            spool.add(path, offset, value)
            expected[path].append((offset, value))
        spool.flush()
        for path, pairs in expected.items():
            found, summaries = read(part(spool, path, 0, 3001), message_bytes=chance.choice([1, 10_000, 2**30]))
            assert found == pairs
            assert [each.start for each in summaries][:1] == [0]
            assert sum(each.stored_bytes for each in summaries) == 3001
            assert sum(each.num_lines for each in summaries) == len(pairs)
            assert sum(each.num_bytes for each in summaries) == sum(len(value) for _, value in pairs)
            assert len({each.sha256 for each in summaries}) == len(summaries)
    (name,) = list_files(str(tmp_path))
    assert is_written_by_prepare(f"data/20260101T000000-00000000/{name.rpartition('/')[2]}")


def test_a_part_without_messages_has_a_summary_and_no_file(tmp_path):
    spool = SpoolWriter(str(tmp_path))
    spool.flush()
    found, (summary,) = read(part(spool, "kafka://t/0", 5, 9))
    assert found == []
    assert (summary.start, summary.stored_bytes, summary.num_lines, summary.range.lines) == (5, 4, 0, 7)
    # Two empty parts are not the same raw file.
    assert read(part(spool, "kafka://t/1", 5, 9))[1][0].sha256 != summary.sha256
    assert not list(tmp_path.iterdir())


def test_a_large_value_is_truncated_after_the_limit(tmp_path):
    with SpoolWriter(str(tmp_path)) as spool:
        for offset, size in enumerate((99, 100, 101, 5000)):
            spool.add("kafka://t/0", offset, b"x" * size)
        spool.flush()
        (chunk,) = split_input(part(spool, "kafka://t/0", 0, 4))
        lines, summary = read_messages(chunk, record_bytes=100)
    assert list(map(len, lines.lines)) == [99, 100, 101, 101]
    assert summary.num_bytes == 5300


def test_a_file_that_was_removed_or_cut_is_tried_again(tmp_path):
    with SpoolWriter(str(tmp_path)) as spool:
        spool.add("kafka://t/0", 0, b"x" * 100)
        spool.flush()
        (chunk,) = split_input(part(spool, "kafka://t/0", 0, 1))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(TryAgain, match="was changed while it was read"):
        list(read_messages(chunk))
    file.unlink()
    with pytest.raises(TryAgain, match="was removed while it was read"):
        list(read_messages(chunk))


def test_an_error_removes_the_file(tmp_path):
    with pytest.raises(ZeroDivisionError), SpoolWriter(str(tmp_path)) as spool:
        spool.add("kafka://t/0", 0, b"x")
        spool.flush()
        assert list(tmp_path.iterdir())
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
