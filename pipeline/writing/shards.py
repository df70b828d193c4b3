"""Writes shards: TFRecord files and their indexes, from sorted records without their duplicates."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import quote
from pipeline.files import join, replace
from pipeline.format.count_strings import StringCounter
from pipeline.format.groups import GROUP
from pipeline.format.index import build_index, serialize_index
from pipeline.format.models import TRAIN, Shard
from pipeline.format.parts import Part, cut_blocks, divide
from pipeline.format.statistics import ColumnSums
from pipeline.format.sums import PackedSums
from pipeline.format.tfrecord import FRAME_BYTES, frames
from pipeline.raw.rejects import Origin, Reject
from pipeline.schema.record import Array
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows, missing_time
from pipeline.shuffle.copies import count_copies, numbers_copies
from pipeline.shuffle.encoded_records import COLUMNS, EncodedRecord, from_rows
from pipeline.shuffle.sorted_rows import Block, key_numbers
from pipeline.writing.many_files import ManyFiles, Writer, call_in_threads
from pipeline.writing.paths import runs_folder, shard_paths
from pipeline.writing.published_ids import PublishedShard
from pipeline.writing.shard_statistics import ShardStatistics, make_sums

# Records are written, and counted, in blocks that end at this number of records, or of bytes: large enough for NumPy to
# be fast, and small enough for the cache of a core.
_BLOCK_RECORDS, _BLOCK_BYTES = 1024, 2**20
# Default size of a shard in bytes: large enough for few reads, small enough that several readers can share the work.
SHARD_BYTES = 64 * 2**20
# The columns that the index of a shard needs. They stay in memory until the shard is complete.
_INDEX_COLUMNS = ["path", "id", "group", "num_steps", "key", "event_time", "num_labels", "truncated"]
# Records that wait in all shards until their block is full, in bytes: there may be a shard for each of many windows.
_WAITING_BYTES = 32 * 2**20


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """The numbers of one shard that the manifest needs. Those of several shards can be added up.

    Attributes:
        number: Number of the shard within its split.
        labels: Number of labels.
        truncated: Number of records that were shortened to max_length.
        length_counts: Number of records of each length.
        label_counts: Number of labels of each class.
        missing: Number of missing values of each feature that allows nulls.
        strings: Path of the file of counts of each feature with a vocabulary. The shards of one number share it.
        sums: The sums of each feature (or label) that has statistics; only in shards of the train split. Of the shards
            of one number in several windows, the first one has the sums of all.
        copies: Number of records that are equal to another one, without the first of each; 0 if the schema has an id.
        groups: Path of the file with the number of records of each group, which the shards of one number share. None
            unless groups must be checked.
    """

    split: str
    number: int
    shard: Shard
    labels: int
    truncated: int
    length_counts: dict[int, int]
    label_counts: dict[str, int]
    missing: dict[str, int]
    strings: dict[str, str]
    sums: dict[str, PackedSums]
    copies: int = 0
    groups: str | None = None

    @property
    def order(self) -> tuple[int, int, int]:
        """The key by which the shards of a split are sorted: by window, and then by number."""
        window = self.shard.window
        return int(window is not None), window or 0, self.number


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of a generation. All shards of one number are written together.

    There is one for each split; with windows, one for each split and window that has a record.

    Attributes:
        output: Folder of the dataset.
        published: Shards of earlier generations, whose ids no new record may have. `merge_into_shards` rejects these
            records. Their keys are comparable only if both have the same seed.
        windows: The windows of the dataset. None ignores the event times.
    """

    schema: Schema
    output: str
    generation: str
    published: tuple[PublishedShard, ...] = ()
    windows: EventWindows | None = None

    def write(
        self, number: int, blocks: Iterable[Block], *, num_shards: int, reject: Callable[[Reject], None]
    ) -> list[ShardSummary]:
        """Writes the shards with this number. A retried call writes the same bytes.

        Of the records with the same id, the record with the smallest content digest is kept, whatever its split. The
        others are rejected as duplicates.

        Args:
            blocks: The records of these shards, sorted by `sort_key`.
            reject: Called with each reject.
        """
        kept: EncodedRecord | None = None
        splits = self.schema.split_names
        folder = runs_folder(self.output, self.generation)
        strings = StringCounter(self.schema.vocabulary_sizes, splits, folder)
        groups = StringCounter([GROUP] if self.schema.checks_groups else [], splits, folder)
        sums = make_sums(self.schema)
        with ManyFiles(folder) as files:
            shards: dict[tuple[str, int | None], _OpenShard] = {}

            def open_shard(split: str, window: int | None) -> _OpenShard:
                path, index_path = shard_paths(self.generation, split, number, num_shards=num_shards, window=window)
                statistics = ShardStatistics(
                    self.schema,
                    sums=sums if split == TRAIN else {},
                    count_strings=functools.partial(strings.add, split),
                )
                file = files.open(join(self.output, path))
                return _OpenShard(self.schema, split, number, window, path, index_path, file, statistics)

            if self.windows is None:  # with windows, most splits and numbers have no record in most of them
                shards = {(split, None): open_shard(split, None) for split in splits}
            for block in blocks:
                is_kept, kept = _reject_duplicates(block.rows, kept, reject)
                for (split, window), rows, examples in self._partition(block, is_kept):
                    if (split, window) not in shards:
                        shards[split, window] = open_shard(split, window)
                    shards[split, window].add(rows, examples)
                    if self.schema.checks_groups:
                        groups.add(split, GROUP, rows["group"].cast(pa.binary()).to_pylist())
                if sum(shard.waiting_bytes for shard in shards.values()) > _WAITING_BYTES:
                    for shard in shards.values():
                        shard.flush()
            for shard in shards.values():
                shard.flush()
            files.finish()
        counts_files, groups_file = strings.finish(), groups.finish().get(GROUP)

        def finish(shard: _OpenShard) -> ShardSummary:
            return shard.finish(self.output, counts_files, groups_file)

        written = call_in_threads(finish, list(shards.values()))
        return _add_sums(sorted(written, key=lambda shard: shard.order), sums)

    def _partition(
        self, block: Block, is_kept: Array
    ) -> Iterator[tuple[tuple[str, int | None], pa.Table, list[bytes]]]:
        """Yields the records of a block that are kept by split and window, with the columns of _INDEX_COLUMNS."""
        places = np.flatnonzero(is_kept)
        rows = block.rows.select([*_INDEX_COLUMNS, "split"]).take(pa.array(places))
        splits = rows["split"].combine_chunks().dictionary_encode()
        of_split, windows = splits.indices.to_numpy(), np.zeros(len(rows), np.int64)
        if self.windows is not None:
            if rows["event_time"].null_count:
                raise missing_time(rows["id"].filter(rows["event_time"].is_null())[0].as_py(), self.windows)
            windows = self.windows.starts_of(rows["event_time"].to_numpy())
        order = np.lexsort((windows, of_split))  # stable, so that the records stay in the order of their keys
        rows = _select_index_columns(rows.take(pa.array(order)))
        of_split, windows, places = of_split[order], windows[order], places[order]
        changes = (of_split[1:] != of_split[:-1]) | (windows[1:] != windows[:-1])
        starts = np.append(0, np.flatnonzero(changes) + 1)[: len(rows)].tolist()
        for start, end in zip(starts, [*starts[1:], len(rows)], strict=False):
            split = splits.dictionary[int(of_split[start])].as_py()
            window = None if self.windows is None else int(windows[start])
            examples = [block.payloads[place] for place in places[start:end].tolist()]
            yield (split, window), rows[start:end], examples


