"""Where a field names the split, a group in two splits ends the job before anything is published."""

import itertools
import json
import types

import plain_prepare
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepare_jobs import contents, load, read_whole

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.format import count_strings
from pipeline.format.groups import GROUP, SharedGroup, find_shared_groups
from pipeline.format.index import read_index
from pipeline.format.string_counts import tabulate_counts
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.inspection.verify import verify
from pipeline.shuffle.hashing import choose_split
from pipeline.writing import commit_log, groups
from pipeline.writing.compact import compact
from pipeline.writing.groups import KnownGroups
from pipeline.writing.publish import Publisher

SPLITS = ("train", "validation", "test")
SCHEMA = """\
id: id
steps: {x: {dtype: float32}}
label: {name: y, kind: class, classes: [a]}
group: who
splits: {from: part}
"""


@pytest.fixture
def prepare(tmp_path):
    """Returns a function that adds records, given as (id, group, split), to tmp_path/dataset, or makes it."""
    numbers = itertools.count()

    def prepare(*rows, schema=SCHEMA, output="dataset", **options):
        (tmp_path / "schema.yaml").write_text(schema)
        raw = tmp_path / f"{next(numbers)}.jsonl"
        records = [{"id": r, "x": [len(r)], "y": "a", "who": who, "part": part} for r, who, part in rows]
        raw.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        names = (str(raw),), str(tmp_path / "schema.yaml"), str(tmp_path / output)
        return plain_prepare.prepare(PrepareOptions(*names, append=True, **options))

    return prepare


ONE = [("a", "p", "train"), ("b", "p", "train"), ("c", "q", "test"), ("d", "ü", "validation")]
IN_TWO = (
    'the group "p" (field who) is in two splits: train (for example the record "{train}") and test (for example the '
    'record "{test}"){more}; expected all records of a group in one split. Nothing was published. Correct the splits '
    "of these records, leave them out, or remove `group` from the schema."
)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_a_group_in_two_splits_of_new_records_is_an_error(tmp_path, prepare, num_shards):
    rows = [*ONE[1:], ("e", "p", "test"), ("f", "q", "train"), ("g", "ü", "test")]
    with pytest.raises(UserError) as caught:
        prepare(*rows, num_shards=num_shards)
    assert str(caught.value).startswith(f"{tmp_path}/dataset: ")
    message = IN_TWO.format(train="b", test="e", more=", and so are 2 other groups")
    assert str(caught.value).endswith(message)
    assert not (tmp_path / "dataset/manifest.json").exists()


def test_a_group_that_an_earlier_commit_has_in_another_split_is_an_error(tmp_path, prepare):
    prepare(*ONE, num_shards=2)
    prepare(("e", "q", "test"), ("f", "r", "train"))
    read_whole(tmp_path / "dataset")
    before = load(tmp_path / "dataset")
    with pytest.raises(UserError, match='the group "p" .* train .*the record "[ab]".* and test .*the record "g"'):
        prepare(("g", "p", "test"), ("h", "s", "test"))
    assert read_whole(tmp_path / "dataset") == before
    compact(str(tmp_path / "dataset"), num_shards=1)
    with pytest.raises(UserError, match='the group "q" .*train.* the record "i".* and test .*the record "[ce]"'):
        prepare(("i", "q", "train"))


def test_a_group_that_another_job_publishes_meanwhile_in_another_split_is_an_error(prepare, monkeypatch):
    prepare(*ONE)
    publish, others = Publisher.publish, [("e", "new", "test")]

    def publish_later(publisher, *arguments):
        if others:
            prepare(others.pop())
        return publish(publisher, *arguments)

    monkeypatch.setattr(Publisher, "publish", publish_later)
    with pytest.raises(UserError, match='the group "new" .* train .*"f".* and test .*"e"'):
        prepare(("f", "new", "train"))


def test_a_share_of_train_is_taken_as_whole_groups(tmp_path, prepare):
    schema = SCHEMA.replace("from: part", "from: part, validation: 0.4")
    rows = [(f"{who}-{n}", who, "test" if who == "p0" else "train") for n in range(4) for who in ("p0", *"bcdefghijk")]
    manifest = prepare(*rows, schema=schema, seed=1)
    found = {}
    for name, split in manifest.splits.items():
        for shard in split.shards:
            index = read_index((tmp_path / "dataset" / shard.index_path).read_bytes(), shard)
            found |= dict(
                (record_id, (who, name))
                for record_id, who in zip(index["id"].to_pylist(), index["group"].to_pylist(), strict=True)
            )
    shares = {"validation": 0.4, "train": 0.6}
    expected = {
        record_id: (who, part if part == "test" else choose_split(who, shares, seed=1)) for record_id, who, part in rows
    }
    assert found == expected
    assert {split for _, split in expected.values()} == {*SPLITS}
    read_whole(tmp_path / "dataset")


