"""The transforms take raw files by split, and rejects are replayed into the split of their raw file."""

import json

import plain_prepare
from datasets import call
from prepare_jobs import load, read_whole

from pipeline.beam.parse_records import ParseRecords
from pipeline.beam.prepare import PrepareOptions
from pipeline.beam.prepare_files import PrepareFiles
from pipeline.beam.read_lines import ReadLines
from pipeline.beam.runners import make_pipeline
from pipeline.beam.write_dataset import WriteDataset
from pipeline.schema.input_splits import use_inputs
from pipeline.schema.schema import Schema

SCHEMA = "id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a, b]}\n"


def write(path, ids):
    rows = [{"id": n, "x": [n], "y": "abc"[n % 3]} for n in ids]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_all_ways_give_the_same_splits_and_rejects_return_to_theirs(tmp_path, capsys):
    files = {
        name: write(tmp_path / f"{name}.jsonl", range(begin, begin + 9)) for name, begin in (("train", 0), ("test", 9))
    }
    schema_file = tmp_path / "schema.yaml"
    schema_file.write_text(SCHEMA)
    options = {name: (path,) for name, path in files.items()}
    plain = plain_prepare.prepare(PrepareOptions((), str(schema_file), f"{tmp_path}/plain", max_rejected=1, **options))
    schema, pipeline = Schema.parse(SCHEMA), make_pipeline({})
    write_whole = WriteDataset(schema, f"{tmp_path}/whole", max_rejected=1)
    _ = pipeline | PrepareFiles(files, write_whole, keep_raw=True)
    by_inputs = use_inputs(schema)
    lines = pipeline | ReadLines(files)
    records = lines["lines"] | ParseRecords(by_inputs)
    write_parts = WriteDataset(by_inputs, f"{tmp_path}/parts", max_rejected=1)
    _ = {**records, "chunks": lines["chunks"]} | "Parts" >> write_parts
    pipeline.run().wait_until_finish()
    for name in ("whole", "parts"):
        assert read_whole(tmp_path / name).fingerprint == plain.fingerprint
    # The schema of the replay need not say that the inputs name the splits.
    schema_file.write_text(SCHEMA.replace("[a, b]", "[a, b, c]"))
    arguments = ("--replay", tmp_path / "whole/rejected", "--schema", schema_file, "--output", tmp_path / "whole")
    assert call(capsys, "prepare", "--append", *arguments)[0] == 0
    read_whole(tmp_path / "whole")
    counts = {name: split.label_counts for name, split in load(tmp_path / "whole").splits.items() if split.records}
    assert counts == {name: {"a": 3, "b": 3, "c": 3} for name in files}
