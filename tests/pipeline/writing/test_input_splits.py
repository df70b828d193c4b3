"""Raw files that are given by split: the input of a file names the split of its records."""

import hashlib
import json
import os

import plain_prepare
import pytest
from datasets import call
from prepare_jobs import contents, load, read_whole

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.format.index import read_index
from pipeline.format.sources import SourceRow, SourcesFile, read_sources, write_sources
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.inspection.inspect import print_details
from pipeline.inspection.verify_log import Sources
from pipeline.inspection.verify_records import OriginCheck
from pipeline.inspection.warnings import find_warnings
from pipeline.raw.find_files import RawFile, find_all_files
from pipeline.raw.json_lines import split_file
from pipeline.schema.auto_classes import parse_schema
from pipeline.schema.input_splits import use_inputs
from pipeline.schema.schema import Schema, SplitFromInputs
from pipeline.shuffle.hashing import choose_split
from pipeline.writing.collect_classes import collect_classes
from pipeline.writing.compact import compact

STEPS = "steps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a]}\n"
SHARE = "id: id\n" + STEPS + "splits: {validation: 0.3}\n"
SHARES = {"validation": 0.3, "train": 0.7}


class Folder:
    """A folder with raw files and datasets."""

    def __init__(self, path):
        self.path = path

    def write(self, name, ids):
        records = [{"id": n, "x": [n], "y": "a"} if isinstance(n, int) else n for n in ids]
        (self.path / name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
        return str(self.path / name)

    def prepare(self, *, raw=(), schema=SHARE, output="dataset", **options):
        (self.path / "schema.yaml").write_text(schema)
        options = {name: (value,) if isinstance(value, str) else value for name, value in options.items()}
        names = raw, str(self.path / "schema.yaml"), str(self.path / output)
        return plain_prepare.prepare(PrepareOptions(*names, append=True, **options))

    def rows(self, output="dataset"):
        """Returns {id: (split, name of the raw file)} of a dataset, after checking every byte of it."""
        found = {}
        for name, split in read_whole(self.path / output).splits.items():
            for shard in split.shards:
                rows = read_index((self.path / output / shard.index_path).read_bytes(), shard)
                for record_id, source in zip(rows["id"].to_pylist(), rows["source"].to_pylist(), strict=True):
                    found[record_id] = (name, os.path.basename(source))
        return found

    def sources(self, output="dataset"):
        """Returns (path, split) of each raw file of a dataset, by generation."""
        found = []
        for generation in load(self.path / output).generations:
            path = self.path / output / summary_path(generation)
            file = GenerationSummary.parse(path.read_bytes(), origin="it").sources
            (block,) = read_sources(str(self.path / output), file)
            found.append(list(zip(block["path"].to_pylist(), block["split"].to_pylist(), strict=True)))
        return found


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_the_input_names_the_split_and_a_share_of_train_moves_by_the_hash(folder):
    train, test = folder.write("a.jsonl", range(60)), folder.write("b.jsonl", range(100, 120))
    more, other = folder.write("c.jsonl", range(60, 90)), folder.write("d.jsonl", range(200, 203))
    folder.prepare(train=train, test=test)
    folder.prepare(train=more, validation=other)
    expected = {str(n): (choose_split(str(n), SHARES, seed=0), "a.jsonl" if n < 60 else "c.jsonl") for n in range(90)}
    expected |= {str(n): ("test", "b.jsonl") for n in range(100, 120)}
    expected |= {str(n): ("validation", "d.jsonl") for n in range(200, 203)}
    assert folder.rows() == expected
    assert folder.sources() == [[(train, "train"), (test, "test")], [(more, "train"), (other, "validation")]]
    compact(str(folder.path / "dataset"), num_shards=1)
    whole = folder.prepare(train=(train, more), test=test, validation=other, output="whole")
    assert load(folder.path / "dataset").fingerprint == whole.fingerprint
    assert (
        contents(folder.path / "dataset")["data/0/sources.parquet"]
        == (contents(folder.path / "whole")["data/0/sources.parquet"])
    )
    assert folder.rows() == expected


def test_of_duplicates_in_two_inputs_the_one_with_the_smallest_digest_stays(folder):
    both = [{"id": n, "x": [n], "y": "a"} for n in range(30)], [{"id": n, "x": [n, n], "y": "a"} for n in range(30)]
    inputs = {name: folder.write(f"{name}.jsonl", rows) for name, rows in zip(("train", "test"), both, strict=True)}
    schema = "id: id\n" + STEPS
    folder.prepare(**inputs, schema=schema, max_rejected=0.5)
    alone = {name: folder.prepare(**{"train": path}, schema=schema, output=name) for name, path in inputs.items()}
    digest = {}
    for name, manifest in alone.items():
        (shard,) = manifest.splits["train"].shards
        rows = read_index((folder.path / name / shard.index_path).read_bytes(), shard).to_pylist()
        data = (folder.path / name / shard.path).read_bytes()
        for row in rows:
            example = data[row["offset"] + 12 :][: row["num_bytes"]]
            digest[row["id"], name] = hashlib.sha256(example).digest()
    expected = {str(n): min(inputs, key=lambda name: digest[str(n), name]) for n in range(30)}
    assert {record_id: split for record_id, (split, _) in folder.rows().items()} == expected
    assert {*expected.values()} == {"train", "test"}


def test_equal_records_without_id_in_two_inputs_are_copies_that_stay_in_their_splits(folder):
    rows = [{"x": [1], "y": "a"}, {"x": [2], "y": "a"}]
    train, test = folder.write("a.jsonl", rows), folder.write("b.jsonl", rows[:1] * 2)
    manifest = folder.prepare(train=train, test=test, schema=STEPS)
    found = folder.rows()
    assert sorted(found.values()) == [("test", "b.jsonl")] * 2 + [("train", "a.jsonl")] * 2
    assert sum(split.copies for split in manifest.splits.values()) == 2
    folder.prepare(test=folder.write("c.jsonl", rows), schema=STEPS)
    compact(str(folder.path / "dataset"), num_shards=1)
    assert sorted(split for split, _ in folder.rows().values()) == ["test"] * 4 + ["train"] * 2


def test_without_validation_records_a_warning_has_the_way_out_and_inspect_says_what_names_the_split(folder, capsys):
    manifest = folder.prepare(train=folder.write("a.jsonl", [1, 2]), schema="id: id\n" + STEPS)
    assert find_warnings(manifest)[1:] == [
        "no record is in the split validation, so that a run keeps its last checkpoint instead of the best one; "
        "give files with --validation, or to take a tenth of the train records, choose splits: {validation: 0.1} in "
        "the schema"
    ]
    print_details(manifest, "dataset")
    assert "The input of its raw file (--train, --validation or --test) names the split" in capsys.readouterr().out


def test_the_splits_of_the_schema_are_those_of_the_inputs():
    schema = Schema.parse(SHARE)
    assert schema.splits == SplitFromInputs(inputs=True, validation=0.3)
    assert schema == Schema.parse(SHARE.replace("{validation", "{inputs: true, validation"))
    assert schema == Schema.parse(json.dumps(schema.canonical()))
    assert use_inputs(schema) is schema
    plain = use_inputs(Schema.parse(STEPS))
    assert plain.splits == SplitFromInputs(inputs=True)
    assert plain.split_names == ("train", "validation", "test")
    assert Schema.parse(json.dumps(plain.canonical())) == plain
    assert plain.fingerprint != Schema.parse(STEPS).fingerprint


def test_open_classes_are_those_of_the_train_input_without_the_moved_share(folder):
    rows = {n: {"id": n, "x": [n], "y": f"c{n}"} for n in range(8)}
    files = find_all_files(
        {"train": folder.write("a.jsonl", map(rows.get, range(6))), "test": folder.write("b.jsonl", [rows[6], rows[7]])}
    ).files
    schema = parse_schema(SHARE.replace("[a]", "auto"))
    found = collect_classes([chunk for file in files for chunk in split_file(file)], schema, seed=0)
    assert found.ordered() == [f"c{n}" for n in range(6) if choose_split(str(n), SHARES, seed=0) == "train"]
    assert 0 < len(found.ordered()) < 6


@pytest.mark.parametrize("splits", ["{train: 0.9, test: 0.1}", "{from: part}", "{from: part, validation: 0.1}"])
def test_other_splits_in_the_schema_are_refused(folder, splits):
    message = (
        r"schema: splits: .*: the inputs \(--train, --validation, --test\) name the splits; expected no splits, or"
    )
    with pytest.raises(UserError, match=message):
        folder.prepare(train=folder.write("a.jsonl", [1]), schema=STEPS + f"splits: {splits}\n")


def test_a_job_without_the_inputs_that_the_schema_or_the_dataset_needs_is_refused(folder):
    train = folder.write("a.jsonl", [1])
    with pytest.raises(UserError, match=r'splits: {"validation": 0.3}: needs raw files that are given by split, with'):
        folder.prepare(raw=(train,))
    with pytest.raises(UserError, match="given for validation and test only; a new dataset also needs those of train"):
        folder.prepare(validation=train, test=train)
    with pytest.raises(UserError, match=r"given both by split \(train\) and without; expected one of both"):
        folder.prepare(train=train, raw=(train,))
    folder.prepare(train=train)
    with pytest.raises(UserError, match="the input of a raw file names its split in this dataset. Give the new files"):
        folder.prepare(raw=(train,), schema="id: id\n" + STEPS)


def test_a_file_in_two_inputs_is_refused_also_under_another_name(folder):
    a, b = folder.write("a.jsonl", [1]), folder.write("b.jsonl", [2])
    found = find_all_files({"train": [a], "test": f"{folder.path}/b*"})
    assert found.files == [RawFile(a, os.path.getsize(a), "train"), RawFile(b, os.path.getsize(b), "test")]
    os.symlink(a, folder.path / "c.jsonl")
    for path in (str(folder.path), f"{folder.path}/c.jsonl"):
        with pytest.raises(
            UserError, match=r"/[ac].jsonl: is in two inputs, train and test; expected each raw file in"
        ):
            find_all_files({"train": a, "test": [path]})
    with pytest.raises(UserError, match='raw files of the split "dev": expected the splits train, validation, test'):
        find_all_files({"train": a, "dev": b})


@pytest.mark.parametrize("change", ["no", "content"])
def test_a_file_that_the_dataset_has_for_another_split_is_refused(folder, capsys, change):
    a, b = folder.write("a.jsonl", [1]), folder.write("b.jsonl", [2])
    folder.prepare(train=a, test=b)
    if change == "content":
        folder.write("a.jsonl", [1, 3])
    names = ("--schema", folder.path / "schema.yaml", "--output", folder.path / "dataset")
    status, _, lines = call(capsys, "prepare", "--append", "--test", a, *names, "--changed_inputs", "add")
    assert (status, lines) == (
        1,
        [
            f"lengthwise prepare: {a}: is given for the split test, but the dataset has it already in its split train. "
            "Give it for the same split, or leave it out; to move it, prepare all raw files again with --overwrite."
        ],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["raw", "--train", "a"], "argument --train: not allowed with RAW (raw); give all raw files by split"),
        (["--test", "a"], "argument --test: expected --train, too: without it, there is nothing to train on"),
    ],
)
def test_flags_that_exclude_each_other_are_refused(capsys, arguments, message):
    status, _, lines = call(capsys, "prepare", "--schema", "s.yaml", "--output", "d", *arguments)
    assert status == 2
    assert lines[-1].startswith(f"lengthwise prepare: {message}")


