"""Records that share an id are counted exactly, however the ids are divided into files."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.serving.duplicate_ids import count_duplicates, describe_duplicates, pack_ids, write_ids

IDS = ["1", "a", "ü", "", "a" * 40, "\x00", "z"]


@settings(max_examples=20)
@given(
    # The ids of each batch of each part.
    parts=st.lists(st.lists(st.lists(st.sampled_from(IDS), max_size=4), min_size=1, max_size=3), min_size=1, max_size=3)
)
def test_the_counts_are_those_of_a_plain_count(tmp_path_factory, parts):
    folder = str(tmp_path_factory.mktemp("ids"))
    files = [write_ids([pack_ids(batch) for batch in batches], folder) for batches in parts]
    counts = collections.Counter(record_id for batches in parts for batch in batches for record_id in batch)
    shared = sorted((record_id for record_id, count in counts.items() if count > 1), key=str.encode)
    assert count_duplicates(files, folder=folder) == {
        "ids": len(shared),
        "records": sum(counts[record_id] for record_id in shared),
        "examples": shared[:3],
    }


@pytest.mark.parametrize(
    ("are_equal", "line"),
    [
        (False, '9 records share their id with another record (4 ids: "a", "b", "c", …). Each has a line, in no '),
        (True, "9 records are equal to another one and so have the same id and prediction (4 ids: "),
    ],
)
def test_the_line_has_the_counts_and_some_of_the_ids(are_equal, line):
    duplicates = {"ids": 4, "records": 9, "examples": ["a", "b", "c"]}
    assert describe_duplicates(duplicates, are_equal=are_equal).startswith(line)
