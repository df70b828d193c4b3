"""Lines are read once and with their place, whatever the chunks of a file; patterns give the files to read."""

import gzip
import hashlib
import json
import os

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from spills import spill

from pipeline.errors import UserError
from pipeline.raw import json_lines as lines
from pipeline.raw.find_files import RawFile, describe_left_out, find_all_files, find_files
from pipeline.raw.json_lines import Chunk, ChunkSummary, LineBatch, read_chunk, split_file
from pipeline.raw.records import LIMITS
from pipeline.raw.rejects import Origin, Reject
from pipeline.shuffle.chunk_runs import ChunkBuffer
from pipeline.shuffle.reject_runs import RejectBuffer
from pipeline.writing.rejects import write_rejects


def read(path, width=None, **options):
    """Returns the batches and summaries of a file that is split into chunks of `width` bytes."""
    size = os.path.getsize(path)
    starts = range(0, size, width or size or 1)
    chunks = [Chunk(str(path), start, min(start + (width or size), size), False, size) for start in starts]
    return [item for chunk in chunks for item in read_chunk(chunk, **options)]


def offsets_and_lines(items):
    """Returns (byte offset, line) for every line."""
    return [
        row for batch in items if isinstance(batch, LineBatch) for row in zip(batch.offsets, batch.lines, strict=True)
    ]


def expected_lines(content):
    """Returns (number from 1, byte offset, line) for the lines that are not blank, in the simplest way."""
    rows, offset = [], 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        text = line.removesuffix(b"\r")
        if offset == 0:
            text = text.removeprefix(b"\xef\xbb\xbf")
        if text.strip():
            rows.append((number, offset, text))
        offset += len(line) + 1
    return rows


PIECES = st.sampled_from([b"a", b"bcd", b"\n", b"\r\n", b"\r", b" ", b"\t", b"\xef\xbb\xbf", b"{}", b"long line" * 5])
CONTENTS = st.lists(PIECES, max_size=30).map(b"".join)


@given(CONTENTS, st.integers(1, 60))
def test_every_line_is_read_once_with_its_place_whatever_the_chunks(tmp_path_factory, content, width):
    folder = tmp_path_factory.getbasetemp() / "cut"
    folder.mkdir(exist_ok=True)
    path = folder / "raw.jsonl"
    path.write_bytes(content)
    items = read(path, width)
    expected = expected_lines(content)
    assert offsets_and_lines(items) == [(offset, line) for _, offset, line in expected]
    chunks = [item for item in items if isinstance(item, ChunkSummary)]
    assert sum(chunk.num_bytes for chunk in chunks) == len(content)

    # The line number of a reject counts the lines of the chunks before it, whatever the order of chunks and rejects.
    rejects = [
        Reject(
            "not_json", "m", None, Origin(str(path), batch.chunk, offset, number, hashlib.sha256(line).digest(), None)
        )
        for batch in items
        if isinstance(batch, LineBatch)
        for offset, number, line in zip(batch.offsets, batch.numbers, batch.lines, strict=True)
    ]
    other = ChunkSummary("other.jsonl", 0, 99, 99, 99, b"")
    file = write_rejects(
        [run for part in (rejects[1::2], rejects[::2]) for run in spill(RejectBuffer, part, folder)],
        [run for part in ([other], chunks[::2], chunks[1::2]) for run in spill(ChunkBuffer, part, folder)],
        output=str(folder),
        generation="20260101T000000-00000000",
    )
    rows = [json.loads(row) for row in (folder / file.path).read_text().splitlines()] if file else []
    assert [(row["line"], row["byte_offset"], row["sha256"]) for row in rows] == [
        (number, offset, hashlib.sha256(line).hexdigest()) for number, offset, line in expected
    ]


