"""Compressed raw files are read as the plain file of the same lines; damaged ones and bombs are refused."""

import bz2
import gzip
import lzma
import os

import pyarrow as pa
import pytest

from pipeline.errors import UserError
from pipeline.raw import compression
from pipeline.raw.compression import find_compression
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import ChunkSummary, LineBatch, read_chunk, split_file

COMPRESS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}
CONTENT = b"".join(b'{"n": %d}\r\n' % n for n in range(1000))
EVERY = pytest.mark.parametrize("name", COMPRESS)


def read(path, data):
    """Returns the chunk, the (offset, line) pairs and the summary of a file with these bytes."""
    path.write_bytes(data)
    (chunk,) = split_file(RawFile(str(path), os.path.getsize(path)))
    *batches, summary = read_chunk(chunk)
    assert isinstance(summary, ChunkSummary)
    assert all(isinstance(batch, LineBatch) for batch in batches)
    return chunk, [row for batch in batches for row in zip(batch.offsets, batch.lines, strict=True)], summary


@EVERY
def test_a_compressed_file_is_read_as_the_plain_file_whatever_its_name(name, tmp_path):
    plain, lines, summary = read(tmp_path / "plain", CONTENT)
    assert not plain.compressed
    # Two streams, as `cat a.gz b.gz` writes them; the second has no line.
    for streams in ([CONTENT], [CONTENT[:100], CONTENT[100:]], [CONTENT, b""], [b"", CONTENT]):
        path = tmp_path / "raw.jsonl"
        chunk, found, other = read(path, b"".join(map(COMPRESS[name], streams)))
        assert chunk.compressed
        assert found == lines
        assert (other.sha256, other.num_bytes, other.num_lines) == (summary.sha256, len(CONTENT), 1000)
        assert other.stored_bytes == os.path.getsize(path)
    assert read(tmp_path / "empty", COMPRESS[name](b""))[1] == []


def test_xz_may_have_padding(tmp_path):
    one = lzma.compress(CONTENT)
    assert read(tmp_path / "raw", one + bytes(70_000) + one + bytes(4))[2].num_lines == 2000


@EVERY
@pytest.mark.parametrize("kept", [11, -9, -1])
def test_an_incomplete_file_is_named(name, kept, tmp_path):
    with pytest.raises(UserError, match=rf"^{tmp_path}/raw: not a complete {name} file: [^\n]+$"):
        read(tmp_path / "raw", COMPRESS[name](CONTENT)[:kept])


@EVERY
def test_a_flipped_bit_or_bytes_behind_the_end_are_named(name, tmp_path):
    data = bytearray(COMPRESS[name](os.urandom(1000).hex().encode()))
    with pytest.raises(UserError, match=f"^{tmp_path}/raw: not a complete {name} file: "):
        read(tmp_path / "raw", bytes(data) + b"more of it")
    data[len(data) // 2] ^= 1
    if name == "zstd":  # the frame of this library has no checksum: flips a bit of its header
        data[4] ^= 8
    with pytest.raises(UserError, match=f"^{tmp_path}/raw: not a complete {name} file: "):
        read(tmp_path / "raw", bytes(data))


@EVERY
def test_a_decompression_bomb_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "_BOMB_BYTES", 2**20)
    monkeypatch.setattr(compression, "_BOMB_RATIO", 3)
    with pytest.raises(UserError, match="compressed bytes expand to more than .* looks like a decompression bomb"):
        read(tmp_path / "raw", COMPRESS[name](b'{"n": 1}\n' * 2**18))


def test_xz_that_needs_too_much_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "_XZ_MEMORY", 2**20)
    with pytest.raises(UserError, match="not a complete xz file: Memory usage limit"):
        read(tmp_path / "raw", lzma.compress(CONTENT))


def test_a_plain_file_is_not_taken_for_a_compressed_one():
    for magic in (b"", b"B", b"BZh9", b"BZh91AY is.", b"\x1f", b'{"id": 1}', b"\xef\xbb\xbf{}"):
        assert find_compression(magic) is None
    assert find_compression(bz2.compress(b"")[:10]) == find_compression(bz2.compress(b"x")[:10]) == "bzip2"
