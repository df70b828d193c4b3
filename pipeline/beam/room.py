"""Says before a job begins that the disk has too little room for what the job will write."""

import os
import shutil
from collections.abc import Sequence

from pipeline.build.tasks import parse_lines
from pipeline.errors import UserError
from pipeline.files import is_local
from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.raw.json_lines import Lines, RawFile, read_chunk, split_file
from pipeline.raw.records import LIMITS
from pipeline.schema.schema import Schema
from pipeline.shuffle.encoded import Reject, encode

# Bytes of the first file that say how large the rest becomes.
_SAMPLE_BYTES = 2**18
# Compressed text has at least so many bytes.
_GZIP_EXPANDS = 3


def check_room(files: Sequence[RawFile], schema: Schema, output: str) -> None:
    """Raises a UserError if records like the first take more than is free where `output` is to be.

    Each is written twice, to a run and to its shard. What cannot be measured is no reason to refuse.
    """
    if not is_local(output):
        return
    folder = output
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    needed = 2 * _estimate_bytes(files, schema)
    if needed > free:
        raise UserError(
            f"{output}: about {needed / 1e6:,.0f} MB will be written there, but {free / 1e6:,.0f} MB are free. "
            "Free some, or choose another --output. (Half of it is for sorting, and free again in the end.)"
        )


def _estimate_bytes(files: Sequence[RawFile], schema: Schema) -> float:
    """Of all TFRecords, by the first records of the first file that has any."""
    for file in files:
        chunk = next(split_file(file), None)
        if chunk is None:
            continue
        if not chunk.compressed:
            chunk = chunk._replace(stop=min(chunk.stop, _SAMPLE_BYTES))
        lines = next(read_chunk(chunk, batch_bytes=_SAMPLE_BYTES, record_bytes=_SAMPLE_BYTES))
        if isinstance(lines, Lines):
            raw_bytes = sum(map(len, lines.lines)) * (1 if not chunk.compressed else 1 / _GZIP_EXPANDS)
            limits = LIMITS._replace(record_bytes=_SAMPLE_BYTES)  # of a large one, no more was read
            parsed = [result for result in parse_lines(lines, schema, limits=limits) if not isinstance(result, Reject)]
            encoded = sum(len(encode(*result, schema, seed=0).example) + FRAME_BYTES for result in parsed)
            return sum(file.num_bytes for file in files) * encoded / raw_bytes
    return 0.0