def _add_sums(shards: list[ShardSummary], sums: Mapping[str, ColumnSums]) -> list[ShardSummary]:
    """Returns the shards of one number, of which the first of the train split has the sums of this split."""
    packed = {name: PackedSums.of(total) for name, column in sums.items() if (total := column.sums()) is not None}
    first = next((place for place, shard in enumerate(shards) if shard.split == TRAIN), None)
    if first is not None:
        shards[first] = dataclasses.replace(shards[first], sums=packed)
    return shards


def _reject_duplicates(
    rows: pa.Table, last_kept: EncodedRecord | None, reject: Callable[[Reject], None]
) -> tuple[Array, EncodedRecord | None]:
    """Rejects all rows except the first row of each id.

    Args:
        last_kept: The last record that was kept of the rows before.

    Returns:
        bool[rows], whether each row is kept; and the last record that was kept.
    """
    ids = rows["id"].to_pylist()
    is_kept = np.array([a != b for a, b in zip([last_kept and last_kept.id, *ids], ids, strict=False)], bool)
    # For each row, the place of the first row with its id; -1 if that is `last_kept`.
    first = np.maximum.accumulate(np.where(is_kept, np.arange(len(ids)), -1))
    duplicates = np.flatnonzero(~is_kept)
    if len(duplicates):
        firsts, which = np.unique(first[duplicates], return_inverse=True)
        kept = from_rows(rows.take(pa.array(firsts[firsts >= 0])))
        if firsts[0] < 0:
            assert last_kept is not None
            kept = [last_kept, *kept]
        for record, number in zip(from_rows(rows.take(pa.array(duplicates))), which.tolist(), strict=True):
            message = f"the id {quote(record.id)} is also the id of {_describe(kept[number].origin)}, which is kept"
            reject(Reject("duplicate_id", message, record.id, record.origin))
    if is_kept.any():
        (last_kept,) = from_rows(rows.slice(first[-1], 1))
    return is_kept, last_kept


def _describe(origin: Origin) -> str:
    return "another record" if origin.path is None else f"the record at byte {origin.byte_offset} of {origin.path}"