def test_verify_finds_a_record_in_another_split_than_that_of_its_raw_file(folder):
    train, test = folder.write("a.jsonl", range(40)), folder.write("b.jsonl", [50])
    manifest = folder.prepare(train=train, test=test)
    sources = Sources(frozenset([train, test]), {"train": {train}, "test": {test}})
    moved = next(str(n) for n in range(40) if choose_split(str(n), SHARES, seed=0) == "validation")
    stays = next(str(n) for n in range(40) if choose_split(str(n), SHARES, seed=0) == "train")

    def check(split, record_id, source):
        OriginCheck(manifest, split, sources).check({"id": record_id, "group": None, "source": source})

    check("train", stays, train)
    check("validation", moved, train)
    check("test", stays, test)
    check("train", stays, None)
    for split, record_id, source, given in (
        ("train", stays, test, "test"),
        ("validation", stays, train, "train"),
        ("test", stays, train, "train"),
    ):
        with pytest.raises(ValueError, match=f"raw file '{source}' was given for the split {given}, not for {split}"):
            check(split, record_id, source)
    with pytest.raises(ValueError, match="belongs to the split validation, not to train"):
        check("train", moved, train)


def test_sources_have_a_split_all_or_none(tmp_path):
    rows = [SourceRow("a", 1, 1, bytes(32), "train"), SourceRow("b", 1, 1, bytes(32))]
    for some in (rows, rows[::-1]):
        some = [row._replace(path=path) for row, path in zip(some, "ab", strict=True)]
        with (
            open(tmp_path / "it", "wb") as file,
            pytest.raises(ValueError, match="some of them have a split, and some"),
        ):
            write_sources(file, some)
    for some in (rows[:1], rows[1:]):
        with open(tmp_path / "it", "wb") as file:
            write_sources(file, some)
        sha256 = hashlib.sha256((tmp_path / "it").read_bytes()).hexdigest()
        (block,) = read_sources(str(tmp_path), SourcesFile(path="it", sha256=sha256, files=1, bytes=1))
        assert block.to_pylist()[0].get("split") == some[0].split
