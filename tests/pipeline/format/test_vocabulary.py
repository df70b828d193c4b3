"""A vocabulary has the most frequent strings of the train split. Its file can hold every string and every name."""

import collections
import json
import os
import pathlib
import random
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from prepare_jobs import age_marks

from pipeline.errors import UserError
from pipeline.format.manifest import read_manifest
from pipeline.format.vocabulary import choose_terms, count_unknown, parse_terms, serialize_terms, vocabulary_file_names
from pipeline.inspection.verify import verify
from pipeline.writing.paths import vocabulary_copy_path
from pipeline.writing.retention import remove_old

SCHEMA = """
id: id
steps:
  word: {dtype: string, vocabulary: 5, missing: fill}
  tag: {dtype: string, vocabulary: 1000, shape: [2]}
  hashed: {dtype: string, num_values: 10}
context:
  city: {dtype: string, vocabulary: 3}
label: {name: y, kind: regression}
splits: {train: 0.6, test: 0.4}
"""
# Line breaks of every kind, the escapes themselves, NUL, and a string that resembles the mark of a missing string.
NASTY = ["", " ", "\n", "\r\n", "\\", "\\n", "\\\\n", "\0", "a\0b", "\x85", "\u2028", "\xff", "[UNK]", "\t", "é", "#x"]
STRINGS = st.text(max_size=5) | st.sampled_from(NASTY)


def make_record(number):
    rng = random.Random(number)
    words = rng.choices(["the", "of", "and", "rare", "a", "z", None, *NASTY], [9, 6, 6, 2, 2, 2, 3] + [1] * 16, k=6)
    tags = [[rng.choice(NASTY), rng.choice("xy")] for _ in words]
    city = rng.choice(["york", "York", "bath", "ely", "wells"])
    return {"id": number, "word": words, "tag": tags, "hashed": ["h"] * len(words), "city": city, "y": number}


RECORDS = [make_record(number) for number in range(120)]


def strings_of(records, name):
    if name == "city":
        return [record["city"] for record in records]
    strings = [string for record in records for string in record[name]]
    return [tag for pair in strings for tag in pair] if name == "tag" else [s for s in strings if s is not None]


def make(run_prepare, write_raw, records=RECORDS, **options):
    options = {"schema": SCHEMA, "num_shards": 3, "max_rejected": 0.5} | options
    return run_prepare(write_raw(records), **options)


