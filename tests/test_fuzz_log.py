"""Damaged commits, summaries, lists and indexes are refused by all that read them; an error names the file."""

import json
import os
import random
import re

import numpy as np
import pytest
from commits import add_commit
from damage import edit_json, resign_log
from prepare_jobs import load, snapshot

import lengthwise as lw
from pipeline.errors import UserError
from pipeline.format.commit import commit_path
from pipeline.format.history import read_manifest_at
from pipeline.format.sources import read_sources
from pipeline.format.summary import summary_path
from pipeline.inspection.commits import list_commits
from pipeline.inspection.verify import verify
from pipeline.writing.commit_log import read_summaries, recover
from pipeline.writing.compact import compact
from pipeline.writing.published_ids import find_published, list_published

# A file of each kind in the second generation, or about it.
KINDS = {
    "commit": lambda generation: commit_path(2),
    "summary": summary_path,
    "sources": "data/{}/sources.parquet".format,
    "strings": "data/{}/strings/word.parquet".format,
    "index": "data/{}/train-00000-of-00001.index.parquet".format,
}


def flip(data, chance):
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


def shuffle(data, chance):
    pieces = [data[at : at + 40] for at in range(0, len(data), 40)]
    chance.shuffle(pieces)
    return b"".join(pieces)


# Each function damages the bytes of a file. The footer of a Parquet file is at its end.
DAMAGES = {
    "empty": lambda data, chance: b"",
    "cut": lambda data, chance: data[: chance.randrange(len(data))],
    "longer": lambda data, chance: data + data[:99],
    "bit": flip,
    "bit of the end": lambda data, chance: data[:-300] + flip(data[-300:], chance),
    "size of the footer": lambda data, chance: data[:-8] + chance.randbytes(4) + data[-4:],
    "no footer": lambda data, chance: data[:4] + data[-12:],
    "noise": lambda data, chance: chance.randbytes(len(data)),
    "shuffled": shuffle,
    "deep": lambda data, chance: b'{"format_version": 2, "a": ' + b"[" * 100_000,
    "digits": lambda data, chance: b'{"format_version": 2, "number": ' + b"9" * 100_000 + b"}",
    "list": lambda data, chance: b"[2]",
    "text": lambda data, chance: json.dumps({"format_version": 2, "number": "\ud800"}).encode(),
}


def open_older(dataset):
    lw.open_dataset(str(dataset), commit=2)
    read_manifest_at(str(dataset), 2)


def search_ids(dataset):
    for shard in list_published(str(dataset), load(dataset).splits):
        find_published([shard], np.array([shard.first], np.uint64))


def read_all_sources(dataset):
    manifest = load(dataset)
    for summary in read_summaries(str(dataset), manifest.summaries):
        list(read_sources(str(dataset), summary.sources))


def append(dataset):
    add_commit(dataset, "another-generation", "append")


# What reads each kind of file. `append` here is the commit of a generation that was written before.
READERS = {
    "commit": {"open": open_older},
    "summary": {"open": open_older, "append": append, "compact": lambda dataset: compact(str(dataset), num_shards=1)},
    "sources": {"append": read_all_sources, "compact": lambda dataset: compact(str(dataset), num_shards=1)},
    "strings": {"append": append, "compact": lambda dataset: compact(str(dataset), num_shards=1)},
    "index": {"append": search_ids, "compact": lambda dataset: compact(str(dataset), num_shards=1)},
}


def files_of(dataset):
    """Returns the files of a dataset without the lock, and without those of a refused commit, which its job removes."""
    left_out = ("commits/lock", "another-generation")
    return {path: data for path, data in snapshot(dataset).items() if not any(part in path for part in left_out)}


def check_refused(dataset, path, damaged, kind):
    """Checks that `verify` and all other readers refuse a damaged file and name it, and change no file."""
    whole = (dataset / path).read_bytes()
    if damaged == whole:
        return
    (dataset / path).write_bytes(damaged)
    found = {fault.file: fault.message for fault in verify(str(dataset)).faults}
    assert path in found and found[path]
    before = files_of(dataset)
    for name, read in READERS[kind].items():
        with pytest.raises((UserError, ValueError), match=re.escape(path)) as caught:
            read(dataset)
        assert len(str(caught.value)) < 2000, name
        assert files_of(dataset) == before, name
    (dataset / path).write_bytes(whole)