class _OpenShard:
    """A shard that is being written.

    Attributes:
        waiting_bytes: Bytes of the records that are not written yet.
    """

    def __init__(
        self,
        schema: Schema,
        split: str,
        number: int,
        window: int | None,
        path: str,
        index_path: str,
        file: Writer,
        statistics: ShardStatistics,
    ) -> None:
        self._schema, self._split, self._number, self._window, self._file = schema, split, number, window, file
        self._path, self._index_path, self._statistics = path, index_path, statistics
        self._digest = hashlib.sha256()
        # The records that are not written yet, a part of a block, each as one Example.
        self._block: list[Part] = []
        self.waiting_bytes = 0
        # int64[examples, 3], the bytes, steps and labels of the Examples that are written, by block.
        self._sizes = [np.zeros((0, 3), np.int64)]
        self._rows = [_select_index_columns(COLUMNS.empty_table())]

    def add(self, rows: pa.Table, examples: list[bytes]) -> None:
        """Writes the next records.

        Args:
            rows: The columns of _INDEX_COLUMNS.
        """
        self._rows.append(rows)
        counts = (rows[name].to_pylist() for name in ("num_steps", "num_labels"))
        for record in map(Part._make, zip(examples, *counts, strict=True)):
            self._block.append(record)
            self.waiting_bytes += len(record.example)
            if len(self._block) == _BLOCK_RECORDS or self.waiting_bytes >= _BLOCK_BYTES:
                self.flush()

    def flush(self) -> None:
        """Writes the records that `add` holds back until a block is full."""
        if self._block:
            records, self._block, self.waiting_bytes = self._block, [], 0
            examples = [record.example for record in records]
            framed = _frame(examples)
            # Counts and statistics are those of whole records.
            self._statistics.add(examples, framed)
            if any(self._schema.count_parts(record.num_steps) > 1 for record in records):
                del framed, examples  # may be large
                for parts in cut_blocks(
                    (part for record in records for part in divide(record, self._schema)), _BLOCK_BYTES
                ):
                    self._write(parts, _frame([part.example for part in parts]))
            else:
                self._write(records, framed)

    def _write(self, parts: list[Part], framed: Sequence[bytes]) -> None:
        self._sizes.append(np.array([(len(part.example), *part[1:]) for part in parts], np.int64))
        for data in framed:
            self._digest.update(data)
            self._file.write(data)

    def finish(self, output: str, strings: dict[str, str], groups: str | None) -> ShardSummary:
        """Writes the index, after the TFRecord file was closed.

        Args:
            strings, groups: The attributes of ShardSummary.
        """
        statistics, rows = self._statistics, pa.concat_tables(self._rows)
        num_bytes, part_steps, part_labels = np.concatenate(self._sizes).T
        has_window = self._window is not None
        num_steps = rows["num_steps"].to_numpy()
        num_parts = np.array([self._schema.count_parts(steps) for steps in num_steps.tolist()], np.int32)
        index = serialize_index(
            build_index(
                self._schema.label,
                num_bytes=num_bytes,
                num_steps=part_steps,
                ids=rows["id"],
                labels=statistics.labels,
                groups=rows["group"],
                sources=rows["path"],
                keys=rows["key"],
                event_times=rows["event_time"] if has_window else None,
                num_labels=part_labels if has_window else None,
                num_parts=num_parts,
            )
        )
        with replace(join(output, self._index_path)) as file:
            file.write(index)
        lengths, counts = np.unique(num_steps, return_counts=True)
        return ShardSummary(
            split=self._split,
            number=self._number,
            shard=Shard(
                path=self._path,
                records=len(rows),
                steps=int(num_steps.sum()),
                bytes=int(num_bytes.sum()) + FRAME_BYTES * len(num_bytes),
                sha256=self._digest.hexdigest(),
                index_path=self._index_path,
                index_sha256=hashlib.sha256(index).hexdigest(),
                parts=len(num_bytes) if self._schema.stores_parts else None,
                window=self._window,
                oldest=pc.min(rows["event_time"]).as_py() if has_window else None,
                newest=pc.max(rows["event_time"]).as_py() if has_window else None,
            ),
            labels=int(rows["num_labels"].to_numpy().sum()),
            truncated=int(rows["truncated"].to_numpy().sum()),
            length_counts=dict(zip(lengths.tolist(), counts.tolist(), strict=True)),
            label_counts=dict(statistics.label_counts),
            missing=statistics.missing,
            strings=strings,
            sums={},
            copies=count_copies(rows["id"]) if numbers_copies(self._schema) else 0,
            groups=groups,
        )


def _frame(examples: list[bytes]) -> list[bytes]:
    """Returns the frames of Examples, joined; of a single large one, the three pieces of its frame."""
    pieces = frames(examples)
    return pieces if len(examples) == 1 and len(examples[0]) >= _BLOCK_BYTES else [b"".join(pieces)]


def _select_index_columns(rows: pa.Table) -> pa.Table:
    selected = rows.select(_INDEX_COLUMNS)
    # The path of the raw file would take most of the memory of a short record's row.
    selected = selected.set_column(0, "path", selected["path"].dictionary_encode())
    return selected.set_column(4, "key", pa.array(key_numbers(rows["key"])[:, 0]))
