"""The paths that a job writes are recognised, and no others."""

import doctest

import pytest

from pipeline.format.commit import commit_path
from pipeline.format.summary import summary_path
from pipeline.format.vocabulary import vocabulary_file_names
from pipeline.writing import paths
from pipeline.writing.paths import (
    LOCK,
    generation_of,
    groups_path,
    is_named_by_summary,
    is_vocabulary,
    is_written_by_prepare,
    marker_path,
    new_generation,
    rejects_path,
    runs_folder,
    shard_paths,
    sources_path,
    strings_path,
    vocabulary_copy_path,
    vocabulary_path,
)

# Not a new name: the names of tests must be the same in every process.
GENERATION = "20260102T030405-0123abcd"
FILE_NAMES = vocabulary_file_names(["page", "../x", "Page"]).values()
VOCABULARIES = [vocabulary_path("0a" * 32, name) for name in FILE_NAMES]
# Of format version 1.
VOCABULARIES.append(f"vocabulary/{GENERATION}/page.txt")
REPLACED = [*shard_paths(GENERATION, "train", 3, num_shards=12), *VOCABULARIES]
REPLACED += [rejects_path(GENERATION), marker_path(GENERATION), sources_path(GENERATION), summary_path(GENERATION)]
# Of format version 1.
REPLACED.append(f"rejected/{GENERATION}-{'0a' * 8}.jsonl")
STRINGS = [strings_path(GENERATION, name) for name in FILE_NAMES]
GROUPS = groups_path(GENERATION)
REPLACED += [*STRINGS, GROUPS]
RUN = f"{runs_folder('/dataset', GENERATION)}/{'0f' * 16}".removeprefix("/dataset/")
TEMPORARY = f".{'9a' * 16}.tmp"


@pytest.mark.parametrize(
    "path",
    [*REPLACED, *(f"{RUN}.{ending}" for ending in ("rows", "examples", "rejects", "strings", "chunks", "sources"))],
)
def test_every_path_that_a_job_writes_is_recognised(path):
    assert is_written_by_prepare(path)
    assert is_vocabulary(path) == (path in VOCABULARIES)


@pytest.mark.parametrize("path", [*REPLACED, *map(vocabulary_copy_path, VOCABULARIES)])
def test_an_incomplete_file_is_recognised(path):
    assert is_written_by_prepare(path + TEMPORARY)


@pytest.mark.parametrize(
    "path",
    [
        *map(vocabulary_copy_path, VOCABULARIES),
        f"{RUN}.rows{TEMPORARY}",
        f"x/{RUN}.rows",
        f"{RUN}.rows.gz",
        f"data/{GENERATION}/notes.txt",
        "data/writer.json",
        f"data/{GENERATION}/page.parquet",
        f"data/{GENERATION}/strings/sha256.0.parquet",
        f"data/{GENERATION}/strings/more/page.parquet",
        "data/2026/train-00000-of-00001.tfrecord",
        "data/raw.jsonl",
        f"rejected/{GENERATION}-.jsonl",
        f"rejected/{GENERATION[:-1]}.jsonl",
        "vocabulary/2026/page.txt",
        "manifest.json",
    ],
)
def test_other_paths_are_not_recognised(path):
    assert not is_written_by_prepare(path)


def test_incomplete_commits_are_recognised_but_commits_are_not():
    path = commit_path(12)
    # `supports_create_once` creates a temporary file beside a temporary file.
    assert is_written_by_prepare(path + TEMPORARY) and is_written_by_prepare(path + 2 * TEMPORARY)
    assert not is_written_by_prepare(path) and not is_written_by_prepare(LOCK)


def test_the_files_that_every_summary_names_are_recognised():
    named = {path for path in REPLACED if is_named_by_summary(path)}
    assert named == {rejects_path(GENERATION), sources_path(GENERATION), summary_path(GENERATION), *STRINGS, GROUPS}


def test_the_generation_of_a_path_is_found():
    of_none = {path for path in VOCABULARIES if GENERATION not in path}
    for path in (*REPLACED, RUN, f"{RUN}.rows", f"data/{GENERATION}"):
        assert generation_of(path) == (None if path in of_none else GENERATION)
    for path in (f"data/{GENERATION}0", f"x/{GENERATION}", f"data/x/{GENERATION}", f"data/{GENERATION[:-1]}"):
        assert generation_of(path) is None


def test_a_new_generation_has_the_form_of_a_generation():
    assert is_written_by_prepare(rejects_path(new_generation()))


def test_the_examples_in_docstrings_are_correct():
    assert doctest.testmod(paths).failed == 0
