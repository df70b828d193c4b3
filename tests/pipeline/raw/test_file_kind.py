"""A file that is as a whole of another kind is reported as what it probably is; JSON Lines with faults is not."""

import gzip
import io
import json
import lzma
import tarfile

import pytest

from pipeline.errors import UserError
from pipeline.format.tfrecord import frame
from pipeline.raw.file_kind import check_kinds, guess_kind
from pipeline.raw.find_files import RawFile

ROWS = [{"id": n, "x": [0.5, 1.5], "name": "Zoë"} for n in range(30)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def tar(data):
    """Returns a tar archive of one file."""
    archive, entry = io.BytesIO(), tarfile.TarInfo("a.jsonl")
    entry.size = len(data)
    with tarfile.open(fileobj=archive, mode="w") as file:
        file.addfile(entry, io.BytesIO(data))
    return archive.getvalue()


KINDS = {
    "one JSON array": [json.dumps(ROWS).encode(), json.dumps(ROWS, indent=1).encode()],
    "pretty-printed JSON": ["\n".join(json.dumps(row, indent=2) for row in ROWS).encode()],
    "text in UTF-16": [LINES.encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be")],
    "text in UTF-32": [LINES.encode("utf-32")],
    "text in latin-1 or Windows-1252": [LINES.encode("latin-1")],
    "JSON objects with a comma after each": [LINES.replace("}\n", "},\n").encode()],
    "Python dicts with single quotes": ["\n".join(map(str, ROWS)).encode()],
    "JSON Lines whose lines end with CR": [LINES.replace("\n", "\r").encode()],
    "JSON objects without an end of line after each": [LINES.replace("\n", "").encode()],
    "JSON text sequences": [LINES.replace("{", "\x1e{").encode()],
    "CSV": [b"id,x,y\r\n1,0.5,a\r\n2,0.5,b\r\n"],
    "CSV with semicolons": [b"id;x\n1;0,5\n2;1\n"],
    "tab-separated values": [b"id\tx\n1\t2\n"],
    "a zip archive": [b"PK\x03\x04...."],
    "a Parquet file": [b"PAR1...."],
    "an lzma file": [lzma.compress(LINES.encode(), format=lzma.FORMAT_ALONE)],
    "a file that is compressed twice": [gzip.compress(gzip.compress(LINES.encode()))],
    "a tar archive": [tar(LINES.encode())],
    "a TFRecord file": [frame(b"\n\x05.....") * 3],
    "an Arrow file": [b"ARROW1\0\0"],
    "an HTML page": [b"<!DOCTYPE html>\n<html>", b"\n<html>\n<body>"],
    "XML": [b'<?xml version="1.0"?>\n<a/>'],
    "a pointer of Git LFS": [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"],
}


@pytest.mark.parametrize(("kind", "content"), [(kind, content) for kind, some in KINDS.items() for content in some])
def test_a_file_of_another_kind_is_an_error_with_its_kind_and_first_line(tmp_path, kind, content):
    for name, data in {"plain": content, "zipped": gzip.compress(content)}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=rf"^{tmp_path}/{name}: looks like {kind}, expected JSON Lines: .* with \""):
            check_kinds([RawFile(str(tmp_path / name), len(data))])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        LINES.encode(),
        b"\xef\xbb\xbf" + LINES.encode(),
        b"[1]\nnonsense\n" + LINES.encode(),
        b'{"id": NaN}\n{"id": 1, "x": NaN}\n',
        b"0" * 100_000,
        b'{"id": "1"\n',
        b"[]\n[1, 2]\n",
        b"no json\n",
        b'{"x": [' + b"0," * 50_000 + b"0]}",
    ],
)
def test_json_lines_with_faults_and_unknown_files_pass(tmp_path, content):
    assert guess_kind(content[: 2**16]) is None
    (tmp_path / "raw").write_bytes(content)
    check_kinds([RawFile(str(tmp_path / "raw"), len(content)), RawFile(f"{tmp_path}/gone", 1)])