def test_the_chunks_cover_a_file(tmp_path):
    path = tmp_path / "raw.jsonl"
    with open(path, "wb") as file:
        file.truncate(2 * lines.CHUNK_BYTES + 5)
    chunks = list(split_file(RawFile(str(path), os.path.getsize(path))))
    edges = [0, lines.CHUNK_BYTES, 2 * lines.CHUNK_BYTES, 2 * lines.CHUNK_BYTES + 5]
    assert [(chunk.start, chunk.stop) for chunk in chunks] == list(zip(edges, edges[1:], strict=False))
    assert not any(chunk.compressed for chunk in chunks)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}/gone: cannot be read: No such file or directory"):
        list(read_chunk(Chunk(f"{tmp_path}/gone", 0, 10, False, 10)))


def test_a_line_above_the_limit_is_truncated_and_the_next_line_is_read(tmp_path):
    path = tmp_path / "raw.jsonl"
    with open(path, "wb") as file:
        file.write(b"first\n")
        file.truncate(6 + LIMITS.record_bytes + 10)
        file.seek(0, 2)
        file.write(b"\nlast")
    first, large, last = offsets_and_lines(read(path, lines.CHUNK_BYTES))
    assert (first, last) == ((0, b"first"), (6 + LIMITS.record_bytes + 11, b"last"))
    assert large[0] == 6
    assert LIMITS.record_bytes < len(large[1]) <= LIMITS.record_bytes + 2


@given(CONTENTS, st.integers(1, 60), st.integers(1, 12), st.integers(1, 12))
@example(b"\xef\xbb\xbf" + b" " * 20 + b"{}", 60, 9, 3)
@example(b"\xef\xbb\xbf" + b"{}" * 9, 60, 4, 9)
@example(b" " * 20 + b"{}\n{}", 60, 4, 9)
def test_a_line_is_kept_or_truncated_above_the_limit_and_is_blank_only_as_a_whole(
    tmp_path_factory, content, width, block_bytes, record_bytes
):
    path = tmp_path_factory.getbasetemp() / "truncated.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", block_bytes)
        found = offsets_and_lines(read(path, width, record_bytes=record_bytes))
    expected = [(offset, text) for _, offset, text in expected_lines(content)]
    assert [offset for offset, _ in found] == [offset for offset, _ in expected]
    for (_, line), (_, text) in zip(found, expected, strict=True):
        assert line == text or (len(line) > record_bytes and len(text) > record_bytes)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_file_that_became_shorter_is_an_error_that_names_both_sizes(tmp_path, monkeypatch, compress):
    """Also if it ends where a line or a member of a gzip file ends, and if whole chunks are missing."""
    monkeypatch.setattr(lines, "CHUNK_BYTES", 30)
    path, one = tmp_path / "raw", compress(b'{"n": 1}\n{"n": 2}\n')
    for num_parts in (1, 2):
        path.write_bytes(one * 3)
        chunks = list(split_file(RawFile(str(path), len(one) * 3)))
        path.write_bytes(one * num_parts)
        sizes = f"has {len(one) * num_parts} bytes now, but had {len(one) * 3} when it was listed"
        for chunk in chunks:
            with pytest.raises(UserError, match=f"^{path}: {sizes}"):
                list(read_chunk(chunk))


def test_of_a_file_that_grows_the_lines_that_begin_in_the_listed_bytes_are_read(tmp_path):
    path = tmp_path / "raw"
    for listed in (b"first\nsec", b"first\nsecond", b"first\n", b""):
        path.write_bytes(listed)
        chunks = list(split_file(RawFile(str(path), len(listed))))
        path.write_bytes(b"first\nsecond\nthird\n")
        found = [line for _, line in offsets_and_lines([item for chunk in chunks for item in read_chunk(chunk)])]
        assert found == [b"first", b"second"][: len(listed.splitlines())]
    path.write_bytes(gzip.compress(b"first\n"))
    (chunk,) = split_file(RawFile(str(path), path.stat().st_size))
    path.write_bytes(gzip.compress(b"first\n") * 2)
    with pytest.raises(UserError, match="when it was listed: it was changed"):
        list(read_chunk(chunk))


