"""The raw lines of rejects are parsed again, as they were the first time."""

import base64
import json

import pytest

from pipeline.errors import UserError
from pipeline.raw.find_files import RawFile
from pipeline.raw.rejects import IN_FILE, Origin, Reject
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows
from pipeline.writing.parse_rejects import RejectsChunk, parse_rejects, split_rejects

SCHEMA = Schema.parse("id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: regression}\n")
GOOD = b'{"id": "\xc3\xbc", "x": [1, 2], "y": 3}'


def row(raw, **changes):
    try:
        kept = {"raw": raw.decode()}
    except UnicodeDecodeError:
        kept = {"raw_base64": base64.b64encode(raw).decode()}
    place = {"file": "/raw/a.jsonl", "byte_offset": 70, "line": 4, "id": None}
    return place | {"reason": "over_length", "message": "m", "sha256": "ab" * 32} | kept | changes


@pytest.fixture
def parse(tmp_path):
    def run(*rows, **options):
        path = tmp_path / "rejects.jsonl"
        text = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rows)
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        chunks = split_rejects(RawFile(str(path), path.stat().st_size))
        return [result for chunk in chunks for result in parse_rejects(chunk, SCHEMA, **options)]

    return run


def test_a_record_keeps_its_place_and_its_raw_line(parse):
    ((record, origin),) = parse(row(GOOD))
    assert (record.id, record.num_steps) == ("ü", 2)
    assert origin == Origin("/raw/a.jsonl", IN_FILE, 70, 3, bytes.fromhex("ab" * 32), GOOD)
    ((_, origin),) = parse(row(GOOD, file=None, byte_offset=None, line=None))
    assert origin[:4] == (None, IN_FILE, 0, -1)


def test_a_line_that_fails_again_has_its_present_reason(parse):
    found = parse(row(b"\xff{"), row(b'{"id": 1, "x": [], "y": 0}', message="half of a pair: \ud800"))
    assert [(reject.reason, reject.id, reject.origin.raw) for reject in found] == [
        ("not_json", None, b"\xff{"),
        ("empty_sequence", "1", b'{"id": 1, "x": [], "y": 0}'),
    ]


def test_a_record_has_the_event_time_that_windows_need(parse):
    windows = EventWindows(field="at", seconds=60)
    timed = GOOD.replace(b"}", b', "at": 5}')
    ((record, _), reject) = parse(row(timed), row(GOOD), windows=windows)
    assert record.event_time == 5_000_000
    assert reject.reason == "missing_field"


def test_a_line_that_was_too_large_stays_rejected_for_it_was_cut(parse):
    (reject,) = parse(row(GOOD, reason="too_large", message="as before", id="x"))
    assert isinstance(reject, Reject)
    assert reject[:3] == ("too_large", "as before", "x")


@pytest.mark.parametrize("change", [{"raw": None}, {"line": "4"}, {"sha256": "x"}])
def test_what_is_no_reject_is_refused(parse, change):
    broken = {k: v for k, v in row(GOOD).items() if k != "raw"} if "raw" in change else row(GOOD) | change
    with pytest.raises(UserError, match=r"rejects\.jsonl: byte 0: not a reject with its raw line"):
        parse(broken)


def test_every_line_of_a_file_is_in_one_chunk(parse, tmp_path):
    parse(*(row(GOOD, line=number) for number in range(1, 30)))
    path = str(tmp_path / "rejects.jsonl")
    size = (tmp_path / "rejects.jsonl").stat().st_size
    edges = range(0, size + 700, 700)
    chunks = [RejectsChunk(path, start, min(stop, size)) for start, stop in zip(edges, edges[1:], strict=False)]
    lines = [origin.number for chunk in chunks for _, origin in parse_rejects(chunk, SCHEMA)]
    assert lines == list(range(29))
