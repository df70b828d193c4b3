"""Writes shards: TFRecord files and their indexes, from sorted records without their duplicates."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa

from pipeline.errors import quote
from pipeline.files import join
from pipeline.format.count_strings import StringCounter
from pipeline.format.groups import GROUP
from pipeline.format.models import TRAIN
from pipeline.format.statistics import ColumnSums
from pipeline.format.sums import PackedSums
from pipeline.raw.rejects import Origin, Reject
from pipeline.schema.record import Array
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows, missing_time
from pipeline.shuffle.encoded_records import EncodedRecord, from_rows
from pipeline.shuffle.sorted_rows import Block
from pipeline.writing.many_files import ManyFiles, call_in_threads
from pipeline.writing.open_shard import INDEX_COLUMNS, OpenShard, ShardSummary, select_index_columns
from pipeline.writing.paths import runs_folder, shard_paths
from pipeline.writing.published_ids import PublishedShard
from pipeline.writing.shard_statistics import ShardStatistics, make_sums

# Default size of a shard in bytes: large enough for few reads, small enough that several readers can share the work.
SHARD_BYTES = 64 * 2**20
# Records that wait in all shards until their block is full, in bytes: there may be a shard for each of many windows.
_WAITING_BYTES = 32 * 2**20


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of a generation. All shards of one number are written together.

    There is one for each split, and with windows for each window, that has a record: no shard is empty.

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
            shards: dict[tuple[str, int | None], OpenShard] = {}

            def open_shard(split: str, window: int | None) -> OpenShard:
                path, index_path = shard_paths(self.generation, split, number, num_shards=num_shards, window=window)
                statistics = ShardStatistics(
                    self.schema,
                    sums=sums if split == TRAIN else {},
                    count_strings=functools.partial(strings.add, split),
                )
                file = files.open(join(self.output, path))
                return OpenShard(self.schema, split, number, window, path, index_path, file, statistics)

            for block in blocks:
                is_kept, kept = _reject_duplicates(block.rows, kept, reject)
                for (split, window), rows, examples in self._partition(block, is_kept):
                    if (split, window) not in shards:
                        shards[split, window] = open_shard(split, window)
                    shards[split, window].add(rows, examples)
                    if self.schema.checks_groups:
                        groups.add(split, GROUP, rows["group"].cast(pa.binary()).to_pylist())
                    del rows, examples
                del block  # may be large, and would be held while the next one is read
                if sum(shard.waiting_bytes for shard in shards.values()) > _WAITING_BYTES:
                    for shard in shards.values():
                        shard.flush()
            for shard in shards.values():
                shard.flush()
            files.finish()
        counts_files, groups_file = strings.finish(), groups.finish().get(GROUP)

        def finish(shard: OpenShard) -> ShardSummary:
            return shard.finish(self.output, counts_files, groups_file)

        written = call_in_threads(finish, list(shards.values()))
        return _add_sums(sorted(written, key=lambda shard: shard.order), sums)

    def _partition(
        self, block: Block, is_kept: Array
    ) -> Iterator[tuple[tuple[str, int | None], pa.Table, list[bytes]]]:
        """Yields the records of a block that are kept by split and window, with the columns of INDEX_COLUMNS."""
        places = np.flatnonzero(is_kept)
        rows = block.rows.select([*INDEX_COLUMNS, "split"]).take(pa.array(places))
        splits = rows["split"].combine_chunks().dictionary_encode()
        of_split, windows = splits.indices.to_numpy(), np.zeros(len(rows), np.int64)
        if self.windows is not None:
            if rows["event_time"].null_count:
                raise missing_time(rows["id"].filter(rows["event_time"].is_null())[0].as_py(), self.windows)
            windows = self.windows.starts_of(rows["event_time"].to_numpy())
        order = np.lexsort((windows, of_split))  # stable, so that the records stay in the order of their keys
        rows = select_index_columns(rows.take(pa.array(order)))
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
    ids, without_raw = rows["id"].to_pylist(), rows.drop_columns(["raw"])
    is_kept = np.array([a != b for a, b in zip([last_kept and last_kept.id, *ids], ids, strict=False)], bool)
    # For each row, the place of the first row with its id; -1 if that is `last_kept`.
    first = np.maximum.accumulate(np.where(is_kept, np.arange(len(ids)), -1))
    duplicates = np.flatnonzero(~is_kept)
    if len(duplicates):
        firsts, which = np.unique(first[duplicates], return_inverse=True)
        kept = from_rows(without_raw.take(pa.array(firsts[firsts >= 0])))
        if firsts[0] < 0:
            assert last_kept is not None
            kept = [last_kept, *kept]
        for record, number in zip(from_rows(rows.take(pa.array(duplicates))), which.tolist(), strict=True):
            message = f"the id {quote(record.id)} is also the id of {_describe(kept[number].origin)}, which is kept"
            reject(Reject("duplicate_id", message, record.id, record.origin))
    if is_kept.any():
        (last_kept,) = from_rows(without_raw.slice(first[-1], 1))
    return is_kept, last_kept


def _describe(origin: Origin) -> str:
    return "another record" if origin.path is None else f"the record at byte {origin.byte_offset} of {origin.path}"
