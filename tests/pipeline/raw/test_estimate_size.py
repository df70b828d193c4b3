"""The memory that the lines of raw files take, estimated from their first bytes."""

import bz2
import gzip
import lzma

import numpy as np
import pyarrow as pa
import pytest

from pipeline.raw.estimate_size import estimate_memory
from pipeline.raw.find_files import RawFile, find_files
from pipeline.raw.json_lines import LineBatch, read_chunk, split_file

SMALL = b"".join(b'{"id":%d,"x":[[0,0,%d]]}\n' % (n, n * n % 97) for n in range(100_000))
LARGE = b"\n".join(np.random.default_rng(n).bytes(1000).hex().encode() for n in range(1500))


@pytest.mark.parametrize("content", [SMALL, LARGE])
@pytest.mark.parametrize(
    "compress",
    [
        lambda data: gzip.compress(data, 1),
        lambda data: bz2.compress(data, 1),
        lambda data: lzma.compress(data, preset=0),
    ]
    + [lambda data: pa.compress(data, codec="zstd", asbytes=True)],
    ids=["gzip", "bzip2", "xz", "zstd"],
)
def test_the_estimate_of_a_compressed_file_is_the_memory_of_its_lines(tmp_path, compress, content):
    (tmp_path / "raw").write_bytes(compress(content))
    (file,) = find_files([f"{tmp_path}/raw"])
    batches = [batch for chunk in split_file(file) for batch in read_chunk(chunk) if isinstance(batch, LineBatch)]
    expected = sum(batch.num_bytes for batch in batches)
    # What is read ahead counts as read.
    assert 0.6 * expected < estimate_memory([file]) < 1.1 * expected
    assert expected > 1.5 * file.num_bytes


def test_the_largest_file_decides_for_all(tmp_path):
    (tmp_path / "plain").write_bytes(SMALL[:1000])
    (tmp_path / "raw").write_bytes(gzip.compress(SMALL[:20_000]))
    plain, raw = find_files([f"{tmp_path}/plain"]) + find_files([f"{tmp_path}/raw"])
    assert raw.num_bytes > plain.num_bytes
    growth = estimate_memory([raw]) / raw.num_bytes
    assert growth > 10
    assert estimate_memory([plain, raw]) == pytest.approx(growth * (raw.num_bytes + plain.num_bytes), rel=1e-3)
    (tmp_path / "plain").write_bytes(SMALL[:50_000])
    (plain,) = find_files([f"{tmp_path}/plain"])
    assert estimate_memory([raw, plain]) == raw.num_bytes + 50_000


def test_what_cannot_be_read_counts_as_its_size(tmp_path):
    assert estimate_memory([]) == 0
    assert estimate_memory([RawFile(f"{tmp_path}/none", 7)]) == 7
    (tmp_path / "damaged").write_bytes(gzip.compress(SMALL)[:5000])
    (tmp_path / "empty").write_bytes(b"")
    for name, num_bytes in (("damaged", 5000), ("empty", 0)):
        assert estimate_memory(find_files([f"{tmp_path}/{name}"])) == num_bytes
