"""The rounds of a stream: what one commit holds, what others do meanwhile, when it ends, and what it costs to wait."""

import builtins
import json
import multiprocessing
import os
import random
import signal
import time

import pytest
import streams
from prepare_jobs import load, read_whole, unlisted
from streams import Place, lines

from pipeline.errors import NothingNew, TryAgain, UserError
from pipeline.files import list_files
from pipeline.format.commit import Commit, commit_path
from pipeline.format.sources import read_sources, rows_of
from pipeline.inspection.verify import verify
from pipeline.streaming import rounds, stop
from pipeline.streaming.positions import Positions
from pipeline.streaming.prepare_parts import prepare_parts
from pipeline.writing import compact as compact_module
from pipeline.writing import groups
from pipeline.writing.commit_log import read_summaries
from pipeline.writing.compact import compact


@pytest.fixture
def place(tmp_path, monkeypatch):
    return Place(tmp_path)


def operation(place, number):
    path = commit_path(number)
    return Commit.parse((place.dataset / path).read_bytes(), origin=path).operation


def ends(place):
    """Returns up to where each file was read, by its name."""
    positions = Positions(str(place.dataset))
    positions.update(load(place.dataset).summaries)
    return {os.path.basename(path): positions.newest(path).end for path in positions.by_path}


def counts(manifest):
    """Returns the counts of a dataset that do not depend on how its records came in."""
    splits = {name: split.model_dump(exclude={"shards"}) for name, split in manifest.splits.items()}
    vocabularies = {name: each.sha256 for name, each in manifest.vocabularies.items()}
    return splits, manifest.statistics, vocabularies, manifest.rejected.by_reason, manifest.inputs


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.proof) for seed in range(1, 40))])
def test_any_interleaving_gives_what_one_job_gives(place, run_prepare, read_records, seed):
    """Pieces of lines, rounds with limits, and streams that end and start again."""
    chance = random.Random(seed)
    left = {}
    for name in "abc":
        numbers = [chance.randrange(40) for _ in range(25)]
        parts = [chance.choice([lines([number]), lines([number]), "\n", "{}\n", "é\n"]) for number in numbers]
        left[name] = "".join(parts).encode()

    def write():
        for name in [name for name in left if chance.random() < 0.6]:
            size = min(chance.choice([1, 30, 100, 300]), len(left[name]))
            place.append(f"{name}.jsonl", left[name][:size])
            left[name] = left[name][size:]

    limits = [{}, {"max_bytes": 150}, {"max_records": 3}]
    while any(left.values()):
        try:
            if chance.random() < 0.5:
                write()
                place.once(**chance.choice(limits))
            else:
                place.follow(*[write] * chance.randrange(6), **chance.choice(limits))
            if (place.dataset / "manifest.json").exists() and chance.random() < 0.1:
                compact(str(place.dataset))
        except NothingNew:
            continue
    place.follow(lambda: None)
    whole = run_prepare(str(place.logs), schema=streams.SCHEMA, output="whole", plain=True, max_rejected=1.0)
    assert counts(read_whole(place.dataset)) == counts(whole)
    key = lambda example: bytes(example["id"][0])  # noqa: E731
    folders = place.dataset, place.folder / "whole"
    found, expected = (sorted(read_records(folder), key=key) for folder in folders)
    assert list(map(str, found)) == list(map(str, expected))
    assert ends(place) == {path.name: path.stat().st_size for path in place.logs.iterdir()}


def test_a_commit_of_a_stream_has_its_name_and_a_list_of_all_files(place):
    place.append("a.jsonl", lines(range(5)))
    place.follow(lambda: place.append("a.jsonl", lines([5])), lambda: place.append("b.jsonl", "{}\n\n"))
    assert [operation(place, number) for number in (1, 2, 3)] == ["create", "stream", "stream"]
    assert [path for path in unlisted(place.dataset) if path.suffix != ".txt" and path.is_file()] == []
    assert load(place.dataset).rejected.total == 1


