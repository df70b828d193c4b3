"""A line of a file of rejects is read with what it quotes of the record, or refused."""

import json

import pytest

from pipeline.format.reject_rows import raw_line, read_row

ROW = {
    "file": "a.jsonl",
    "byte_offset": 0,
    "line": 1,
    "id": None,
    "reason": "not_json",
    "message": "x: half of a pair, \ud83d",
    "sha256": "00" * 32,
}


@pytest.mark.parametrize("more", [{}, {"raw": "{é"}, {"raw_base64": "/w=="}])
def test_a_line_is_read_with_its_raw_line(more):
    row = ROW | more
    line = json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
    assert read_row(line) == row
    assert raw_line(row) == {"raw": "{é".encode(), "raw_base64": b"\xff"}.get(next(iter(more), ""))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000 + b"]" * 100_000,
        json.dumps(ROW | {"reason": 3}).encode(),
        *(json.dumps({key: value for key, value in ROW.items() if key != name}).encode() for name in ROW),
    ],
)
def test_what_is_not_a_reject_is_refused(line):
    with pytest.raises(ValueError):
        read_row(line)


def test_a_raw_line_that_is_not_base64_is_refused():
    with pytest.raises(ValueError):
        raw_line(ROW | {"raw_base64": "é"})