def check_damages(dataset, kind, damages, chance):
    path = KINDS[kind](load(dataset).generations[1])
    whole = (dataset / path).read_bytes()
    for damage in damages:
        check_refused(dataset, path, DAMAGES[damage](whole, chance), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_is_refused_by_all_that_read_it(log_copy, kind):
    damages = (
        ["cut", "bit of the end", "text"] if kind in ("commit", "summary") else ["bit", "bit of the end", "no footer"]
    )
    check_damages(log_copy, kind, damages, random.Random(kind))


@pytest.mark.proof
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_damages_are_refused(log_copy, kind):
    check_damages(log_copy, kind, 5 * list(DAMAGES), random.Random())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_generation_in_its_place_is_refused(log_copy, kind):
    first, second, _ = load(log_copy).generations
    path = KINDS[kind](second)
    other = commit_path(1) if kind == "commit" else KINDS[kind](first)
    check_refused(log_copy, path, (log_copy / other).read_bytes(), kind)


def places_of(values, place=()):
    """Yields the place of each value in a JSON document."""
    yield place
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        if isinstance(value, dict | list):
            yield from places_of(value, (*place, key))
        else:
            yield (*place, key)


STRANGE = [None, True, -1, 0, 1, 2**63, 2**70, 1e308, "", "a", "../x", "\ud800", "0" * 64, [], {}, [[]], {"": {}}]


def change_a_value(values, chance):
    """Replaces or removes a value of a JSON document."""
    *path, last = chance.choice([place for place in places_of(values) if place])
    for key in path:
        values = values[key]
    if chance.random() < 0.2:
        del values[last]
    else:
        values[last] = chance.choice(STRANGE)


def check_signed(dataset, path, chance):
    """Checks that a changed value is refused or found, although all digests after it are those of the new bytes.

    Some values are free, such as the time of a commit. So only the kind of the answer is checked.
    """
    edit_json(dataset / path, lambda values: change_a_value(values, chance))
    try:
        resign_log(dataset)
    except (UserError, KeyError, TypeError, AttributeError, ValueError, OSError):  # what makes the digests found it
        pass
    for read in (verify, open_older, lambda folder: list_commits(str(folder), load(folder)), lambda f: recover(str(f))):
        try:
            answer = read(str(dataset))
            assert all(fault.message for fault in getattr(answer, "faults", ()))
        except UserError as error:
            assert str(error)


def run_signed(log_copy, kinds, number, seed):
    chance = random.Random(seed)
    generation = load(log_copy).generations[1]
    files = {path: path.read_bytes() for path in log_copy.rglob("*.json")}
    for _ in range(number):
        state = chance.getstate()
        try:
            check_signed(log_copy, KINDS[chance.choice(kinds)](generation), chance)
        except UserError:
            raise
        except Exception as error:
            chance.setstate(state)
            path = KINDS[chance.choice(kinds)](generation)
            raise AssertionError(f"{path}: {(log_copy / path).read_bytes()!r}") from error
        for path, data in files.items():
            path.write_bytes(data)


def test_a_changed_value_with_right_digests_is_refused_or_found(log_copy):
    run_signed(log_copy, ["commit", "summary"], 10, 0)


@pytest.mark.proof
def test_hundreds_of_changed_values_with_right_digests_are_refused_or_found(log_copy):
    run_signed(log_copy, ["commit", "summary"], 500, random.randrange(2**32))


@pytest.mark.parametrize("kind", ["commit", "summary", "manifest"])
def test_a_huge_file_is_refused_before_it_is_read(log_copy, kind):
    path = "manifest.json" if kind == "manifest" else KINDS[kind](load(log_copy).generations[1])
    # A sparse file. To read it, a process would need more memory than there is address space for.
    os.truncate(log_copy / path, 2**43)
    with pytest.raises(UserError, match=f"{re.escape(path)}: has 8,796,093,022,208 bytes, expected at most "):
        read_manifest_at(str(log_copy), 2)
    if kind == "commit":
        assert commit_path(2) in {fault.file for fault in verify(str(log_copy)).faults}


def test_an_edited_commit_is_refused_when_it_is_opened(log_copy):
    edit_json(log_copy / commit_path(2), lambda values: values["unknown"]["train"].update(word=0))
    for read in (lw.open_dataset, read_manifest_at):
        with pytest.raises(UserError, match="commits/00000002.json has the SHA-256 .* but this commit names"):
            read(str(log_copy), **({"number": 2} if read is read_manifest_at else {"commit": 2}))
