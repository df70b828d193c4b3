"""Estimates how much memory the lines of raw files take, from the first bytes of the largest file."""

from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.files import open_read
from pipeline.raw.compression import MAGIC_BYTES, decompress, find_compression
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import LINE_BYTES
from pipeline.raw.line_splitter import BLOCK_BYTES

# Decompressed bytes that are read. More would take a notable time, and of fewer, most may be read ahead.
_SAMPLE_BYTES = 2**21


def estimate_memory(files: Sequence[RawFile]) -> int:
    """Returns about how many bytes of memory the lines of all files take.

    Plain files count as their size. If the largest file is compressed, all files count as what its first lines become
    in memory: a file of many small records may be read for minutes though it has few bytes.
    """
    num_bytes = sum(file.num_bytes for file in files)
    largest = max(files, key=lambda file: file.num_bytes, default=None)
    if largest is None or largest.spool is not None:
        return num_bytes
    try:
        return int(num_bytes * _measure_growth(largest.path))
    except (OSError, UserError):  # the job will say so
        return num_bytes


def _measure_growth(path: str) -> float:
    """Returns the bytes of memory of the first lines of a file for each of its bytes; 1 for a plain file."""
    # The length at the end of a gzip file is only that of its last member, modulo 4 GiB, so it is not used.
    with open_read(path) as stored:
        if find_compression(stored.read(MAGIC_BYTES)) is None:
            return 1.0
        stored.seek(0)
        num_bytes = num_lines = 0
        with decompress(stored, path=path) as stream:
            while num_bytes < _SAMPLE_BYTES and (block := stream.read(BLOCK_BYTES)):
                num_bytes += len(block)
                num_lines += block.count(b"\n")
            # Some bytes may be read ahead, which makes the estimate smaller.
            return max(1.0, (num_bytes + LINE_BYTES * num_lines) / max(1, stored.tell()))