def test_compacted_groups_are_those_of_one_job(tmp_path, prepare):
    for row in ONE:
        prepare(row)
    compact(str(tmp_path / "dataset"), num_shards=1)
    prepare(*ONE, output="whole")
    (one,), (other,) = (contents(tmp_path / name)["data/0/groups.parquet"] for name in ("dataset", "whole"))
    assert one == other
    read_whole(tmp_path / "dataset")


def test_verify_names_groups_in_two_splits_and_wrong_counts_of_groups(tmp_path, prepare, monkeypatch):
    monkeypatch.setattr(commit_log, "check_groups", lambda *_, **__: None)
    prepare(*ONE)
    prepare(("e", "p", "test"))
    generation = load(tmp_path / "dataset").generations[1]
    message = 'the group "p" (field who) is in two splits: train (for example the record "{}") and test (for example'
    faults = [(fault.file, fault.message) for fault in verify(str(tmp_path / "dataset")).faults]
    ((file, text),) = faults
    assert file == "manifest.json"
    assert any(text.startswith(message.format(name)) for name in "ab") and text.endswith('the record "e")')
    summary = tmp_path / "dataset" / summary_path(generation)
    values = json.loads(summary.read_bytes())
    del values["groups"]
    with pytest.raises(UserError, match="groups is missing, but the schema says the opposite"):
        GenerationSummary.parse(json.dumps(values).encode(), origin="it")
    path = f"data/{generation}/groups.parquet"
    (tmp_path / "dataset" / path).write_bytes(b"?")
    assert path in {fault.file for fault in verify(str(tmp_path / "dataset")).faults}


def test_without_a_field_that_names_the_split_no_groups_are_counted(tmp_path, prepare):
    prepare(*ONE, schema=SCHEMA.replace("{from: part}", "{train: 0.5, test: 0.5}"))
    assert not list(tmp_path.rglob("groups.parquet"))
    assert "groups" not in json.loads(next(tmp_path.rglob("summary.json")).read_bytes())
    read_whole(tmp_path / "dataset")


@settings(max_examples=20)
@given(
    parts=st.lists(
        st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(SPLITS)), max_size=9), min_size=1, max_size=3
    ),
    memory=st.sampled_from([1, 10**6]),
)
def test_the_groups_in_several_splits_are_those_of_a_plain_count(tmp_path_factory, parts, memory):
    folder, files = str(tmp_path_factory.mktemp("groups")), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(count_strings, "_BUFFER_BYTES", memory)
        for part in parts:
            counter = count_strings.StringCounter([GROUP], SPLITS, folder)
            for group, split in part:
                counter.add(split, GROUP, [group.encode()])
            files.append(counter.finish()[GROUP])
    expected = []
    for group in "abcdef":
        splits = tuple(name for name in SPLITS if any((group, name) in part for part in parts))
        if len(splits) > 1:
            expected.append(SharedGroup(group, splits))
    assert list(find_shared_groups(files, SPLITS, folder=folder)) == expected


GROUPS = st.dictionaries(st.text("abc", max_size=2), st.sampled_from(SPLITS), max_size=6)


@given(generations=st.lists(GROUPS, max_size=8), merged=st.integers(0, 8), max_bytes=st.sampled_from([0, 60, 10**6]))
def test_known_groups_find_each_group_in_two_splits(generations, merged, max_bytes):
    """Against a dictionary of all groups. Generations are merged once, as by a compaction."""
    known, everything, live = KnownGroups(max_bytes), {}, []
    schema, contents = types.SimpleNamespace(split_names=SPLITS), {}

    def read_counts(path, splits, *, sha256):
        yield tabulate_counts(
            {split: {name.encode(): 1 for name, found in contents[path] if found == split} for split in splits}, splits
        )

    def summary(number, rows):
        contents[f"dataset/{number}"] = rows
        return types.SimpleNamespace(
            generation=str(number), groups=types.SimpleNamespace(path=str(number), sha256=""), record_schema=schema
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "read_counts", read_counts)
        for number, added in enumerate(generations):
            if number == merged:
                live = [summary("merged", list(everything.items()))]
            new = summary(number, list(added.items()))
            apart = known.are_apart("dataset", [*live, new])
            is_apart = all(everything.get(name, split) == split for name, split in added.items())
            assert not (apart and not is_apart)
            if max_bytes == 10**6:
                assert apart == is_apart  # no two of so few names share 48 bits of their hash
            if is_apart:
                live.append(new)
                everything |= added
        both = [("a", "train"), ("a", "test")]
        assert not known.are_apart("dataset", [*live, summary("both", both)])
