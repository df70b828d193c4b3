"""The work of a round, without Beam: the same dataset as with it, and processes that end with the stream."""

import gzip
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT
from prepare_jobs import load, make_many_runs, read_whole
from streams import Place, lines

from pipeline.errors import UserError
from pipeline.format.sources import read_sources, rows_of
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.raw import json_lines
from pipeline.raw.chunk_pieces import Place as PlaceOfChunk
from pipeline.raw.chunk_pieces import cut_chunk, join_pieces
from pipeline.raw.find_files import RawFile
from pipeline.streaming import prepare_parts
from pipeline.streaming.rounds import stream


def run_rounds(tmp_path, beam_options, **options):
    """Runs two rounds, and returns what the dataset says of records, rejects and raw files, and the bytes of shards."""
    folder = tmp_path / "place"  # the same for all: paths of raw files are in the indexes
    folder.mkdir()
    place, contents = Place(folder), []

    def once():
        stream(place.options(streaming={"once": True}, **options), beam_options)

    place.append("a.jsonl", lines([*range(150), 3]) + "\n{}\n" + lines(range(150, 200)) + "{}\n\n\n")
    place.append("b.jsonl", lines([200]))
    place.append("c.jsonl.gz", gzip.compress((lines(range(210, 240)) + "{\n").encode(), mtime=0))
    once()
    place.append("a.jsonl", "[]\n" + lines([3, *range(240, 260)]) + "{}\n" * 3)
    once()
    manifest = read_whole(place.dataset)
    assert manifest.rejected.by_reason == {"bad_id": 5, "duplicate_id": 2, "not_a_record": 1, "not_json": 1}
    for name in manifest.generations:
        path = summary_path(name)
        summary = GenerationSummary.parse((place.dataset / path).read_bytes(), origin=path)
        rows = [row for block in read_sources(str(place.dataset), summary.sources) for row in rows_of(block)]
        # A message names the generation that has the id.
        rejects = [
            re.sub(r"generation [\w-]+", "", (place.dataset / path).read_text()) for path in manifest.rejected.files
        ]
        digests = {name: [(s.sha256, s.index_sha256) for s in split.shards] for name, split in summary.splits.items()}
        contents.append((digests, summary.sums, rows, rejects))
    shutil.rmtree(folder)
    return contents


def test_processes_and_pieces_of_chunks_give_what_beam_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", 5000)
    with_beam = run_rounds(tmp_path, {"runner": "FnApiRunner"})
    make_many_runs(monkeypatch)
    assert run_rounds(tmp_path, {}) == with_beam
    monkeypatch.setattr(prepare_parts, "COMPRESSED_BATCH_BYTES", 1000)
    monkeypatch.setattr(prepare_parts, "_MIN_CALL_BYTES", 700)
    assert run_rounds(tmp_path, {}, processes=2) == with_beam


@pytest.mark.parametrize("piece_bytes", [1, 7, 50, 1000])
def test_joined_pieces_are_the_chunk(tmp_path, piece_bytes):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"one\r\n\n \ntwo\n" + b"x" * 60 + b"\n\n\nlast line")
    (chunk,) = json_lines.split_file(RawFile(str(path), path.stat().st_size))
    pieces = cut_chunk(chunk, piece_bytes)
    found = [json_lines.summarize_chunk(piece) for piece in reversed(pieces)]
    places = {PlaceOfChunk(piece.path, piece.start): 0 for piece in pieces if piece.is_piece}
    assert len(pieces) == -(-path.stat().st_size // piece_bytes)
    assert [*join_pieces(found, places)] == [json_lines.summarize_chunk(chunk)]
    digests = [hashlib.sha256(line).digest() for line in (b"one", b"two", b"x" * 60, b"last line")]
    assert json_lines.summarize_chunk(chunk).sha256 == hashlib.sha256(b"".join(digests)).digest()


def children(process):
    with open(f"/proc/{process}/task/{process}/children") as file:
        return [int(child) for child in file.read().split()]


def wait_until(condition):
    while not condition():
        time.sleep(0.02)


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_stay_from_round_to_round_and_end_with_the_stream(tmp_path):
    place, found = Place(tmp_path), []
    own = set(children(os.getpid()))
    place.append("a.jsonl", lines([0]))
    look = lambda: found.append(set(children(os.getpid())) - own)  # noqa: E731
    place.follow(
        lambda: (look(), place.append("a.jsonl", lines([1]))),
        lambda: (look(), place.append("a.jsonl", lines([2]))),
        processes=1,
    )
    assert found[0] == found[1] and len(found[0]) == 1
    assert set(children(os.getpid())) - own == set()


def test_a_worker_that_is_killed_ends_the_stream_and_publishes_nothing(tmp_path):
    place = Place(tmp_path)
    place.append("a.jsonl", lines([0]))
    own = set(children(os.getpid()))

    def kill():
        (worker,) = set(children(os.getpid())) - own
        os.kill(worker, signal.SIGKILL)
        place.append("a.jsonl", lines([1]))

    with pytest.raises(UserError, match="A process of this job was ended by SIGKILL"):
        place.follow(kill, processes=1)
    assert load(place.dataset).commit == 1
    assert set(children(os.getpid())) - own == set()
    assert {path.name for path in (place.dataset / "data").iterdir()} == {*load(place.dataset).generations}
    place.once()
    assert sum(split.records for split in read_whole(place.dataset).splits.values()) == 2


@pytest.mark.parametrize("name", ["SIGKILL", pytest.param("SIGTERM", marks=pytest.mark.proof)])
def test_workers_end_with_a_stream_that_gets_a_signal(tmp_path, name):
    place = Place(tmp_path)
    place.append("a.jsonl", lines(range(5)))
    command = [sys.executable, "-m", "lengthwise", "prepare", "logs", "--schema", "schema.yaml", "--output", "dataset"]
    with subprocess.Popen(
        [*command, "--streaming", "--processes", "2", "--commit_interval", "0.1s"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        # On a busy machine, lines about the progress come first.
        assert any(line.startswith(b"prepare: commit 1: 5 records") for line in process.stderr)
        workers = children(process.pid)
        assert len(workers) == 2
        number = signal.SIGKILL if name == "SIGKILL" else signal.SIGTERM
        place.append("a.jsonl", lines([5]))
        # A service manager signals all processes of a service.
        os.killpg(process.pid, number) if name == "SIGTERM" else process.send_signal(number)
        assert process.wait(60) == (-number if number == signal.SIGKILL else 0)
        wait_until(lambda: not any(map(is_running, workers)))
    read_whole(place.dataset)


def test_a_round_that_begins_again_keeps_its_workers_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_parts, "_MIN_CALL_BYTES", 300)
    place, own, found = Place(tmp_path), set(children(os.getpid())), []
    path = place.append("a.jsonl", lines(range(5)))
    check_kinds, others = prepare_parts.check_kinds, []

    def check(files):
        if others:
            others.pop()()
        check_kinds(files)

    def rename():
        os.replace(path, place.logs / "b.jsonl")
        path.write_text(lines([70]))

    monkeypatch.setattr(prepare_parts, "check_kinds", check)
    look = lambda: found.append(set(children(os.getpid())) - own)  # noqa: E731
    place.follow(
        lambda: (look(), others.append(rename), place.append("a.jsonl", lines(range(5, 60)))), look, processes=2
    )
    assert found[0] == found[1] and len(found[0]) == 2
    assert sum(split.records for split in read_whole(place.dataset).splits.values()) == 61
    assert {path.name for path in (place.dataset / "data").iterdir()} == {*load(place.dataset).generations}
