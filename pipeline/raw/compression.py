"""Compressed raw files: gzip, bzip2, Zstandard and xz, recognized by their first bytes and read as streams."""

import bz2
import contextlib
import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, Protocol

from pipeline.errors import UserError

# The endings of the names of compressed files in a folder.
ENDINGS = (".gz", ".bz2", ".zst", ".xz")

# Number of the first bytes of a file that `find_compression` needs.
MAGIC_BYTES = 10
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "xz": b"\xfd7zXZ\0"}
# The first block of a bzip2 file, or its end if it has no block, begins after the letters and a digit.
_BZIP2, _BZIP2_BLOCKS = b"BZh", (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90")
# Memory in bytes that xz may take, 4 times what `xz -9` needs. zstd is limited to about as much by its library.
_XZ_MEMORY = 2**28
# Compressed bytes per read.
_READ_BYTES = 2**16
# A compressed file is refused as a decompression bomb if its lines take this many times its own bytes, and at least
# this many bytes. The dropped part of a line does not count, so a single record that is too large is a reject.
_BOMB_RATIO, _BOMB_BYTES = 200, 32 * 2**20


class Stream(Protocol):
    """The decompressed bytes of a file."""

    def read(self, size: int, /) -> bytes:
        """Returns at most `size` bytes, and none only at the end."""


def find_compression(magic: bytes) -> str | None:
    """Returns how a file is compressed, or None: gzip, bzip2, zstd or xz.

    Args:
        magic: The first MAGIC_BYTES of the file.
    """
    if magic.startswith(_BZIP2) and magic[3:4].isdigit() and magic[4:10] in _BZIP2_BLOCKS:
        return "bzip2"
    return next((name for name, start in _MAGIC.items() if magic.startswith(start)), None)


@contextlib.contextmanager
def decompress(stored: IO[bytes], *, path: str) -> Iterator[Stream]:
    """Opens the content of a compressed file.

    Args:
        stored: The file, open at its start. Its place shows how much was read.
        path: Path of the file, for the message.

    Raises:
        UserError: The file is damaged or not complete.
    """
    name = find_compression(stored.read(MAGIC_BYTES))
    stored.seek(0)
    try:
        if name == "gzip":
            # Beam's own decompression takes a truncated stream for a complete one. GzipFile checks length and CRC.
            with gzip.GzipFile(fileobj=stored) as stream:
                yield stream
        elif name == "zstd":
            import pyarrow as pa  # takes 0.2 s

            yield pa.CompressedInputStream(pa.PythonFile(_ReadOnly(stored), mode="r"), "zstd")
        elif name == "bzip2":
            yield _Concatenated(stored, bz2.BZ2Decompressor)
        else:
            yield _Concatenated(stored, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY), b"\0")
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        # An OSError without a number is one of the content: from gzip, bz2 and pyarrow.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(f"{path}: not a complete {name or 'xz'} file: {str(error).removesuffix('.')}.") from None


class _ReadOnly:
    """A file that can only be read. pyarrow would close it, but its reader still needs it."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self.read = file.read

    def close(self) -> None:
        pass


class _Concatenated:
    """The content of streams that follow one another, as `cat a.xz b.xz` writes them.

    Args:
        make: Returns a decompressor of `bz2` or `lzma`.
        padding: The byte that may follow a stream.
    """

    # Not BZ2File, which ignores what follows the last stream, nor LZMAFile, which takes any amount of memory.
    def __init__(self, stored: IO[bytes], make: Callable[[], Any], padding: bytes = b"") -> None:
        self._stored, self._make, self._padding = stored, make, padding
        self._decompressor = make()

    def read(self, size: int, /) -> bytes:
        while True:
            data = b""
            if self._decompressor.eof:
                data = self._skip_padding()
                if not data:
                    return b""
                self._decompressor = self._make()
            elif self._decompressor.needs_input:
                data = self._stored.read(_READ_BYTES)
                if not data:
                    raise EOFError("it ends before the end of its stream")
            if found := self._decompressor.decompress(data, size):
                return bytes(found)

    def _skip_padding(self) -> bytes:
        """Returns the first bytes of the next stream; none at the end of the file."""
        data: bytes = self._decompressor.unused_data
        while True:
            data = data.lstrip(self._padding) if self._padding else data
            if data:
                return data
            data = self._stored.read(_READ_BYTES)
            if not data:
                # The decompressor stays at its end, so that the next call returns nothing, too.
                return b""


def refuse_bomb(path: str, stored_bytes: int, line_bytes: int) -> None:
    """Raises a UserError if the lines of a compressed file take unreasonably more bytes than the file.

    Args:
        stored_bytes: Compressed bytes that were read.
        line_bytes: Bytes of the lines that were read from them.
    """
    if line_bytes > max(_BOMB_BYTES, _BOMB_RATIO * stored_bytes):
        raise UserError(
            f"{path}: {stored_bytes:,} compressed bytes expand to more than {line_bytes:,} bytes of lines, which looks "
            "like a decompression bomb. If this is intended, decompress the file first."
        )
