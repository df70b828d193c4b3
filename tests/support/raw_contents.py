"""The size and the digest of a raw file, computed in the simplest way."""

import gzip
import hashlib

from pipeline.format.sources import SourceRow


def sha256(data):
    return hashlib.sha256(data).digest()


def expected_row(path, chunk_bytes):
    """Returns the row of a raw file in the simplest way: from all of its bytes in memory, whose chunks are short."""
    stored = path.read_bytes()
    zipped = stored[:2] == b"\x1f\x8b"
    content = gzip.decompress(stored) if zipped else stored
    chunks = [b""]
    offset = 0
    for line in content.splitlines(keepends=True):
        number = 0 if zipped else offset // chunk_bytes
        chunks += [b""] * (number + 1 - len(chunks))
        if line.strip():
            chunks[number] += sha256(line.rstrip(b"\r\n"))
        offset += len(line)
    num_chunks = 1 if zipped else max(1, -(-len(content) // chunk_bytes))
    chunks += [b""] * (num_chunks - len(chunks))
    return SourceRow(str(path), len(content), len(stored), sha256(b"".join(map(sha256, chunks))))