def test_a_first_commit_waits_for_a_record(place, ids):
    place.append("a.jsonl", "{}\n" * 5)
    message = (
        r"dataset: does not exist yet, and no record was accepted \(rejected: 5 bad_id\)\. Nothing was published\."
    )
    with pytest.raises(NothingNew, match=message):
        place.once()
    assert list_files(str(place.dataset)) == []
    # More than the limit, if only that gives a record.
    place.append("a.jsonl", lines([1]))
    manifest = place.once(max_records=2)
    assert (ids(place), manifest.commit, manifest.rejected.total) == ([1], 1, 5)
    # Only lines that are blank: nothing to publish but the place.
    place.append("a.jsonl", "\n" * 7)
    assert place.once().commit == 2
    assert ends(place) == {"a.jsonl": (place.logs / "a.jsonl").stat().st_size}
    read_whole(place.dataset)


def test_a_first_round_without_a_record_is_not_done_again_until_there_is_more(place, monkeypatch, capsys):
    place.append("a.jsonl", "{}\n" * 5)
    done = []
    publish = rounds.prepare_parts
    monkeypatch.setattr(rounds, "prepare_parts", lambda *a, **o: (done.append(len(a[2])), publish(*a, **o))[1])
    place.follow(lambda: None, lambda: None, lambda: place.append("a.jsonl", "{}\n"), lambda: None)
    assert done == [1, 1]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "no record was accepted" in line]
    assert line.endswith("(rejected: 5 bad_id). Nothing was published. The stream waits for a record.")


def test_max_rejected_counts_at_least_the_last_thousand_records(place, ids, capsys):
    bad, good = "{}\n", iter(range(10_000))

    def write(num_good, num_bad):
        place.append("a.jsonl", lines(next(good) for _ in range(num_good)) + bad * num_bad)

    limit = {"max_rejected": 0.1}
    # Below a thousand records it does not stop the stream.
    write(10, 500)
    place.once(**limit)
    write(300, 0)
    place.follow(lambda: write(189, 0), **limit)
    before = ends(place)
    # With these, 501 of 1,000 are bad.
    write(0, 1)
    with pytest.raises(
        UserError, match=r"^501 of the last 1,000 records \(50\.10%\) were rejected: 1 bad_id; at most 10\.00% may be"
    ):
        place.once(**limit)
    assert (load(place.dataset).commit, ends(place)) == (3, before)
    # A round of a thousand records is counted alone.
    write(999, 0)
    place.follow(lambda: write(0, 100), **limit)
    # Of the two newest rounds with 1,000 records or more, 101 of 1,100 were bad; now they are 151 of 1,150.
    write(0, 50)
    with pytest.raises(UserError, match=r"^151 of the last 1,150 records"):
        place.once(**limit)
    assert len(ids(place)) == 1498
    read_whole(place.dataset)


def test_of_two_streams_over_the_same_files_one_begins_its_round_again(place, ids, monkeypatch, capsys):
    place.append("a.jsonl", lines([0]))
    place.once()
    others = []

    def publish(*arguments, **options):
        if others:
            others.pop()()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)

    def other_takes_more():
        place.append("a.jsonl", lines([2]))
        place.once()

    place.append("a.jsonl", lines([1]))
    others.append(other_takes_more)
    with pytest.raises(NothingNew):  # the other one took all of it
        place.once()
    assert "another job added the raw file" in capsys.readouterr().err
    place.append("a.jsonl", lines([3]))
    others.append(place.once)
    assert place.follow(lambda: place.append("a.jsonl", lines([4]))).commit == 4
    assert ids(place) == [0, 1, 2, 3, 4]
    # Without ids, only the places tell that lines were taken twice.
    assert read_whole(place.dataset).rejected.total == 0


def test_without_ids_two_streams_take_no_line_twice(tmp_path, monkeypatch, read_records):
    place = Place(tmp_path, streams.WITHOUT_ID)
    place.append("a.jsonl", lines([0]))
    place.once()
    others = [lambda: (place.append("a.jsonl", lines([5])), place.once())]

    def publish(*arguments, **options):
        if others:
            others.pop()()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)
    place.follow(lambda: place.append("a.jsonl", lines([3])), lambda: place.append("a.jsonl", lines([4])))
    assert len(read_records(place.dataset)) == 4
    read_whole(place.dataset)


