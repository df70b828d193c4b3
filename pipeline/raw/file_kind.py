"""Recognizes a raw file that is as a whole of another kind than JSON Lines, before a job rejects all of its records."""

import json
import re
from collections.abc import Iterable

import orjson

from pipeline.errors import UserError, show
from pipeline.files import open_read
from pipeline.raw.compression import MAGIC_BYTES, decompress, find_compression
from pipeline.raw.find_files import RawFile
from pipeline.raw.line_splitter import BYTE_ORDER_MARK

# Files that are looked at, and bytes of each: enough for a few lines, and little work for a large job.
_MAX_FILES, _BYTES = 100, 2**16
# Lines of a file that are looked at.
_MAX_LINES = 20

_MAGIC = {
    b"PK\x03\x04": ("a zip archive", "Unpack it first"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "Unpack it first"),
    b"\x04\x22\x4d\x18": ("an lz4 file", "Decompress it first"),
    b"]\0\0": ("an lzma file", "Decompress it first"),
    b"PAR1": ("a Parquet file", "Convert it first"),
    b"Obj\x01": ("an Avro file", "Convert it first"),
    b"ARROW1": ("an Arrow file", "Convert it first"),
    b"FEA1": ("a Feather file", "Convert it first"),
    b"ORC": ("an ORC file", "Convert it first"),
    b"SQLite format 3\0": ("an SQLite database", "Export the records first"),
    b"\x80\x04\x95": ("a pickle file", "Convert it first"),
    b"\x93NUMPY": ("a NumPy file", "Convert it first"),
    b"\x89HDF": ("an HDF5 file", "Convert it first"),
    b"\x1e{": ("JSON text sequences", "Remove the byte 0x1e before each record"),
    b"\xff\xfe\0\0": ("text in UTF-32", "Convert it with `iconv -f UTF-32 -t UTF-8`"),
    b"\0\0\xfe\xff": ("text in UTF-32", "Convert it with `iconv -f UTF-32 -t UTF-8`"),
    b"\xff\xfe": ("text in UTF-16", "Convert it with `iconv -f UTF-16 -t UTF-8`"),
    b"\xfe\xff": ("text in UTF-16", "Convert it with `iconv -f UTF-16 -t UTF-8`"),
    b"{\0": ("text in UTF-16", "Convert it with `iconv -f UTF-16LE -t UTF-8`"),
    b"\0{": ("text in UTF-16", "Convert it with `iconv -f UTF-16BE -t UTF-8`"),
}


def check_kinds(files: Iterable[RawFile]) -> None:
    """Looks at the beginning of the first files.

    Raises:
        UserError: A file is of another kind, which the message names with its first line and the way out. A file that
            has one record among its first lines, or that is nothing known, passes.
    """
    for file, _ in zip(files, range(_MAX_FILES), strict=False):
        try:
            start = _read_start(file.path)
        except (OSError, UserError):  # the reader of the job reports it, with the place in the job
            continue
        guess = guess_kind(start)
        if guess is not None:
            kind, way_out = guess
            first = start.lstrip()[:200].split(b"\n")[0].decode("utf-8", "backslashreplace")
            raise UserError(
                f"{file.path}: looks like {kind}, expected JSON Lines: one JSON object on each line, in UTF-8. It "
                f"begins with {show(first)}. {way_out}."
            )


def _read_start(path: str) -> bytes:
    with open_read(path) as stored:
        magic = stored.read(MAGIC_BYTES)
        stored.seek(0)
        if find_compression(magic) is None:
            return stored.read(_BYTES)
        with decompress(stored, path=path) as stream:
            return stream.read(_BYTES)


def guess_kind(start: bytes) -> tuple[str, str] | None:
    """Returns what a file probably is, and the way out, from its first bytes. None for JSON Lines and all else.

    >>> guess_kind(b'[{"id": 1},')[0]
    'one JSON array'
    """
    known = _find_magic(start)
    if known is not None:
        return known
    lines = [line.strip(b"\r") for line in start.removeprefix(BYTE_ORDER_MARK).split(b"\n")]
    # The last line may be cut off.
    lines = [line for line in (lines[:-1] if len(start) == _BYTES else lines) if line.strip()][:_MAX_LINES]
    if not lines or any(map(_is_object, lines)):
        return None
    text = start.removeprefix(BYTE_ORDER_MARK).lstrip()
    if re.match(rb"\[\s*\{", text):
        return "one JSON array", "Write each of its objects on a line, for example with `jq -c '.[]'`"
    if re.match(rb'\{[ \t\r]*\n\s*"', text):
        return "pretty-printed JSON", "Write each object on one line, for example with `jq -c .`"
    if all(line.startswith(b"{") and _is_object(line.rstrip().removesuffix(b",")) for line in lines):
        return "JSON objects with a comma after each", "Remove the comma at the end of each line"
    if any(_is_latin_1(line) for line in lines):
        return "text in latin-1 or Windows-1252", "Convert it with `iconv -f WINDOWS-1252 -t UTF-8`"
    if _is_object(lines[0].split(b"\r")[0]):
        return "JSON Lines whose lines end with CR", "Convert them with `tr '\\r' '\\n'`"
    if _has_two_objects(lines[0]):
        return "JSON objects without an end of line after each", "Write each object on one line, with `jq -c .`"
    markup = text[:15].lower()
    if markup.startswith((b"<!doctype html", b"<html")):
        return "an HTML page", "It may be the error message of a download"
    if markup.startswith(b"<?xml"):
        return "XML", "Convert it first"
    if lines[0].startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS", "Fetch the file with `git lfs pull`"
    if all(line.startswith(b"{'") for line in lines):
        return "Python dicts with single quotes", "Write them with `json.dumps`"
    for name, separator in (("CSV", b","), ("CSV with semicolons", b";"), ("tab-separated values", b"\t")):
        counts = {line.count(separator) for line in lines}
        if len(lines) > 1 and len(counts) == 1 and counts != {0} and not text.startswith((b"{", b"[")):
            return name, "Write each record as a JSON object, with a list for each step feature"
    return None


def _find_magic(start: bytes) -> tuple[str, str] | None:
    known = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if known is not None:
        return known
    if find_compression(start[:MAGIC_BYTES]) is not None:
        return "a file that is compressed twice", "Decompress it first"
    if start[257:262] == b"ustar":
        return "a tar archive", "Unpack it first"
    # The length of a record in 8 bytes, below 4 GiB, its CRC, and the first field of an Example or a SequenceExample.
    if start[4:8] == b"\0\0\0\0" and start[12:13] in (b"\n", b"\x12"):
        return "a TFRecord file", "In Python, `lw.foreign_batches` reads it"
    return None


def _has_two_objects(line: bytes) -> bool:
    text = line.decode("utf-8", "replace")
    try:
        first, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and text[end:].lstrip().startswith("{")


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(orjson.loads(line), dict)
    except orjson.JSONDecodeError:
        # NaN is no JSON, but no other kind of file either.
        return line.startswith(b"{") and b"NaN" in line


def _is_latin_1(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return _is_object(line.decode("latin-1").encode())
    return False
