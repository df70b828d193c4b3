"""The index of a shard: what is written is read, in row groups, and a small file can never take much memory."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT

from pipeline.format import index
from pipeline.format.index import IndexWriter, build_index, index_schema, read_index, serialize_index
from pipeline.format.models import Shard
from pipeline.format.tfrecord import FRAME_BYTES
from pipeline.schema.labels import Label

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
LABELS = {
    "class": TEXTS,
    "multilabel": st.lists(TEXTS, max_size=3),
    "distribution": st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2),
    "regression": st.floats(width=32, allow_nan=False),
    "step_class": st.none(),
}
CLASSES = {"class": ["a"], "multilabel": ["a"], "distribution": ["a", "b"], "regression": [], "step_class": ["a"]}


def label_of(kind):
    return Label(name="y", kind=kind, classes=CLASSES[kind])


def shard_of(records, num_bytes=0):
    path, digest = "data/a/train-00000-of-00001", "0" * 64
    return Shard(
        path=path, records=records, steps=0, bytes=num_bytes, sha256=digest, index_path=path, index_sha256=digest
    )


def table_of(rows, kind="class"):
    """Returns an index of rows (bytes, steps, id, label, group, source, key)."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * 7
    names = ("num_bytes", "num_steps", "ids", "labels", "groups", "sources", "keys")
    return build_index(label_of(kind), **{name: list(values) for name, values in zip(names, columns, strict=True)})


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("rows_per_table", [1, 7, 10, 35, 100])
def test_the_bytes_do_not_depend_on_how_the_rows_are_added(monkeypatch, kind, rows_per_table):
    monkeypatch.setattr(index, "_ROW_GROUP_ROWS", 10)
    monkeypatch.setattr(index, "_MAX_TABLES", 4)
    labels = {"class": "a", "multilabel": ["a", "a"], "distribution": [0.25, 0.75], "regression": 0.5}
    for count in (0, 1, 9, 10, 11, 20, 33):
        rows = [
            (n, 1, str(n), labels.get(kind), "g" * (n % 3) or None, f"/raw/{n % 2}" if n % 5 else None, n)
            for n in range(count)
        ]
        whole, writer, start = table_of(rows, kind), IndexWriter(index_schema(label_of(kind))), 0
        for first in range(0, count, rows_per_table):
            part = rows[first : first + rows_per_table]
            columns = table_of(part, kind)
            places = columns["offset"].to_numpy() + start
            writer.add(columns.set_column(0, "offset", pa.array(places)))
            start += sum(num_bytes + FRAME_BYTES for num_bytes, *_ in part)
        buffer = io.BytesIO()
        options = {"use_dictionary": list(index._REPEATED), "compression": "zstd", "row_group_size": 10}
        encoding = dict.fromkeys(index._ASCENDING, "DELTA_BINARY_PACKED")
        pq.write_table(whole.combine_chunks(), buffer, column_encoding=encoding, **options)
        assert writer.finish().to_pybytes() == serialize_index(whole) == buffer.getvalue()