def files_of(folder):
    """Returns every file of a folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(pathlib.Path(folder).rglob("*")) if p.is_file()}


def vocabularies(folder):
    """Returns the strings in the file of each vocabulary."""
    return {
        name: parse_terms(pathlib.Path(folder, vocabulary.path).read_bytes())
        for name, vocabulary in read_manifest(str(folder)).vocabularies.items()
    }


def train_records(read_records, folder, records=RECORDS):
    in_train = {example["id"][0].decode() for example in read_records(folder, "train")}
    return [record for record in records if str(record["id"]) in in_train]


@given(st.dictionaries(STRINGS.map(str.encode), st.integers(1, 3)), st.integers(1, 6), st.integers(1, 4))
def test_the_most_frequent_strings_are_chosen_and_ties_are_sorted_by_bytes(counts, size, min_count):
    terms = choose_terms(counts, size, min_count=min_count)
    counts = {term: count for term, count in counts.items() if count >= min_count}
    assert len(terms) == len(set(terms)) == min(size, len(counts))
    left = [term for term in counts if term not in terms]
    assert all((-counts[term], term) < (-counts[other], other) for term in terms for other in left)
    assert terms == sorted(terms, key=lambda term: (-counts[term], term))
    assert count_unknown(counts, terms) == sum(counts[term] for term in left)


@given(st.lists(STRINGS.map(str.encode) | st.binary(max_size=5)))
def test_a_vocabulary_file_has_each_string_on_its_line_and_parses_to_the_same_strings(terms):
    data = serialize_terms(terms)
    assert parse_terms(data) == terms
    assert data.count(b"\n") == len(terms)
    assert b"\r" not in data


def test_a_vocabulary_file_is_plain_text():
    assert serialize_terms([b"the", b"of", "é".encode()]) == "the\nof\né\n".encode()
    assert serialize_terms([]) == b""
    assert parse_terms(rb"a\nb" + b"\n\n" + rb"c\\n" + b"\n") == [b"a\nb", b"", rb"c\n"]


def test_the_vocabularies_are_the_most_frequent_strings_of_the_train_split(
    run_prepare, write_raw, read_records, tmp_path
):
    manifest = make(run_prepare, write_raw)
    train = train_records(read_records, tmp_path / "dataset")
    assert 0 < len(train) < len(RECORDS)
    assert list(manifest.vocabularies) == ["word", "tag", "city"]
    for name, terms in vocabularies(tmp_path / "dataset").items():
        counts = collections.Counter(strings_of(train, name))
        ranked = sorted(counts, key=lambda string: (-counts[string], string.encode()))
        assert [term.decode() for term in terms] == ranked[: {"word": 5, "tag": 1000, "city": 3}[name]]
        assert manifest.vocabularies[name].size == len(terms)
    assert manifest.vocabularies["tag"].size == len(NASTY) + 2
    assert verify(str(tmp_path / "dataset")).faults == []


def test_strings_of_duplicates_are_counted_once(run_prepare, write_raw, read_records, tmp_path):
    duplicates = [record for record in RECORDS if record["city"] == "wells"] * 3
    manifest = make(run_prepare, write_raw, [*duplicates, *RECORDS])
    assert manifest.rejected.by_reason == {"duplicate_id": len(duplicates)}
    train = train_records(read_records, tmp_path / "dataset")
    cities = collections.Counter(record["city"] for record in train)
    ranked = sorted(cities, key=lambda city: (-cities[city], city))
    assert ranked[0] != "wells"  # it would be first if duplicates counted
    assert [city.decode() for city in vocabularies(tmp_path / "dataset")["city"]] == ranked[:3]


@pytest.mark.parametrize(
    "beam",
    [
        None,
        {"direct_running_mode": "multi_threading", "direct_num_workers": 2},
        {"direct_runner_bundle_repeat": 2},
        pytest.param({"runner": "BundleBasedDirectRunner"}, marks=pytest.mark.proof),
    ],
    ids=["plain", "multi_threading", "bundle_repeat", "older_runner"],
)
def test_vocabularies_and_counts_are_the_same_on_every_runner(run_prepare, write_raw, tmp_path, beam):
    manifest = make(run_prepare, write_raw)
    shuffled = random.Random(1).sample(RECORDS, len(RECORDS))
    write_raw(shuffled[:50], "raw/one.jsonl")
    write_raw(shuffled[50:], "raw/two.jsonl")
    other = run_prepare(str(tmp_path / "raw"), schema=SCHEMA, num_shards=3, output="other", beam=beam)
    assert other.fingerprint == manifest.fingerprint
    for name in ("statistics", "splits"):
        ours, theirs = (m.model_dump(mode="json") for m in (manifest, other))
        if name == "splits":
            for dumped in (ours, theirs):
                for split in dumped["splits"].values():
                    split["shards"] = [shard["sha256"] for shard in split["shards"]]
        assert ours[name] == theirs[name]
    assert vocabularies(tmp_path / "dataset") == vocabularies(tmp_path / "other")
    assert [v.sha256 for v in manifest.vocabularies.values()] == [v.sha256 for v in other.vocabularies.values()]


def test_an_empty_train_split_has_empty_vocabularies_and_all_strings_are_unknown(run_prepare, write_raw, tmp_path):
    for splits in ("splits: {train: 0.0, test: 1.0}", "splits: {all: 1.0}"):
        schema = SCHEMA.replace("splits: {train: 0.6, test: 0.4}", splits)
        manifest = make(run_prepare, write_raw, schema=schema, overwrite=True)
        assert vocabularies(tmp_path / "dataset") == {"word": [], "tag": [], "city": []}
        assert {vocabulary.size for vocabulary in manifest.vocabularies.values()} == {0}
        (split,) = (split for split in manifest.splits.values() if split.records)
        assert split.unknown == {name: len(strings_of(RECORDS, name)) for name in manifest.vocabularies}
        assert manifest.statistics == {}
        assert verify(str(tmp_path / "dataset")).faults == []


HOSTILE = [
    "..",
    ".",
    "..\\x",
    "a b",
    "page",
    "Page",
    "PAGE",
    "é",
    "*",
    "con.txt",
    "page.txt",
    "n" * 300,
    "-rf",
    "C:x",
    "~",
    "%2e%2e",
]


def test_no_feature_name_leads_out_of_the_folder_or_to_the_file_of_another_feature(run_prepare, write_raw, tmp_path):
    # The last name equals the file name of the first.
    names = [*HOSTILE, vocabulary_file_names([".."])[".."].removesuffix(".txt")]
    features = {name: {"dtype": "string", "vocabulary": 3} for name in names}
    schema = json.dumps({"id": "id", "steps": features, "label": {"name": "y", "kind": "regression"}})
    records = [{"id": n, "y": 0, **{name: [f"{name} {n % 3}"] for name in names}} for n in range(30)]
    manifest = run_prepare(write_raw(records), schema=schema)
    paths = [vocabulary.path for vocabulary in manifest.vocabularies.values()]
    assert len({path.lower() for path in paths}) == len(names)
    assert all(re.fullmatch(r"vocabulary/[0-9a-f]{32}/[^/]+\.txt", path) for path in paths)
    copies = {vocabulary_copy_path(path) for path in paths}
    assert {name for name in files_of(tmp_path / "dataset") if name.startswith("vocabulary")} == {*paths, *copies}
    assert {p.name for p in tmp_path.iterdir()} == {"raw.jsonl", "schema.yaml", "dataset"}
    for name, terms in vocabularies(tmp_path / "dataset").items():
        assert sorted(terms) == sorted(f"{name} {n}".encode() for n in range(3))
    # Equal vocabularies share their files.
    again = run_prepare(write_raw(records), schema=schema, overwrite=True, retain=0)
    assert again.vocabularies == manifest.vocabularies
    records = [record | {name: [f"other {name}"] for name in names} for record in records]
    changed = run_prepare(write_raw(records), schema=schema, overwrite=True, retain=0)
    assert not set(paths) & {vocabulary.path for vocabulary in changed.vocabularies.values()}
    assert not any((tmp_path / "dataset" / path).exists() for path in paths)


@given(st.sets(st.text(min_size=1, max_size=70) | st.text("aAbB", min_size=1, max_size=2)))
def test_every_feature_has_its_own_file(names):
    files = vocabulary_file_names(sorted(names))
    assert files.keys() == names
    assert len({file.lower() for file in files.values()}) == len(names)
    assert all(file.isascii() and "/" not in file and len(file) < 80 for file in files.values())
    assert vocabulary_file_names(["page", "next-page_2"]) == {"page": "page.txt", "next-page_2": "next-page_2.txt"}


def test_older_vocabularies_are_removed_and_other_files_remain(run_prepare, write_raw, tmp_path):
    dataset = tmp_path / "dataset"
    first = make(run_prepare, write_raw)
    folder = first.vocabularies["word"].path.rsplit("/", 1)[0]
    theirs = ["vocabulary/mine.txt", "vocabulary/2026/page.txt", f"{folder}/notes.md"]
    left = [
        f"{folder}/word.txt.{'0' * 32}.tmp",
        "vocabulary/20200101T000000-00000000/word.txt",
        f"vocabulary/20200101T000000-00000000/sha256.{'0' * 32}.txt",
    ]
    for name in [*theirs, *left]:
        (dataset / name).parent.mkdir(parents=True, exist_ok=True)
        (dataset / name).write_bytes(b"a\n")
    second = make(run_prepare, write_raw, overwrite=True, retain=0)
    listed = [vocabulary.path for vocabulary in second.vocabularies.values()]
    found = [name for name in files_of(dataset) if name.startswith("vocabulary/")]
    copies = ["vocabulary/city.txt", "vocabulary/tag.txt", "vocabulary/word.txt"]
    assert sorted(found) == sorted([*theirs, *listed, *copies])
    remove_old(str(dataset), second, retain=0)
    assert [name for name in files_of(dataset) if name.startswith("vocabulary/")] == found


def test_the_copies_of_vocabularies_are_those_of_the_current_dataset(run_prepare, write_raw, tmp_path):
    dataset = tmp_path / "dataset"
    for overwrite in (False, True):
        manifest = make(run_prepare, write_raw, overwrite=overwrite)
        for name, vocabulary in manifest.vocabularies.items():
            copy = dataset / "vocabulary" / f"{name}.txt"
            assert copy.read_bytes() == (dataset / vocabulary.path).read_bytes()
    schema = "id: id\nsteps: {word: {dtype: string, vocabulary: 2}}\nlabel: {name: y, kind: regression}"
    run_prepare(write_raw([{"id": 1, "word": ["a"], "y": 0}]), schema=schema, overwrite=True, retain=0)
    assert [path.name for path in (dataset / "vocabulary").glob("*.txt")] == ["word.txt"]
    assert (dataset / "vocabulary" / "word.txt").read_bytes() in (b"a\n", b"")


@pytest.mark.proof
def test_a_job_that_is_killed_before_it_publishes_changes_no_dataset_and_the_next_job_cleans_up(
    run_prepare, write_raw, tmp_path, read_records
):
    """The job is killed after it wrote the vocabularies and before it creates the commit that names them."""
    before = make(run_prepare, write_raw)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    program = """
