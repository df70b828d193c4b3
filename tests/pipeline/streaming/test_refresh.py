"""A stream chooses vocabularies now and then, and when it ends; each commit counts unknown strings exactly."""

import collections
import contextlib
import re

import pytest
import streams
from datasets import call
from file_faults import Kill, watch_file_system
from prepare_jobs import age_marks, load, read_whole
from streams import Place, lines

from pipeline.errors import NothingNew, TryAgain
from pipeline.format.commit import Commit, commit_path
from pipeline.format.history import read_manifest_at
from pipeline.format.vocabulary import count_unknown, parse_terms
from pipeline.inspection.verify import verify
from pipeline.streaming import refresh
from pipeline.writing import commit_log, refresh_vocabularies
from pipeline.writing.compact import compact


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


class Killed(BaseException):
    """Ends a stream at once."""


def kill():
    raise Killed


def commits(place):
    """Returns the commits of a dataset, the oldest first."""
    paths = [commit_path(number) for number in range(1, load(place.dataset).commit + 1)]
    return [Commit.parse((place.dataset / path).read_bytes(), origin=path) for path in paths]


def count_slowly(place, read_records, vocabulary):
    """Returns the number of unknown words of each split, from all records."""
    terms = parse_terms((place.dataset / vocabulary.path).read_bytes())
    words = lambda split: (word for e in read_records(place.dataset, split) for word in e["word"])  # noqa: E731
    return {
        split: {"word": count_unknown(collections.Counter(bytes(word) for word in words(split)), terms)}
        for split in ("train", "validation", "test")
    }


def chosen_by_one_job(place, run_prepare):
    whole = run_prepare(
        str(place.logs), schema=streams.SCHEMA, output="whole", plain=True, max_rejected=1.0, overwrite=True
    )
    return whole.vocabularies["word"].sha256, {name: split.unknown for name, split in whole.splits.items()}


def chosen(manifest):
    return manifest.vocabularies["word"].sha256, {name: split.unknown for name, split in manifest.splits.items()}


def test_commits_keep_the_vocabularies_and_the_last_one_chooses_them_again(place, read_records, run_prepare, capsys):
    found = []

    def look():
        manifest = read_whole(place.dataset)  # verifies it
        assert chosen(manifest)[1] == count_slowly(place, read_records, manifest.vocabularies["word"])
        found.append((manifest.commit, manifest.vocabularies_of, manifest.vocabularies["word"].sha256))

    place.append("a.jsonl", lines(range(3)))
    steps = [lambda n=n: (look(), place.append("a.jsonl", lines(range(5 * n, 5 * n + 8)))) for n in range(1, 6)]
    manifest = place.follow(*steps, lambda: (look(), place.append("a.jsonl", "{}\n")), refresh=3600.0)
    first = found[0][2]
    assert found == [(1, None, first), *((n, 1, first) for n in range(2, 7))]
    assert (manifest.commit, manifest.vocabularies_of) == (8, None)
    assert chosen(manifest) == chosen_by_one_job(place, run_prepare)
    assert manifest.vocabularies["word"].sha256 != first
    assert [len(commit.added) for commit in commits(place)] == [1] * 7 + [0]
    assert "prepare: commit 8: chose the vocabularies from all records" in capsys.readouterr().err
    look()
    assert len(list((place.dataset / "data").iterdir())) == 7
    # Nothing came since.
    place.follow(lambda: None, refresh=0.0)
    assert load(place.dataset).commit == 8


def test_they_are_chosen_again_after_some_time_also_by_the_next_stream(place, monkeypatch):
    now, real = [0.0], refresh.time.time
    monkeypatch.setattr(refresh.time, "time", lambda: real() + now[0])
    write = lambda n, seconds: (now.append(now.pop() + seconds), place.append("a.jsonl", lines([n])))  # noqa: E731

    write(0, 0)
    with pytest.raises(Killed):
        place.follow(lambda: write(1, 400), lambda: write(2, 400), lambda: write(3, 400), kill, refresh=600.0)
    # The time of a commit is that of the real clock, so that its vocabularies are old from here on.
    assert [commit.vocabularies_of for commit in commits(place)] == [None, 1, None, None]
    now[0] = 0.0
    with pytest.raises(Killed):
        place.follow(lambda: write(4, 0), kill, refresh=600.0)
    assert load(place.dataset).vocabularies_of == 4
    # A stream that finds nothing new, when they are old.
    now[0] = 700.0
    with pytest.raises(Killed):
        place.follow(kill, refresh=600.0)
    assert (load(place.dataset).commit, load(place.dataset).vocabularies_of) == (6, None)
    read_whole(place.dataset)


def test_one_round_always_chooses_them(place, run_prepare):
    place.append("a.jsonl", lines(range(3)))
    place.once()
    place.append("a.jsonl", lines(range(3, 30)))
    assert chosen(place.once()) == chosen_by_one_job(place, run_prepare)
    assert [commit.vocabularies_of for commit in commits(place)] == [None, None]