@pytest.fixture
def folder(tmp_path):
    names = [
        "a.jsonl",
        "b.ndjson",
        "deep/er/c.json.gz",
        "deep/er/d.JSONL.Zst",
        "notes.txt",
        ".hidden.jsonl",
        "_SUCCESS",
        "_temporary/d.jsonl",
        "e[1].jsonl",
    ]
    for name in names:
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")
    return tmp_path / "raw"


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ([""], ["a.jsonl", "b.ndjson", "deep/er/c.json.gz", "deep/er/d.JSONL.Zst", "e[1].jsonl"]),
        (["/"], ["a.jsonl", "b.ndjson", "deep/er/c.json.gz", "deep/er/d.JSONL.Zst", "e[1].jsonl"]),
        (["/notes.txt"], ["notes.txt"]),
        (["/*.jsonl"], [".hidden.jsonl", "a.jsonl", "e[1].jsonl"]),
        (["/e[1].jsonl"], ["e[1].jsonl"]),
        (["/[ab].*"], ["a.jsonl", "b.ndjson"]),
        (["/**.gz", "/deep", "/deep/er/c.json.gz"], ["deep/er/c.json.gz", "deep/er/d.JSONL.Zst"]),
        (["/b.ndjson", "/a.jsonl", "/a.jsonl"], ["a.jsonl", "b.ndjson"]),
    ],
)
def test_files_globs_and_folders_give_their_files_sorted_and_without_duplicates(folder, patterns, found):
    files = find_files([f"{folder}{pattern}" for pattern in patterns])
    assert files == [RawFile(f"{folder}/{name}", 3) for name in found]


@pytest.mark.parametrize("pattern", ["/gone.jsonl", "/*.csv", "/_temporary/none", "/gone/"])
def test_an_input_that_matches_no_file_is_an_error(folder, pattern):
    with pytest.raises(UserError, match=r": matches no file\. Expected a file, a glob, or a folder with files named"):
        find_files([f"{folder}/a.jsonl", f"{folder}{pattern}"])


def test_what_is_left_out_of_a_folder_is_counted_and_named(folder):
    left_out = [f"{folder}/{name}" for name in (".hidden.jsonl", "_temporary/d.jsonl", "notes.txt")]
    assert find_all_files(str(folder)).left_out == left_out
    assert find_all_files([str(folder), left_out[2], left_out[0]]).left_out == [left_out[1]]
    assert find_all_files(f"{folder}/*.jsonl").left_out == []
    assert describe_left_out(left_out).startswith(
        f'3 files left out: "{left_out[0]}", "{left_out[1]}", "{left_out[2]}". '
    )
    many = describe_left_out(["x"] * 1021).split(". ")[0]
    assert many == "1,021 files left out: " + ", ".join(['"x"'] * 20) + " and 1,001 more"
    for name in ("a.jsonl", "b.ndjson", "e[1].jsonl"):
        (folder / name).unlink()
    (folder / "deep/er/c.json.gz").unlink()
    (folder / "deep/er/d.JSONL.Zst").unlink()
    with pytest.raises(UserError, match=r"matches no file\..* 3 files left out: "):
        find_files(str(folder))


@pytest.mark.parametrize("name", ["a.jsonl.zip", "a.JSONL.ZIP", "a.7z"])
def test_an_unsupported_compression_is_an_error(folder, name):
    (folder / name).write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{name}: this compression is not supported; expected plain JSON Lines, or"):
        find_files([f"{folder}/{name}"])


def test_a_file_whose_name_is_not_unicode_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.jsonl", "wb"):
        pass
    with pytest.raises(
        UserError, match=r"^\"/.*/\\xdcff\.jsonl\": the name is not valid UTF-8\. Rename the file first\."
    ):
        find_files(str(tmp_path))
