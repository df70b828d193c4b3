"""The list of raw files is read as it was written, in blocks of bounded size; a damaged list is refused."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import file_sha256
from pipeline.format import sources
from pipeline.format.sources import COLUMNS, SourceRow, SourcesFile, read_sources, rows_of, write_sources


def made(num_rows):
    random = np.random.default_rng(num_rows)
    return [SourceRow(f"/raw/{n:05d}.jsonl", 3 * n, n, random.bytes(32)) for n in range(num_rows)]


def write(path, rows, **options):
    with open(path, "wb") as file:
        return write_sources(file, rows, **options)


def blocks_of(path, files):
    file = SourcesFile(path=path.name, sha256=file_sha256(str(path)), files=files, bytes=0)
    return read_sources(str(path.parent), file)


def read(path, files):
    return [SourceRow(*row.values()) for block in blocks_of(path, files) for row in block.to_pylist()]


NUMBERS = st.integers(0, 2**63 - 1)
ROWS = st.dictionaries(
    st.text(st.characters(codec="utf-8")), st.tuples(NUMBERS, NUMBERS, st.binary(min_size=32, max_size=32)), max_size=20
)


@given(ROWS, st.integers(1, 5), st.integers(1, 30))
def test_sources_are_read_as_they_were_written_in_small_blocks(tmp_path_factory, rows, most_files, most_bytes):
    path = tmp_path_factory.getbasetemp() / "sources.parquet"
    rows = [SourceRow(name, *rows[name]) for name in sorted(rows)]
    small = [row._replace(num_bytes=row.num_bytes >> 8) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "BLOCK_FILES", most_files)
        patch.setattr(sources, "BLOCK_BYTES", most_bytes)
        totals = write(path, iter(small))
        assert read(path, len(rows)) == small
        blocks = list(blocks_of(path, len(rows)))
    assert totals == (len(rows), sum(row.num_bytes for row in small), 0, 0)
    # Each block is as large as the limits allow.
    widths = [[len(name.as_py().encode()) for name in block["path"]] for block in blocks]
    assert all(len(block) <= most_files and (len(block) == 1 or sum(block) <= most_bytes) for block in widths)
    for block, after in zip(widths, widths[1:], strict=False):
        assert len(block) == most_files or sum(block) + after[0] > most_bytes


def test_parts_of_files_are_read_as_they_were_written_beside_whole_files(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_FILES", 2)
    path = tmp_path / "sources.parquet"
    parts = [
        SourceRow(name, 10, 5, bytes(32), None, start, lines, rewrites, bytes([lines]) * 32)
        for name, start, lines, rewrites in (("b", 0, 3, 0), ("b", 5, 4, 0), ("c", 0, 0, 2))
    ]
    whole = SourceRow("a", 1, 1, bytes(32))
    for split, rows in ((None, parts), (None, [whole, *parts]), ("train", [whole, *parts])):
        rows = [row._replace(split=split) for row in rows]
        assert write(path, rows, with_parts=True) == (len(rows), sum(row.num_bytes for row in rows), 3, 1)
        assert [row for block in blocks_of(path, len(rows)) for row in rows_of(block)] == rows
    joined = [whole, *parts[:2], parts[2]._replace(joined=2)]
    write(path, joined, with_parts=True, with_joined=True)
    assert [row for block in blocks_of(path, 4) for row in rows_of(block)] == joined
    write(path, [whole])
    assert [row for block in blocks_of(path, 1) for row in rows_of(block)] == [whole]
    with pytest.raises(ValueError, match="some of them are parts of files, but the first one is not"):
        write(path, [whole, *parts])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lines": None}, "some parts of files have a start without lines, or the reverse"),
        ({"rewrites": None}, "some parts of files have a start without rewrites"),
        ({"tail": None}, "some parts of files have a start without tail"),
        ({"start": None}, "some parts of files have a start without lines, or the reverse"),
        ({"start": -1}, "start is -1, expected at least 0"),
        ({"lines": -2}, "lines is -2, expected at least 0"),
        ({"rewrites": -3}, "rewrites is -3, expected at least 0"),
    ],
)
def test_wrong_parts_are_refused_when_written_and_when_read(tmp_path, monkeypatch, change, message):
    path = tmp_path / "sources.parquet"
    right = SourceRow("a", 1, 1, bytes(32), None, 0, 1, 0, bytes(32))
    rows = [right, right._replace(**change)]
    with pytest.raises(ValueError, match=f"^The sources to write: {message}"):
        write(path, rows)
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_check_parts", lambda block, name: None)
        write(path, rows)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        read(path, 2)


def test_an_empty_list_is_read_as_it_was_written(tmp_path):
    assert write(tmp_path / "sources.parquet", []) == (0, 0, 0, 0)
    assert read(tmp_path / "sources.parquet", 0) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("b", 1, 1), ("a", 1, 1)], "the paths are not sorted"),
        ([("a", -1, 1)], "bytes is -1, expected at least 0"),
        ([("a", 1, -1)], "stored_bytes is -1, expected at least 0"),
    ],
)
@pytest.mark.parametrize("block_files", [1, 10])
def test_wrong_rows_are_refused_when_written_and_when_read(tmp_path, monkeypatch, rows, message, block_files):
    monkeypatch.setattr(sources, "BLOCK_FILES", block_files)
    path = tmp_path / "sources.parquet"
    rows = [(*row, b"d" * 32) for row in rows]
    with pytest.raises(ValueError, match=f"^The sources to write: {message}"):
        write(path, [SourceRow(*row) for row in rows])
    table = pa.table(
        [pa.array(column, f.type) for column, f in zip(zip(*rows, strict=True), COLUMNS, strict=True)], COLUMNS
    )
    pq.write_table(table, path, row_group_size=block_files, use_dictionary=False)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        read(path, len(rows))


def rewritten(table, **options):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **{"use_dictionary": False, "row_group_size": 100, **options})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: b"", "not a file of sources: "),
        (lambda table: b"PAR1" * 20, "not a file of sources: "),
        (lambda table: rewritten(table.drop_columns(["sha256"])), r"has the columns 'path' \(string\), .*expected"),
        (lambda table: rewritten(table.append_column("x", table["bytes"])), "has the columns .*'x'"),
        (lambda table: rewritten(table.slice(1)), "lists 199 raw files, expected 200"),
        (lambda table: rewritten(table, use_dictionary=True), "block 0 has 100 rows and .* bytes .*_DICTIONARY"),
        (lambda table: rewritten(table, column_encoding={"path": "DELTA_BYTE_ARRAY"}), "block 0 has 100 rows.*DELTA"),
        (lambda table: rewritten(table, row_group_size=200), "block 0 has 200 rows .* expected 1 to 150 rows"),
    ],
)  # fmt: skip
def test_a_file_with_other_contents_is_refused_before_a_block_is_read(tmp_path, monkeypatch, change, message):
    path = tmp_path / "sources.parquet"
    write(path, made(200))
    path.write_bytes(change(pq.read_table(path)))
    monkeypatch.setattr(sources, "BLOCK_FILES", 150)
    monkeypatch.setattr(sources, "_read_blocks", None)
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        read(path, 200)


def test_a_damaged_or_truncated_file_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    path = tmp_path / "sources.parquet"
    write(path, made(20))
    data, file = path.read_bytes(), SourcesFile(path=path.name, sha256=file_sha256(str(path)), files=20, bytes=0)
    monkeypatch.setattr(sources.pq, "ParquetFile", None)
    changed = [data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :] for place in range(0, len(data), 50)]
    for damaged in [*changed, data[:-1], data + b"\0", b""]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{path}: has the SHA-256 [0-9a-f]{{64}}, expected {file.sha256}"):
            next(read_sources(str(tmp_path), file))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        next(read_sources(str(tmp_path), file))