def test_two_streams_take_no_reject_twice(place, monkeypatch):
    place.append("a.jsonl", lines([0]))
    place.once()
    others = [lambda: (place.append("a.jsonl", "{}\n"), place.once())]

    def publish(*arguments, **options):
        if others:
            others.pop()()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)
    place.append("a.jsonl", "{}\n")
    with pytest.raises(NothingNew):
        place.once()
    assert read_whole(place.dataset).rejected.total == 2


def test_a_file_that_prepare_takes_meanwhile_is_not_read_again(tmp_path, monkeypatch, run_prepare, read_records):
    place = Place(tmp_path, streams.WITHOUT_ID)
    place.append("a.jsonl", lines([0]))
    place.once()
    path = str(place.append("b.jsonl", lines([1, 2])))
    others = [lambda: run_prepare(path, schema=streams.WITHOUT_ID, append=True, plain=True)]

    def publish(*arguments, **options):
        if others:
            others.pop()()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)
    place.follow(lambda: None, lambda: place.append("b.jsonl", lines([3])))
    assert len(read_records(place.dataset)) == 4
    read_whole(place.dataset)


def test_a_compaction_that_ends_after_a_round_keeps_the_newer_place(place, ids, monkeypatch):
    """The merged generation is then the last one of the dataset, but has older parts."""
    place.append("a.jsonl", lines([0]))
    place.follow(lambda: place.append("a.jsonl", lines([1])))
    write, others = compact_module.write_summary, [lambda: (place.append("a.jsonl", lines([2])), place.once())]

    def write_late(*arguments):
        others.pop()()
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(compact_module, "write_summary", write_late)
        compact(str(place.dataset))
    assert [operation(place, number) for number in (3, 4)] == ["stream", "compact"]
    assert ends(place) == {"a.jsonl": len(lines(range(3)))}
    place.append("a.jsonl", lines([3]))
    place.once()
    assert ids(place) == [0, 1, 2, 3]
    assert read_whole(place.dataset).rejected.total == 0


def test_a_file_that_takes_the_place_of_another_while_that_is_read_is_not_mixed_up(place, ids, monkeypatch):
    path = place.append("a.jsonl", lines(range(5)))
    others = [lambda: (os.replace(path, place.logs / "b.jsonl"), path.write_text(lines(range(100, 120))))]

    def publish(*arguments, **options):
        if others:
            others.pop()()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)
    place.once()
    assert ids(place) == [*range(5), *range(100, 120)]
    with pytest.raises(NothingNew):
        place.once()


def test_an_append_and_a_compaction_meanwhile_are_kept(place, ids, run_prepare, monkeypatch, tmp_path):
    place.append("a.jsonl", lines([0]))
    place.follow(lambda: place.append("a.jsonl", lines([1])))
    other = tmp_path / "other.jsonl"
    other.write_text(lines([100]))
    append = lambda: run_prepare(str(other), schema=streams.SCHEMA, append=True, plain=True)  # noqa: E731
    others = [append, lambda: compact(str(place.dataset))]

    def publish(*arguments, **options):
        if others:
            others.pop()()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)
    place.append("a.jsonl", lines([2]))
    place.follow(lambda: place.append("a.jsonl", lines([3])), lambda: place.append("a.jsonl", lines([4])))
    assert ids(place) == [0, 1, 2, 3, 4, 100]
    # A merged generation comes after generations with newer places.
    assert ends(place) == {"a.jsonl": len(lines(range(5)))}
    with pytest.raises(NothingNew):
        place.once()
    read_whole(place.dataset)


def test_a_dataset_that_another_job_replaced_is_made_from_all_files(place, ids, run_prepare, tmp_path):
    place.append("a.jsonl", lines([0, 1]))
    other = tmp_path / "other.jsonl"
    other.write_text(lines([100]))
    place.follow(lambda: run_prepare(str(other), schema=streams.SCHEMA, overwrite=True, plain=True))
    assert ids(place) == [0, 1, 100]