@pytest.mark.parametrize("kind", LABELS)
@settings(max_examples=settings.default.max_examples // 5)
@given(data=st.data())
def test_the_rows_that_are_written_are_read(kind, data):
    row = st.tuples(
        st.integers(0, 2**40),
        st.integers(1, 2**31 - 1),
        TEXTS,
        LABELS[kind],
        st.none() | TEXTS,
        st.none() | TEXTS,
        st.integers(0, 2**64 - 1),
    )
    table = table_of(data.draw(st.lists(row, max_size=12)), kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_ROW_GROUP_ROWS", 5)
        written = serialize_index(table)
    shard = shard_of(len(table))
    read = read_index(written, shard)
    assert read.schema == index_schema(label_of(kind)) == table.schema
    assert read.to_pylist() == table.to_pylist()
    some = ["num_steps", "id"]
    assert read_index(written, shard, some).to_pylist() == table.select(some).to_pylist()
    assert pq.ParquetFile(io.BytesIO(written)).num_row_groups == max(1, -(-len(table) // 5))
    older = table.drop_columns(["key"])
    assert read_index(serialize_index(older), shard).to_pylist() == older.to_pylist()


def test_the_statistics_of_a_row_group_are_its_first_and_last_key():
    keys = np.arange(200_000, dtype=np.uint64) * np.uint64(2**64 // 200_000)
    table = table_of([(1, 1, "", "", None, None, 0)] * len(keys)).set_column(9, "key", pa.array(keys))
    metadata = pq.read_metadata(io.BytesIO(serialize_index(table)))
    found = [metadata.row_group(number).column(9).statistics for number in range(metadata.num_row_groups)]
    starts = range(0, 200_000, 65_536)
    assert [(s.min, s.max) for s in found] == [(keys[a], keys[min(a + 65_536, 200_000) - 1]) for a in starts]


def repeated(value, count):
    """Returns the same string `count` times. A Parquet file stores it once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value]))


def lists(values, size):
    """Returns values in lists of `size`."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, size, dtype=np.int32)), values)


# Small files, and what each is compared with: (columns other than null, number of rows that the manifest claims, its
# claim of the bytes of the shard, the fault).
BOMBS = {
    "rows": (lambda: {"offset": np.zeros(2_000_000, np.int64)}, 9, 999, "has 2,000,000 rows, but the manifest says 9"),
    "one long id": (lambda: {"id": pa.array(["a" * 60_000_000])}, 1, 999, "takes 60,0"),
    "a long id that is stored once": (lambda: {"id": repeated("a" * 900_000, 2000)}, 2000, 10**6, "takes 1,800,0"),
    "long labels": (lambda: {"label": lists(repeated("a" * 300_000, 6000), 3)}, 2000, 10**6, "takes 1,800,0"),
    "many labels": (lambda: {"label": lists(repeated("a", 9_000_000), 9_000_000)}, 1, 999, "takes 72,"),
}
READ = """
import json, sys
from pipeline.format.index import read_index
from pipeline.format.models import Shard

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

def read(path, shard, columns):
    with open(path, "rb") as file:
        data = file.read()
    try:
        return f"{read_index(data, Shard(**shard), columns).num_rows} rows"
    except ValueError as error:
        return str(error)

paths, small, shards = json.loads(sys.argv[1])
assert read(small, shards[0] | {"records": 2}, None) == "2 rows"  # loads what every reader needs
before = peak()
for path, shard in zip(paths, shards):
    for columns in (None, ["offset", "num_bytes", "num_steps"]):
        print(json.dumps([read(path, shard, columns), peak() - before]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux to measure the peak of a process")
def test_a_small_file_cannot_take_much_memory(tmp_path):
    paths, shards = [], []
    for name, (columns, records, num_bytes, _) in BOMBS.items():
        given = columns()
        num_rows = len(next(iter(given.values())))
        types = index_schema(label_of("multilabel" if "labels" in name else "class"))
        table = pa.table({field.name: given.get(field.name, pa.nulls(num_rows, field.type)) for field in types})
        # Without the types of Arrow, a reader expects plain strings.
        pq.write_table(table, tmp_path / name, compression="zstd", store_schema=False)
        assert (tmp_path / name).stat().st_size < 200_000
        paths.append(str(tmp_path / name))
        shards.append(shard_of(records, num_bytes).model_dump())
    (tmp_path / "small").write_bytes(serialize_index(table_of([(1, 1, "a", "a", "a", None, 5)] * 2)))
    arguments = json.dumps([paths, str(tmp_path / "small"), shards])
    done = subprocess.run([sys.executable, "-c", READ, arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    read = list(map(json.loads, done.stdout.splitlines()))
    assert [peak for _, peak in read if peak > 40e6] == [], read
    for (message, _), (_, _, _, fault) in zip(read[::2], BOMBS.values(), strict=True):
        assert message.startswith(fault)
    # The trainer reads only the numbers.
    assert [message for message, _ in read[1::2]] == [read[0][0], "1 rows", "2000 rows", "2000 rows", "1 rows"]


@pytest.mark.parametrize("name", ["offset", "id", "key"])
def test_a_column_of_another_type_or_name_is_named(name):
    table = table_of([(1, 1, "a", "a", "a", None, 5)])
    place = table.column_names.index(name)
    buffer = io.BytesIO()
    pq.write_table(table.set_column(place, name, pa.array([0.5])), buffer)
    with pytest.raises(ValueError, match=r"^has columns of other types than an index: \["):
        read_index(buffer.getvalue(), shard_of(1))
    pq.write_table(table.append_column(name, table[name]), buffer := io.BytesIO())
    with pytest.raises(ValueError, match=r"^has several columns of the same name: offset, "):
        read_index(buffer.getvalue(), shard_of(1))


def test_bytes_that_are_no_parquet_file_are_an_error():
    for data in (b"", b"PAR1", b"PAR1" * 9):
        with pytest.raises(ValueError, match="^not a Parquet file: "):
            read_index(data, shard_of(1))
