"""Refuses a job before it starts if the disk has less free space than the job needs, by an estimate."""

import os
import shutil
from collections.abc import Sequence

import numpy as np

from pipeline.errors import UserError
from pipeline.files import is_local
from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.raw.find_files import RawFile
from pipeline.raw.json_lines import Chunk, ChunkSummary, LineBatch, parse_lines, read_chunk
from pipeline.raw.records import LIMITS
from pipeline.raw.rejects import Reject
from pipeline.raw.spooled_messages import MessageChunk, read_messages, split_input
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded_records import encode_for_shuffle

# Bytes of the first file that are parsed to estimate the size of the output.
_SAMPLE_BYTES = 2**18
# TFRecords of fewer bytes are in few runs, which are all merged at once.
_FEW_RUNS_BYTES = 2**28
# More free space than this number of times the input is enough for any input, also a compressed one.
_AMPLE = 3000
# Smallest ratio of decompressed to compressed size that is assumed.
_COMPRESSION_RATIO = 3


def check_free_space(files: Sequence[RawFile], schema: Schema, output: str) -> None:
    """Raises a UserError if the disk of a local output has less free space than the job is estimated to need.

    Every record is written twice, to a sorted run and to its shard, and once more if there are many runs, which are
    merged into larger ones. An input that cannot be estimated passes.
    """
    if not is_local(output):
        return
    folder = output
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    if free >= _AMPLE * sum(file.num_bytes for file in files):
        return
    num_bytes = _estimate_bytes(files, schema)
    copies = 2 if num_bytes < _FEW_RUNS_BYTES else 3
    needed = copies * num_bytes
    if needed > free:
        raise UserError(
            f"{output}: the job needs about {needed / 1e6:,.0f} MB there, but {free / 1e6:,.0f} MB are free. "
            f"Free some space, or choose another --output. (All but 1 / {copies} of it is for sorting and is freed at "
            "the end.)"
        )


def _estimate_bytes(files: Sequence[RawFile], schema: Schema) -> float:
    """Returns the estimated size of all TFRecords, from the first records of the first file that has any."""
    for file in files:
        chunk = next(split_input(file), None)
        if chunk is None:
            continue
        lines, is_compressed = _first_lines(chunk), isinstance(chunk, Chunk) and chunk.compressed
        if isinstance(lines, LineBatch):
            raw_bytes = sum(map(len, lines.lines)) * (1 if not is_compressed else 1 / _COMPRESSION_RATIO)
            limits = LIMITS._replace(record_bytes=_SAMPLE_BYTES)  # a larger record was cut when it was read
            parsed = [result for result in parse_lines(lines, schema, limits=limits) if not isinstance(result, Reject)]
            encoded = sum(len(encode_for_shuffle(*result, schema, seed=0).example) + FRAME_BYTES for result in parsed)
            return sum(file.num_bytes for file in files) * encoded / raw_bytes
    return 0.0


def _first_lines(chunk: Chunk | MessageChunk) -> LineBatch | ChunkSummary:
    """Returns about _SAMPLE_BYTES of the lines of a chunk, or its summary if it has none."""
    if isinstance(chunk, Chunk):
        if not chunk.compressed:
            chunk = chunk._replace(stop=min(chunk.stop, chunk.start + _SAMPLE_BYTES))
        return next(read_chunk(chunk, batch_bytes=_SAMPLE_BYTES, record_bytes=_SAMPLE_BYTES))
    lines = next(read_messages(chunk._replace(blocks=chunk.blocks[:1]), record_bytes=_SAMPLE_BYTES))
    if not isinstance(lines, LineBatch):
        return lines
    count = 1 + int(np.searchsorted(np.cumsum(list(map(len, lines.lines))), _SAMPLE_BYTES))
    return LineBatch._make(part[:count] if isinstance(part, list) else part for part in lines)