def test_a_file_that_changes_while_it_is_read_is_read_in_the_next_round(place, ids, monkeypatch, capsys):
    path = place.append("a.jsonl", lines(range(5)))
    others = [lambda: os.replace(path, place.logs / "b.jsonl"), lambda: None]
    others += [lambda: (os.replace(place.logs / "b.jsonl", place.logs / "c.jsonl"), path.write_text(lines([7, 8])))]

    def publish(*arguments, **options):
        if others:
            others.pop(0)()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)
    place.once()
    assert "a.jsonl: was replaced or rewritten while it was read. Nothing was published." in capsys.readouterr().err
    place.append("b.jsonl", lines([5]))
    place.follow(lambda: None)
    assert ids(place) == [0, 1, 2, 3, 4, 5, 7, 8]
    assert read_whole(place.dataset).rejected.total == 0


def test_a_stream_gives_up_a_single_round_that_others_always_disturb(place, monkeypatch):
    place.append("a.jsonl", lines([0]))

    def fail(*arguments, **options):
        raise TryAgain("again and again")

    monkeypatch.setattr(rounds, "prepare_parts", fail)
    with pytest.raises(TryAgain):
        place.once()
    # A stream that goes on tries again later.
    place.follow(lambda: monkeypatch.setattr(rounds, "prepare_parts", prepare_parts))
    assert load(place.dataset).commit == 1


