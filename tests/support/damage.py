"""Changes to the files of a dataset, such as a fault or a hand may make, for the tests of `verify`."""

import hashlib
import json
import struct

import pyarrow as pa

from pipeline.format.examples import decode_example, encode_example
from pipeline.format.index import read_index, serialize_index
from pipeline.format.manifest import Manifest, read_manifest
from pipeline.format.tfrecord import frame, walk


def frames_of(data):
    """(start, end) of each record of a shard."""
    with_lengths = []
    position = 0
    while position < len(data):
        end = position + 16 + struct.unpack_from("<Q", data, position)[0]
        with_lengths.append((position, end))
        position = end
    return with_lengths


def walk_file(path):
    with open(path, "rb") as file:
        yield from walk(file, num_bytes=path.stat().st_size)


def at_row(dataset, shard, row):
    return frames_of((dataset / shard.path).read_bytes())[row][0]


def edit_manifest(dataset, change):
    """Changes the values in manifest.json, and its fingerprint with them."""
    path = dataset / "manifest.json"
    values = json.loads(path.read_bytes())
    change(values)
    path.write_text(json.dumps(values))
    try:
        values["fingerprint"] = Manifest.model_validate(values).computed_fingerprint()
    except ValueError:  # a change that no manifest may have
        return
    path.write_text(json.dumps(values))


def edit(*keys, by=None, to=None):
    """A change of one value of the manifest."""

    def change(values):
        *path, last = keys
        for key in path:
            values = values[key]
        values[last] = to if by is None else values[last] + by

    change.__name__ = ".".join(map(str, keys))
    return change


def change_record(dataset, change, *, split="train", row=0):
    """Changes a decoded Example, and all that vouches for its bytes: shard, index and manifest."""
    shard = read_manifest(str(dataset)).splits[split].shards[0]
    records = [record.data for record in walk_file(dataset / shard.path)]
    example = decode_example(records[row])
    change(example)
    records[row] = encode_example(example)
    data = b"".join(map(frame, records))
    (dataset / shard.path).write_bytes(data)
    rows = read_index((dataset / shard.index_path).read_bytes())
    table = rows.to_pydict()
    table["num_bytes"] = [len(record) for record in records]
    table["offset"] = [sum(len(record) + 16 for record in records[:n]) for n in range(len(records))]
    index = serialize_index(pa.table(table, rows.schema))
    (dataset / shard.index_path).write_bytes(index)

    def tell(values):
        told = values["splits"][split]["shards"][0]
        told["sha256"], told["bytes"] = hashlib.sha256(data).hexdigest(), len(data)
        told["index_sha256"] = hashlib.sha256(index).hexdigest()

    edit_manifest(dataset, tell)
    return shard
