"""Changes the files of a dataset, as a fault or a person may do, for the tests of `verify`."""

import hashlib
import json
import struct

import pyarrow as pa

from pipeline.format.commit import Commit, commit_path, sha256_of
from pipeline.format.examples import decode_example, encode_example
from pipeline.format.index import read_index, serialize_index
from pipeline.format.manifest import Manifest, read_manifest
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.format.tfrecord import frame, walk
from pipeline.format.view import build_view


def frames_of(data):
    """Returns (start, end) of each record in the bytes of a shard."""
    frames = []
    position = 0
    while position < len(data):
        end = position + 16 + struct.unpack_from("<Q", data, position)[0]
        frames.append((position, end))
        position = end
    return frames


def walk_file(path):
    with open(path, "rb") as file:
        yield from walk(file, num_bytes=path.stat().st_size)


def at_row(dataset, shard, row):
    """Returns the offset of a record of a shard."""
    return frames_of((dataset / shard.path).read_bytes())[row][0]


def edit_manifest(dataset, change):
    """Calls `change` with the values of manifest.json, and updates the fingerprint."""
    path = dataset / "manifest.json"
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))
    try:
        values["fingerprint"] = Manifest.model_validate(values).computed_fingerprint()
    except ValueError:  # the change makes the manifest invalid
        return
    path.write_text(json.dumps(values))


def edit(*keys, by=None, to=None):
    """Returns a function that changes one value of the manifest, by a difference or to a new value."""

    def change(values):
        *path, last = keys
        for key in path:
            values = values[key]
        values[last] = to if by is None else values[last] + by

    change.__name__ = ".".join(map(str, keys))
    return change


def edit_json(path, change):
    """Calls `change` with the values of a JSON file."""
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values, indent=1))


def resign_log(dataset):
    """Writes the digests of all summaries and commits into the commits, and makes the manifest from them again.

    So a log that was edited is consistent, and only its contents can show what is wrong.
    """
    summaries, previous, number = {}, None, 0
    while (path := dataset / commit_path(number + 1)).exists():
        values = json.loads(path.read_bytes()) | {"previous_sha256": previous}
        for added in values["added"]:
            data = (dataset / summary_path(added["generation"])).read_bytes()
            added["summary_sha256"] = sha256_of(data)
            summary = GenerationSummary.parse(data, origin=added["generation"])
            summaries[added["generation"]] = summary, added["summary_sha256"]
        for generation in values["removed"]:
            summaries.pop(generation, None)
        data = json.dumps(values, indent=1).encode()
        path.write_bytes(data)
        previous, number = sha256_of(data), number + 1
    commit = Commit.parse(data, origin="the newest commit")
    (dataset / "manifest.json").write_bytes(build_view(commit, previous, list(summaries.values())).to_json())


def replace_listed(dataset, generation, path, data):
    """Replaces a file that the summary of a generation lists, and its digest in the summary, the commits and so on."""
    before = hashlib.sha256((dataset / path).read_bytes()).hexdigest()
    (dataset / path).write_bytes(data)
    summary = dataset / summary_path(generation)
    summary.write_text(summary.read_text().replace(before, hashlib.sha256(data).hexdigest()))
    resign_log(dataset)


def change_record(dataset, change, *, split="train", row=0):
    """Changes a decoded Example, and makes shard, index and manifest match its new bytes. Returns the shard."""
    shard = read_manifest(str(dataset)).splits[split].shards[0]
    records = [record.data for record in walk_file(dataset / shard.path)]
    example = decode_example(records[row])
    change(example)
    records[row] = encode_example(example)
    data = b"".join(map(frame, records))
    (dataset / shard.path).write_bytes(data)
    rows = read_index((dataset / shard.index_path).read_bytes(), shard)
    table = rows.to_pydict()
    table["id"][row] = example["id"][0].decode()
    table["num_bytes"] = [len(record) for record in records]
    table["offset"] = [sum(len(record) + 16 for record in records[:n]) for n in range(len(records))]
    index = serialize_index(pa.table(table, rows.schema))
    (dataset / shard.index_path).write_bytes(index)

    def update(values):
        entry = values["splits"][split]["shards"][0]
        entry["sha256"], entry["bytes"] = hashlib.sha256(data).hexdigest(), len(data)
        entry["index_sha256"] = hashlib.sha256(index).hexdigest()

    edit_manifest(dataset, update)
    return shard
