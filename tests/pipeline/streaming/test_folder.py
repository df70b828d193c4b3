"""A stream follows the files of a folder: each whole line gets into the dataset once, whatever happens to the files."""

import contextlib
import gzip
import json
import os
import random
import shutil

import datasets
import pytest
import streams
from prepare_jobs import load, read_whole
from streams import WITHOUT_ID, Place, lines

from pipeline.errors import NothingNew, UserError
from pipeline.format.history import read_manifest_at
from pipeline.format.sources import read_sources, rows_of
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.streaming import folder as folder_module


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path)


@pytest.fixture
def place_without_id(tmp_path, monkeypatch):
    return Place(tmp_path, WITHOUT_ID)


@pytest.fixture
def ids(place, read_records):
    return lambda: sorted(int(bytes(e["id"][0]).decode().removeprefix("id-")) for e in read_records(place.dataset))


def rows(dataset):
    """Returns the rows of the raw files of all generations, in the order of the commits."""
    manifest, found = load(dataset), []
    for name in manifest.generations:
        path = summary_path(name)
        summary = GenerationSummary.parse((dataset / path).read_bytes(), origin=path)
        found += [row for block in read_sources(str(dataset), summary.sources) for row in rows_of(block)]
    return found


def test_what_is_appended_is_read_once_and_a_partial_line_waits(place, ids, capsys):
    place.append("a.jsonl", lines(range(3)) + "\n" + lines([3])[:-9])
    place.once()
    assert ids() == [0, 1, 2]
    a = place.logs / "a.jsonl"
    assert f"{len(lines([3])) - 9} bytes wait for the end of the line: {a}." in capsys.readouterr().err
    with pytest.raises(NothingNew, match="nothing new. .* bytes wait for the end of the line") as error:
        place.once()
    assert error.value.status == 3
    place.append("a.jsonl", lines([3])[-9:] + lines([4]))
    place.append("b.jsonl", lines([5, 6]))
    assert place.once().commit == 2
    assert ids() == [*range(7)]
    found = rows(place.dataset)
    ends = [len(lines(range(3))) + 1, len(lines(range(5))) + 1]
    assert [(row.path, row.start, row.start + row.stored_bytes, row.lines, row.rewrites) for row in found] == [
        (str(a), 0, ends[0], 4, 0),
        (str(a), ends[0], ends[1], 6, 0),
        (str(place.logs / "b.jsonl"), 0, len(lines([5, 6])), 2, 0),
    ]
    assert read_whole(place.dataset).inputs.files == 2


def test_one_stream_over_many_rounds_reads_what_many_streams_read(place, ids):
    names = "abc"
    steps = [lambda n=n: place.append(f"{names[n % 3]}.jsonl", lines([n])) for n in range(8)]
    manifest = place.follow(*steps)
    assert ids() == [*range(8)]
    assert (manifest.commit, read_whole(place.dataset)) == (8, manifest)


def test_rejects_have_the_line_of_the_whole_file(place):
    for part in range(3):
        place.append("a.jsonl", lines(range(5 * part, 5 * part + 5)) + "\n{\n")
        manifest = place.once()
    text = (place.logs / "a.jsonl").read_text()
    parts = [(place.dataset / path).read_text().splitlines() for path in manifest.rejected.files]
    found = [json.loads(line) for part in parts for line in part]
    assert [(row["line"], row["byte_offset"]) for row in found] == [
        (7 * part + 7, text.index("\n{\n", 0 if not part else found[part - 1]["byte_offset"]) + 1) for part in range(3)
    ]


def test_a_folder_may_be_empty_but_must_be_there(place, ids):
    with pytest.raises(NothingNew):
        place.once()
    assert not place.dataset.exists()
    place.follow(lambda: place.append("new.jsonl", lines([1])))
    assert ids() == [1]
    for raw, message in (
        (place.folder / "gone", "there is no such folder; --streaming expects folders.*Make it first"),
        (place.logs / "new.jsonl", "is no folder; --streaming expects folders.*Give the folder of the file"),
        ("gs://bucket/raw", "follows local folders only"),
    ):
        with pytest.raises(UserError, match=message):
            place.once(raw=(str(raw),))


def test_an_output_in_the_folder_or_in_a_store_is_refused(place):
    with pytest.raises(UserError, match="gs://bucket/dataset: a stream needs an --output in a local folder"):
        place.once(output="gs://bucket/dataset")
    with pytest.raises(UserError, match="is inside .*logs, the folder of the raw files"):
        place.once(output=str(place.logs / "dataset"))