def test_other_jobs_choose_them_and_the_stream_keeps_those(place, run_prepare, tmp_path, read_records):
    other = tmp_path / "other.jsonl"
    other.write_text(lines(range(100, 120)))
    append = lambda: run_prepare(str(other), schema=streams.SCHEMA, append=True, plain=True)  # noqa: E731
    write = lambda n: place.append("a.jsonl", lines(range(n, n + 4)))  # noqa: E731
    found = []

    def look():
        manifest = read_whole(place.dataset)
        assert chosen(manifest)[1] == count_slowly(place, read_records, manifest.vocabularies["word"])
        found.append(manifest.vocabularies_of)

    write(0)
    place.follow(
        lambda: write(4),
        lambda: (look(), append(), look(), write(8)),
        lambda: (look(), write(12)),
        lambda: (look(), compact(str(place.dataset)), look(), write(16)),
        lambda: look(),
        refresh=3600.0,
    )
    assert found == [1, None, 3, 3, None, 6]
    assert (load(place.dataset).commit, load(place.dataset).vocabularies_of) == (8, None)


def test_a_schema_without_vocabularies_needs_no_last_commit(tmp_path):
    place = Place(tmp_path, re.sub(", vocabulary: 5", "", streams.SCHEMA).replace("dtype: string", "dtype: float32"))
    place.append("a.jsonl", lines(range(5), word=[1.0]))
    with contextlib.suppress(NothingNew):
        place.follow(lambda: place.append("a.jsonl", lines([9], word=[2.0])), refresh=3600.0)
    assert b"vocabularies_of" not in (place.dataset / "manifest.json").read_bytes()


def test_a_stream_that_is_killed_while_it_chooses_them_does_so_again(place, run_prepare):
    place.append("a.jsonl", lines(range(5)))

    class KillAt(Kill):
        def before_call(self, name, path):
            if not self._first and name == "link" and path and "00000003.json" in path:
                self._first = self.calls + 1
            super().before_call(name, path)

    kill = KillAt(first=0)
    with watch_file_system(kill.before_call), contextlib.suppress(Exception):
        place.follow(lambda: place.append("a.jsonl", lines(range(5, 30))), refresh=3600.0)
    assert kill.failed and kill.failed[0] == "link"
    assert (load(place.dataset).commit, load(place.dataset).vocabularies_of) == (2, 1)
    age_marks(place.dataset)
    with pytest.raises(NothingNew):
        place.once()
    assert (load(place.dataset).commit, load(place.dataset).vocabularies_of) == (3, None)
    assert chosen(read_whole(place.dataset)) == chosen_by_one_job(place, run_prepare)


def test_a_stream_ends_well_if_another_job_commits_meanwhile(place, monkeypatch):
    publish = refresh_vocabularies.publish_commit

    def refuse(*arguments, **options):
        raise TryAgain("meanwhile")

    monkeypatch.setattr(refresh_vocabularies, "publish_commit", refuse)
    place.append("a.jsonl", lines(range(5)))
    place.follow(lambda: place.append("a.jsonl", lines([5])), refresh=3600.0)
    assert load(place.dataset).vocabularies_of == 1
    monkeypatch.setattr(refresh_vocabularies, "publish_commit", publish)
    place.follow(lambda: None, refresh=3600.0)
    assert load(place.dataset).vocabularies_of is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("unknown", r"unknown\.train\.word is \d+, but"),
        ("vocabularies", "its vocabularies are not those of commit 2, which chose them"),
        ("vocabularies_of", "vocabularies_of is 3, expected an older commit that chose vocabularies"),
    ],
)
def test_verify_finds_wrong_counts_and_vocabularies_of_another_commit(place, monkeypatch, wrong, message):
    keep = commit_log.keep_vocabularies

    def keep_wrongly(output, manifest, added):
        kept = keep(output, manifest, added)
        if manifest.commit < 3:
            return kept
        if wrong == "unknown":
            return kept._replace(unknown=kept.unknown | {"train": {"word": kept.unknown["train"]["word"] + 1}})
        older = read_manifest_at(output, 1)
        return kept._replace(**{"vocabularies": older.vocabularies} if wrong == "vocabularies" else {wrong: 3})

    for numbers in (range(5), range(5, 30)):
        place.append("a.jsonl", lines(numbers))
        place.once()
    monkeypatch.setattr(commit_log, "keep_vocabularies", keep_wrongly)
    place.append("a.jsonl", lines([30]))
    with pytest.raises(Killed):
        place.follow(lambda: place.append("a.jsonl", lines([40])), kill, refresh=3600.0)
    assert load(place.dataset).commit == 4
    messages = [fault.message for fault in verify(str(place.dataset)).faults]
    assert any(re.search(message, found) for found in messages), messages


def test_inspect_names_the_commit_of_the_vocabularies(place, capsys):
    place.append("a.jsonl", lines(range(5)))
    with pytest.raises(Killed):
        place.follow(lambda: place.append("a.jsonl", lines([5])), kill, refresh=3600.0)
    _, out, _ = call(capsys, "inspect", place.dataset)
    assert "The vocabularies are those of commit 1: a stream chooses them again" in out
    place.follow(lambda: None)
    _, out, _ = call(capsys, "inspect", place.dataset)
    assert "The vocabularies are those" not in out
