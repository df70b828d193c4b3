"""A generation has one file with the exact counts of the strings of each feature, and vocabularies chosen from it."""

import collections
import hashlib

import pytest

from pipeline.format import count_strings
from pipeline.format.string_counts import read_counts, tabulate_counts
from pipeline.format.vocabulary import choose_terms, count_unknown, parse_terms, vocabulary_file_names
from pipeline.schema.schema import Schema
from pipeline.writing import publish
from pipeline.writing.merge_strings import merge_strings
from pipeline.writing.paths import strings_path
from pipeline.writing.shards import ShardWriter

SCHEMA = """
id: id
steps: {word: {dtype: string, vocabulary: 5, missing: fill}}
context: {"the city": {dtype: string, vocabulary: 3}}
label: {name: y, kind: regression}
splits: {train: 0.6, test: 0.4}
"""
SPLITS = ("train", "test")
RECORDS = [
    {"id": n, "word": [None, "", f"w{n % 7}", f"rare {n}", "é\0"], "the city": f"c{n % 5}", "y": n} for n in range(200)
]


def count(read_records, dataset, name):
    """The slow twin: counts the strings in the shards."""
    strings = {s: [string for example in read_records(dataset, s) for string in example[name]] for s in SPLITS}
    return {s: collections.Counter(string for string in strings[s] if string != b"\xff") for s in SPLITS}


def strings_files(dataset):
    return {str(path.relative_to(dataset)): path.read_bytes() for path in sorted(dataset.glob("data/*/strings/*"))}


@pytest.mark.parametrize("beam", [None, {"direct_runner_bundle_repeat": 2}], ids=["plain", "bundle_repeat"])
def test_a_generation_has_the_counts_of_all_strings_and_no_file_of_a_shard(
    run_prepare, write_raw, read_records, tmp_path, monkeypatch, beam
):
    monkeypatch.setattr(count_strings, "_BUFFER_BYTES", 2000)
    manifest = run_prepare(write_raw(RECORDS), schema=SCHEMA, num_shards=3, beam=beam)
    dataset = tmp_path / "dataset"
    files = {
        name: strings_path(manifest.generations[0], file_name)
        for name, file_name in vocabulary_file_names(["word", "the city"]).items()
    }
    assert sorted(files.values()) == sorted(strings_files(dataset))
    for name, path in files.items():
        counts = count(read_records, dataset, name)
        (table,) = read_counts(str(dataset / path), SPLITS)
        assert table.equals(tabulate_counts(counts, SPLITS))
        vocabulary = manifest.vocabularies[name]
        terms = parse_terms((dataset / vocabulary.path).read_bytes())
        assert terms == choose_terms(counts["train"], {"the city": 3, "word": 5}[name])
        assert [manifest.splits[s].unknown[name] for s in SPLITS] == [count_unknown(counts[s], terms) for s in SPLITS]
    assert not list(dataset.rglob("*.strings"))


def test_the_files_depend_neither_on_the_number_of_shards_nor_on_the_memory(
    run_prepare, write_raw, tmp_path, monkeypatch
):
    found = []
    for number, (num_shards, buffer_bytes) in enumerate([(1, 2**20), (4, 2**20), (4, 300)]):
        monkeypatch.setattr(count_strings, "_BUFFER_BYTES", buffer_bytes)
        run_prepare(write_raw(RECORDS), schema=SCHEMA, num_shards=num_shards, output=str(number))
        found.append(list(strings_files(tmp_path / str(number)).values()))
    assert found[0] == found[1] == found[2]


def test_a_retried_merge_returns_the_same_after_the_files_of_the_shards_were_removed(
    run_prepare, write_raw, tmp_path, monkeypatch
):
    calls = []

    def merge(schema, shards, **options):
        calls.append((schema, shards, options))
        return merge_strings(schema, shards, **options)

    monkeypatch.setattr(publish, "merge_strings", merge)
    run_prepare(write_raw(RECORDS), schema=SCHEMA, num_shards=3)
    ((schema, shards, options),) = calls
    files = strings_files(tmp_path / "dataset")
    again = merge_strings(schema, shards, **options)
    assert strings_files(tmp_path / "dataset") == files
    for merged in again.values():
        data = files[merged.path]
        assert merged.sha256 == hashlib.sha256(data).hexdigest()
        blocks = read_counts(str(tmp_path / "dataset" / merged.path), SPLITS, strings=merged.strings)
        assert sum(map(len, blocks)) == merged.strings
    (tmp_path / "dataset" / again["word"].path).unlink()
    with pytest.raises(FileNotFoundError):  # the files of the shards are gone
        merge_strings(schema, shards, **options)


def test_without_records_the_counts_are_empty(tmp_path):
    schema = Schema.parse(SCHEMA)
    generation = "20260102T030405-0123abcd"
    shards = ShardWriter(schema, str(tmp_path), generation).write(0, [], num_shards=1, reject=lambda reject: None)
    merged = merge_strings(schema, shards, output=str(tmp_path), generation=generation)
    assert [counts.strings for counts in merged.values()] == [0, 0]
    for counts in merged.values():
        assert list(read_counts(str(tmp_path / counts.path), SPLITS, strings=0)) == []