def test_other_files_are_named_once_and_hidden_and_temporary_ones_never(place, ids, capsys):
    for name in (".hidden.jsonl", "a.jsonl.tmp", "b.tmp", "_SUCCESS", "c.csv", "d.jsonl"):
        place.append(name, lines([ord(name[0])]))
    (place.logs / ".git").mkdir()
    place.append(".git/x.jsonl", lines([1]))
    place.follow(lambda: None, lambda: place.append("e.txt", ""), lambda: None)
    assert ids() == [ord("d")]
    found = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert [line.split(". Of")[0] for line in found] == [
        f'prepare: 1 file left out: "{place.logs}/c.csv"',
        f'prepare: 1 file left out: "{place.logs}/e.txt"',
    ]


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("text", ["", lines([7]), lines(range(20, 60))], ids=["truncated", "shorter", "longer"])
def test_a_rewritten_file_is_an_error_or_read_again(place, ids, text, restart):
    path = place.append("a.jsonl", lines(range(5)))
    size = len(lines(range(5)))
    rewrite = lambda: path.write_text(text)  # noqa: E731
    message = rf"a\.jsonl: was read up to byte {size:,}, but now it has {len(text):,} bytes.*--on_rewrite reread"
    if restart:
        place.once()
        rewrite()
        with pytest.raises(UserError, match=message):
            place.once()
    else:
        with pytest.raises(UserError, match=message):
            place.follow(rewrite)
    assert ids() == [*range(5)]
    place.follow(lambda: place.append("a.jsonl", lines([70])), on_rewrite="reread")
    new = [json.loads(line)["id"] for line in text.splitlines()]
    assert ids() == sorted({*range(5), 70, *(int(name[3:]) for name in new)})
    assert [row.rewrites for row in rows(place.dataset)] == ([0, 1] if not text else [0, 1, 1])
    assert read_whole(place.dataset).commit == load(place.dataset).commit
    with pytest.raises(NothingNew):
        place.once()


def rotate(place, keep=3):
    """Renames logs as logrotate does."""
    for number in range(keep, 0, -1):
        source = place.logs / ("a.jsonl" if number == 1 else f"a.{number - 1}.jsonl")
        if source.exists():
            os.replace(source, place.logs / f"a.{number}.jsonl")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("schema", ["id", "no id"])
def test_rotated_files_are_read_once_to_their_end(tmp_path, monkeypatch, read_records, schema, restart):
    """Also the lines that were written after the last round and before the rotation; and old files are removed."""
    place = Place(tmp_path, streams.SCHEMA if schema == "id" else WITHOUT_ID)
    number = 0

    def write(count):
        nonlocal number
        place.append("a.jsonl", lines(range(number, number + count)))
        number += count

    def rotate_and_write():
        write(2)
        rotate(place)
        write(1)

    steps = [lambda: write(3), rotate_and_write, lambda: write(2)]
    steps += [lambda: rotate(place), lambda: write(1), rotate_and_write, rotate_and_write, lambda: rotate(place)]
    if restart:
        for step in steps:
            step()
            try:
                place.once()
            except NothingNew:
                assert step is steps[3] or step is steps[-1]
    else:
        place.follow(*steps)
    examples = read_records(place.dataset)
    assert len(examples) == number
    assert load(place.dataset).rejected.total == 0
    read_whole(place.dataset)


@pytest.mark.parametrize("seed", datasets.some(range(40), [8]))
def test_any_order_of_writes_rotations_and_starts_reads_each_line_once(tmp_path, monkeypatch, read_records, seed):
    place, chance, number = Place(tmp_path, WITHOUT_ID), random.Random(seed), 0
    for _ in range(40):
        action = chance.random()
        if action < 0.4:
            count = chance.randrange(1, 5)
            place.append("a.jsonl", lines(range(number, number + count)))
            number += count
        elif action < 0.6 and (place.logs / "a.jsonl").exists():
            rotate(place, keep=40)
            if chance.random() < 0.5:
                place.append("a.jsonl", "")
        else:
            with contextlib.suppress(NothingNew):
                place.once(**chance.choice([{}, {}, {"max_records": 2}]))
    place.follow(lambda: None)
    assert len(read_records(place.dataset)) == number
    read_whole(place.dataset)
    with pytest.raises(NothingNew):
        place.once()


def test_a_copy_is_not_read_again_if_records_have_ids(place, ids):
    path = place.append("a.jsonl", lines(range(200)))
    place.follow(
        lambda: shutil.copy(path, place.logs / "copy.jsonl"),
        lambda: place.append("copy.jsonl", lines([300])),
        lambda: place.append("a.jsonl", lines([400])),
    )
    assert ids() == [*range(200), 300, 400]
    assert load(place.dataset).rejected.total == 0


def test_without_ids_only_a_copy_of_a_file_that_is_gone_is_known(place_without_id, read_records):
    """Two logs may begin with the same records."""
    place = place_without_id
    path = place.append("a.jsonl", lines(range(3)))
    place.follow(
        lambda: place.append("b.jsonl", lines(range(3))),
        lambda: place.append("b.jsonl", lines([9])),
        # As logrotate does with copytruncate.
        lambda: (shutil.copy(path, place.logs / "a.1.jsonl"), os.truncate(path, 0)),
        lambda: place.append("a.jsonl", lines([10])),
    )
    assert len(read_records(place.dataset)) == 8
    read_whole(place.dataset)