def test_an_idle_stream_ends(place, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(rounds.time, "monotonic", lambda: now[0])
    place.append("a.jsonl", lines([0]))
    waits = []

    def wait(signals, seconds):
        waits.append(round(seconds, 3))
        now[0] += seconds
        if now[0] == 50:
            place.append("a.jsonl", lines([1]))

    monkeypatch.setattr(stop.StopSignals, "wait", wait)
    manifest = rounds.stream(place.options(streaming={"idle": 65.0, "commit_interval": 10.0}))
    assert (manifest.commit, waits) == (2, [10.0] * 11 + [5.0])


def test_a_stream_that_left_something_because_of_a_limit_is_not_idle(place, ids):
    place.append("a.jsonl", lines(range(9)))
    assert rounds.stream(place.options(streaming={"idle": 0.0, "max_records": 2})).commit == 5
    assert ids(place) == [*range(9)]


def test_waiting_costs_no_look_into_files_and_reads_no_commit(place, monkeypatch):
    for number in range(300):
        place.append(f"{number}.jsonl", lines([number]))
    done = []

    def forbid():
        for module, name in ((builtins, "open"), (os, "open"), (json, "loads")):
            monkeypatch.setattr(module, name, None)
        monkeypatch.setattr(rounds, "prepare_parts", None)
        done.append(time.process_time())

    place.follow(forbid, lambda: done.append(time.process_time()), monkeypatch.undo)
    before, after = done
    print(f"\nan empty round over 300 files: {1e3 * (after - before):.1f} ms of processor time")
    assert load(place.dataset).commit == 1


def test_metrics_are_written_after_every_round(place, monkeypatch):
    path, name = place.folder / "stream.prom", place.logs / 'a "b"\\.jsonl'
    place.append(name.name, lines(range(3)) + "{}\n[")
    found = []
    read = lambda: found.append(path.read_text())  # noqa: E731
    place.follow(read, read, metrics_file=str(path))
    values = [dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")) for text in found]
    size = len(lines(range(3)) + "{}\n")
    source = str(name).replace("\\", "\\\\").replace('"', '\\"')
    assert float(values[0].pop("lengthwise_stream_seconds_since_commit")) >= 0
    assert values[0] == {
        "lengthwise_stream_records_total": "4",
        "lengthwise_stream_bytes_total": str(size),
        'lengthwise_stream_rejected_total{reason="bad_id"}': "1",
        "lengthwise_stream_rounds_total": "1",
        "lengthwise_stream_commits_total": "1",
        "lengthwise_stream_lag_bytes_total": "1",
        f'lengthwise_stream_lag_bytes{{source="{source}"}}': "1",
    }
    assert values[1]["lengthwise_stream_rounds_total"] == "2"
    kinds = [line for line in found[0].splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len({*kinds}) == 8
    assert not list(place.folder.glob("*.tmp"))


def test_a_dataset_of_many_shards_is_compacted(place, ids, monkeypatch, capsys):
    monkeypatch.setattr(rounds, "_MAX_SHARDS", 6)
    steps = [lambda n=n: place.append("a.jsonl", lines(range(40 * n, 40 * n + 40))) for n in range(5)]
    manifest = place.follow(*steps)
    assert ids(place) == [*range(200)]
    assert operation(place, 4) == "compact"
    assert (manifest.commit, read_whole(place.dataset)) == (7, manifest)
    assert "commit 4: merged 3 generations into one" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["nothing", "renamed", "rewritten"])
def test_a_compacted_dataset_has_one_row_for_a_file_and_the_stream_goes_on(place, ids, change):
    steps = [lambda n=n: place.append("a.jsonl", lines(range(40 * n, 40 * n + 40))) for n in range(4)]
    place.follow(*steps)
    compact(str(place.dataset))
    (summary,) = read_summaries(str(place.dataset), load(place.dataset).summaries)
    path = place.logs / "a.jsonl"
    assert (summary.sources.files, summary.sources.parts, summary.sources.later_parts) == (1, 1, 0)
    (row,) = (row for block in read_sources(str(place.dataset), summary.sources) for row in rows_of(block))
    assert (row.path, row.start, row.stored_bytes, row.lines) == (str(path), 0, path.stat().st_size, 160)
    assert row.joined == 4
    if change == "renamed":
        path.rename(place.logs / "b.jsonl")
        place.append("b.jsonl", lines([160]))
    elif change == "rewritten":
        path.rename(place.logs / "b.jsonl")
        (place.logs / "b.jsonl").write_text(lines([*range(159), 1000]))
        place.append("a.jsonl", lines([160]))
        with pytest.raises(UserError, match="was read up to byte"):
            place.once()
        return
    place.append("a.jsonl", lines([161]))
    place.once()
    assert ids(place) == [*range(160), *([160] if change == "renamed" else []), 161]
    assert verify(str(place.dataset)).faults == []


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pipeline.streaming.rounds"])


def _follow(place, seconds, patience):
    """Follows the folder, in a round of at least some seconds, after which there is a signal."""

    def publish(*arguments, **options):
        (place.folder / "at_work").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(seconds)
        return prepare_parts(*arguments, **options)

    stop._PATIENCE = patience
    rounds.prepare_parts = publish
    rounds.stream(place.options())


@pytest.mark.parametrize(("seconds", "patience", "commit"), [(0, 60, 2), (60, 0.01, 1)], ids=["published", "abandoned"])
def test_sigterm_ends_a_round_with_status_0(place, ids, seconds, patience, commit):
    place.append("a.jsonl", lines([0]))
    place.once()
    place.append("a.jsonl", lines([1]))
    process = _CONTEXT.Process(target=_follow, args=(place, seconds, patience))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert (place.folder / "at_work").exists()
    assert read_whole(place.dataset).commit == commit
    if commit == 1:
        place.once()
    assert ids(place) == [0, 1]


def test_sigint_while_it_waits_ends_it_at_once(place):
    place.append("a.jsonl", lines([0]))
    calls = []

    def wait(signals, seconds):
        signal.raise_signal(signal.SIGINT)
        calls.append(signals.requested)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stop.StopSignals, "wait", wait)
        before = signal.getsignal(signal.SIGINT)
        assert rounds.stream(place.options()).commit == 1
        assert (calls, signal.getsignal(signal.SIGINT)) == ([True], before)


def test_a_stream_reads_the_groups_of_a_commit_once(tmp_path, monkeypatch):
    schema = streams.SCHEMA + "group: who\nsplits: {from: part}\n"
    place, merged = Place(tmp_path, schema), []
    merge = groups.find_shared_groups
    monkeypatch.setattr(
        groups, "find_shared_groups", lambda files, *a, **o: merged.append(len(files)) or merge(files, *a, **o)
    )
    write = lambda numbers, who, part: place.append("a.jsonl", lines(numbers, who=who, part=part))  # noqa: E731
    write([0], "p", "train")
    place.follow(lambda: write([1], "q", "test"), lambda: write([2, 3], "p", "train"), lambda: write([4], "r", "test"))
    assert merged == []
    with pytest.raises(UserError, match='the group "q" .* is in two splits'):
        place.follow(lambda: write([5], "q", "train"))
    assert merged == [5]
    assert (read_whole(place.dataset).commit, load(place.dataset).rejected.total) == (4, 0)
