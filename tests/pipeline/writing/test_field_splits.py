"""A field of the record names its split, and a hash moves a share of the train records to other splits."""

import hashlib
import json
import math

import plain_prepare
import pytest
from prepare_jobs import read_whole

from pipeline.beam.prepare import PrepareOptions
from pipeline.errors import UserError
from pipeline.format.index import read_index
from pipeline.inspection.inspect import print_details, summarize
from pipeline.inspection.verify_log import Sources
from pipeline.inspection.verify_records import OriginCheck

SHARES = {"validation": 0.1, "test": 0.25}
STEPS = "id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a]}\n"
SCHEMA = STEPS + "splits: {test: 0.25, from: part, validation: 0.1}\n"
RECORDS = [
    {"id": f"r{n}", "x": [n], "y": "a", "part": "test" if n % 5 == 0 else "validation" if n % 7 == 0 else "train"}
    for n in range(600)
]


def prepare(folder, records, *, schema=SCHEMA, **options):
    """Adds records to folder/dataset, or makes it."""
    (folder / "schema.yaml").write_text(schema)
    raw = folder / f"{len(list(folder.glob('*.jsonl')))}.jsonl"
    raw.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    options = PrepareOptions((str(raw),), str(folder / "schema.yaml"), str(folder / "dataset"), append=True, **options)
    return plain_prepare.prepare(options)


def split_of_each(folder):
    """Returns the split of each record of folder/dataset, by id."""
    manifest = read_whole(folder / "dataset")
    return {
        record_id: name
        for name, split in manifest.splits.items()
        for shard in split.shards
        for record_id in read_index((folder / "dataset" / shard.index_path).read_bytes(), shard)["id"].to_pylist()
    }


def expected_split(record, *, seed):
    """Returns the split of a record, computed here from the definition of the hash."""
    if record["part"] != "train":
        return record["part"]
    digest = hashlib.sha256(f"lengthwise/split/{seed}/{record['id']}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "validation" if position < 0.1 else "test" if position < 0.35 else "train"


def test_a_share_of_train_moves_by_a_hash_of_the_id_and_stays_there_when_data_is_added(tmp_path):
    prepare(tmp_path, RECORDS[:400], seed=4)
    first = split_of_each(tmp_path)
    prepare(tmp_path, RECORDS[400:])
    found = split_of_each(tmp_path)
    assert found == {record["id"]: expected_split(record, seed=4) for record in RECORDS}
    assert first == {record_id: split for record_id, split in found.items() if record_id in first}
    train = [record["id"] for record in RECORDS if record["part"] == "train"]
    for name, share in SHARES.items():
        moved = sum(found[record_id] == name for record_id in train)
        assert abs(moved - share * len(train)) < 3 * math.sqrt(share * (1 - share) * len(train))


def test_a_dataset_gets_no_records_with_other_shares(tmp_path):
    prepare(tmp_path, RECORDS[:50])
    with pytest.raises(
        UserError, match=r"splits.test is null, but 0.25 in the dataset\. Use the schema of the dataset"
    ):
        prepare(tmp_path, RECORDS[50:], schema=STEPS + "splits: {from: part, validation: 0.1}\n")


def test_verify_finds_a_train_record_whose_hash_moves_it_and_inspect_says_what_decides(tmp_path, capsys):
    manifest = prepare(tmp_path, RECORDS[:100])
    moved = next(r for r in RECORDS if r["part"] == "train" and expected_split(r, seed=0) == "validation")
    row = {"id": moved["id"], "group": None, "source": None}
    OriginCheck(manifest, "validation", Sources()).check(row)
    OriginCheck(manifest, "test", Sources()).check(row)  # the field may have said so
    with pytest.raises(ValueError, match=f"its id '{moved['id']}' belongs to the split validation, not to train"):
        OriginCheck(manifest, "train", Sources()).check(row)
    assert summarize(manifest)["split_rule"] == {"from": "part", **SHARES}
    print_details(manifest, "dataset")
    assert (
        "The field part of a record names its split. Of those in train, a hash of the id moves 0.1 to validation and "
        "0.25 to test.\n"
    ) in capsys.readouterr().out