def test_duplicate_ids_are_rejected_over_all_rounds(place, ids):
    place.follow(
        lambda: place.append("a.jsonl", lines([1, 2, 1])),
        lambda: place.append("b.jsonl", lines([2, 3])),
        lambda: place.append("b.jsonl", lines([3])),
    )
    assert ids() == [1, 2, 3]
    assert load(place.dataset).rejected.by_reason == {"duplicate_id": 3}


def test_a_compressed_file_is_taken_whole_when_it_has_settled(place, ids, monkeypatch):
    data, now = gzip.compress(lines(range(50)).encode()), 1000.0
    future = 2e9  # another clock than that of the file system must not matter
    monkeypatch.setattr(folder_module.time, "monotonic", lambda: now)

    def write(data, seconds):
        nonlocal now
        path = place.append("a.jsonl.gz", data)
        os.utime(path, (future, future))
        now += seconds

    def later(seconds):
        nonlocal now
        now += seconds

    place.append("plain.jsonl", lines([100]))
    counts = []
    look = lambda: counts.append(len(ids()))  # noqa: E731
    place.follow(
        lambda: write(data[:5], 4.9),
        lambda: (look(), later(4.9)),
        lambda: (look(), write(data[5:], 9)),
        lambda: (look(), later(4)),
        lambda: (look(), later(1)),
        lambda: look(),
        settle=5.0,
    )
    assert counts == [1, 1, 1, 1, 51]
    with pytest.raises(NothingNew):
        place.once()
    write(data, 9)
    with pytest.raises(UserError, match=r"a\.jsonl\.gz: was read up to byte .*--on_rewrite reread"):
        place.once()
    assert read_whole(place.dataset).inputs.files == 2


def test_a_compressed_file_that_was_renamed_or_touched_is_known(place, ids):
    path = place.logs / "a.jsonl.gz"
    path.write_bytes(gzip.compress(lines(range(5)).encode()))
    os.utime(path, (1, 1))

    def touch():
        os.utime(path, (2, 2))

    place.follow(touch, lambda: os.replace(path, place.logs / "b.jsonl.gz"), settle=5.0)
    with pytest.raises(NothingNew):
        place.once()
    assert ids() == [*range(5)]


def test_the_limits_of_a_commit_are_shared_by_the_files(place, ids):
    for name in "abc":
        place.append(f"{name}.jsonl", lines(range(10 * ord(name), 10 * ord(name) + 10)))
    place.once(max_records=6)
    assert [row.lines for row in rows(place.dataset)] == [2, 2, 2]
    place.follow(max_bytes=900)  # a stream goes on at once while a limit leaves something
    assert len(ids()) == 30
    found = rows(place.dataset)
    assert all(row.num_bytes <= 900 for row in found)
    manifest = load(place.dataset)
    sizes = [read_manifest_at(str(place.dataset), n).inputs.bytes for n in range(1, manifest.commit + 1)]
    assert all(after - before <= 900 for before, after in zip(sizes, sizes[1:], strict=False))
    # A single line may be larger than the limit.
    place.append("d.jsonl", lines([1], word=["long" * 999]).replace('"x": [1.0, 3.333333333333333e+19]', '"x": [1]'))
    place.once(max_bytes=10)
    assert len(ids()) == 31


def test_a_file_that_prepare_took_is_followed_from_its_end(place, ids, run_prepare, capsys):
    path = place.append("a.jsonl", lines(range(5)))
    run_prepare(str(path), schema=streams.SCHEMA, plain=True)
    with pytest.raises(NothingNew):
        place.once()
    place.append("a.jsonl", lines(range(5, 8)))
    place.once()
    assert ids() == [*range(8)]
    assert [(row.start, row.lines) for row in rows(place.dataset)] == [(None, None), (len(lines(range(5))), 8)]
    read_whole(place.dataset)
    path.write_text(lines([50]))
    with pytest.raises(UserError, match="was read up to byte"):
        place.once()


def test_an_append_of_a_file_that_is_followed_is_refused(place, run_prepare):
    for part in range(2):
        place.append("a.jsonl", lines([part]))
        place.once()
    path = str(place.logs / "a.jsonl")
    with pytest.raises(UserError, match=r"a\.jsonl: a stream has read a part of it into the dataset.*--streaming"):
        run_prepare(path, schema=streams.SCHEMA, append=True)
    other = place.folder / "other.jsonl"
    other.write_text(lines([9]))
    assert run_prepare(str(other), schema=streams.SCHEMA, append=True, plain=True).commit == 3
    place.append("a.jsonl", lines([10]))
    assert place.once().commit == 4
    read_whole(place.dataset)