import os, sys
import pipeline.writing.commit_log
from pipeline.beam.prepare import PrepareOptions, prepare
def kill(path, data):
    os.kill(os.getpid(), 9)
pipeline.writing.commit_log.create_once = kill
prepare(PrepareOptions(("raw.jsonl",), "schema.yaml", "dataset", num_shards=3, overwrite=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert done.returncode == -9, done.stderr
    assert read_manifest(str(tmp_path / "dataset")) == before
    assert verify(str(tmp_path / "dataset")).faults == []
    assert len(list((tmp_path / "dataset" / "data").iterdir())) == 2
    for marker in tmp_path.glob("dataset/data/*/writer.json"):
        os.utime(marker, (0, 0))  # as if the job had been killed long ago
    age_marks(tmp_path / "dataset")
    after = make(run_prepare, write_raw, overwrite=True, retain=0)
    assert {path.name for path in (tmp_path / "dataset" / "data").iterdir()} == set(after.generations)


def test_a_manifest_that_cannot_be_written_leaves_no_vocabulary(run_prepare, write_raw, tmp_path):
    (tmp_path / "dataset" / "manifest.json").mkdir(parents=True)
    with pytest.raises(UserError, match="a folder is in the way, expected a file or nothing"):
        make(run_prepare, write_raw, overwrite=True)
    assert files_of(tmp_path / "dataset") == {}
