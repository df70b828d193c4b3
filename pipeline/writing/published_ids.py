"""Finds the ids that earlier generations have published, by a merge join over the keys of sorted indexes.

Every index is sorted by key, so a range of keys is found without the rest. Memory depends on the new records and on
their duplicates, not on what is published: of an index, one row group is in memory at a time.
"""

import contextlib
import functools
import itertools
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError, quote
from pipeline.files import file_sha256, join, open_read
from pipeline.format.index import KEY, IndexReader
from pipeline.format.models import Split
from pipeline.raw.rejects import Reject
from pipeline.schema.record import Array
from pipeline.shuffle.copies import first_of_each, is_hash, last_numbers, last_of_each, split_copy_id
from pipeline.shuffle.encoded_records import from_rows
from pipeline.shuffle.hashing import range_of
from pipeline.shuffle.merge_runs import count_less
from pipeline.shuffle.sorted_rows import Block, key_numbers


class PublishedShard(NamedTuple):
    """A shard of an earlier generation, as far as the search for its ids needs it.

    Attributes:
        generation, split: Where the shard belongs.
        index_path: Path of its index, with the folder of the dataset.
        index_sha256: SHA-256 of its index.
        rows: Number of rows of its index: records, or their parts.
        bytes: Size of its TFRecord file.
        first, end: The key numbers of its records are in [first, end).
        window: Start of its window, in seconds since 1970. None without one.
    """

    generation: str
    split: str
    index_path: str
    index_sha256: str
    rows: int
    bytes: int
    first: int
    end: int
    window: int | None = None


def list_published(dataset: str, splits: Mapping[str, Split]) -> tuple[PublishedShard, ...]:
    """Returns the shards of a dataset that hold a record, of all splits and generations.

    Args:
        dataset: Folder of the dataset.
        splits: The splits of its manifest, or of the summary of one generation.
    """
    return tuple(
        PublishedShard(
            generation=posixpath.basename(posixpath.dirname(shard.path)),
            split=name,
            index_path=join(dataset, shard.index_path),
            index_sha256=shard.index_sha256,
            rows=shard.examples,
            bytes=shard.bytes,
            first=first,
            end=end,
            window=shard.window,
        )
        for name, split in splits.items()
        for shard in split.shards
        if shard.records
        for first, end in [range_of(shard.path)]
    )


def in_newest_windows(shards: Iterable[PublishedShard], num_windows: int) -> tuple[PublishedShard, ...]:
    """Returns the shards of the newest windows that any of them has, and all shards without a window."""
    shards = tuple(shards)
    newest = sorted({shard.window for shard in shards if shard.window is not None})[-num_windows:]
    return tuple(shard for shard in shards if shard.window is None or shard.window in newest)


class PublishedIds:
    """Published ids with their keys, sorted by key.

    Attributes:
        shards: Shards that hold ids.
        keys: uint64[ids], the key number of each id, ascending.
        ids: string[ids].
        places: int64[ids], the position in `shards` of the shard that holds each id.
    """

    def __init__(self, shards: Sequence[PublishedShard], keys: Array, ids: pa.ChunkedArray, places: Array) -> None:
        order = np.argsort(keys, kind="stable")
        self.shards = shards
        self.keys, self.ids, self.places = keys[order], ids.take(pa.array(order)), places[order]

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Array, ids: pa.ChunkedArray) -> dict[int, PublishedShard]:
        """Returns those of some records whose id is published: the shard that holds it, by the record's position.

        Args:
            keys: uint64[records], key numbers, ascending.
            ids: string[records], the id of each record.
        """
        places = np.flatnonzero(_is_in(keys, self.keys))
        if not len(places):
            return {}
        start = np.searchsorted(self.keys, keys[places[0]])
        end = np.searchsorted(self.keys, keys[places[-1]], side="right")
        published = dict(zip(self.ids[start:end].to_pylist(), self.places[start:end].tolist(), strict=True))
        # Two ids may share a key.
        found = zip(places.tolist(), ids.take(pa.array(places)).to_pylist(), strict=True)
        return {place: self.shards[published[one]] for place, one in found if one in published}

    def last_copies(self, keys: Array) -> dict[str, int]:
        """Returns the largest number of the published copies of some records, by the id of the first copy.

        Args:
            keys: uint64[records], key numbers, ascending.
        """
        if not len(keys):
            return {}
        start = np.searchsorted(self.keys, keys[0])
        end = np.searchsorted(self.keys, keys[-1], side="right")
        return last_numbers(self.ids[start:end].to_pylist())


# Returns int64[places], the places of those ids that are needed of string[ids], which are sorted as in an index.
SelectIds: TypeAlias = Callable[[pa.ChunkedArray], Array]


def find_published(shards: Iterable[PublishedShard], keys: Array, select: SelectIds | None = None) -> PublishedIds:
    """Returns the ids of published records that share their key number with a new record.

    Opens the index of each shard whose range holds a key, one at a time. Reads the keys of its row groups, and the ids
    of those row groups that have one of the keys.

    Args:
        keys: uint64[keys], the key numbers of new records, ascending, each once.
        select: Chooses the ids of a row group to return. `last_of_each` keeps one of any number of equal records.

    Raises:
        UserError: An index is missing or damaged, or has no keys.
    """
    parts = [(shard, _between(keys, shard.first, shard.end)) for shard in shards]
    matches = [(shard, *_read_common(shard, part, select)) for shard, part in parts if len(part)]
    matches = [match for match in matches if len(match[1])]
    chunks = [chunk for _, _, ids in matches for chunk in ids.chunks]
    return PublishedIds(
        [shard for shard, _, _ in matches],
        np.concatenate([np.zeros(0, np.uint64), *(found for _, found, _ in matches)]),
        pa.chunked_array(chunks, pa.string()),
        np.repeat(np.arange(len(matches)), [len(found) for _, found, _ in matches]),
    )


def find_common_ids(
    some: Iterable[PublishedShard], others: Sequence[PublishedShard], *, copies: bool = False
) -> Iterator[tuple[str, PublishedShard, PublishedShard]]:
    """Yields the ids that both some shards and others hold: (id, its shard in `some`, its shard in `others`).

    With `copies`, the shards hold numbered copies of records. Of those of one record, at most one id is yielded for
    each row group.

    Memory holds the keys of the shards in `some` with the same range. An index of `others` is opened once for each
    range that it overlaps.

    Raises:
        UserError: An index is missing or damaged, or has no keys.
    """
    ordered = sorted(some, key=_range_of)
    for _, same_range in itertools.groupby(ordered, key=_range_of):
        shards = list(same_range)
        keys = np.unique(np.concatenate([read_keys(shard) for shard in shards]))
        theirs = find_published(others, keys, last_of_each if copies else None)
        ours = find_published(shards, np.unique(theirs.keys), first_of_each if copies else None)
        if copies:
            yield from _find_common_copies(ours, theirs)
            continue
        ids = ours.ids.to_pylist()
        for place, shard in theirs.find(ours.keys, ours.ids).items():
            yield ids[place], ours.shards[ours.places[place]], shard


def _find_common_copies(
    ours: PublishedIds, theirs: PublishedIds
) -> Iterator[tuple[str, PublishedShard, PublishedShard]]:
    """Yields as `find_common_ids` does, given the first copies in one place and the last ones in the other.

    A generation continues the numbers of those before it, so the numbers of two of them overlap, or one ends before the
    other one begins.
    """
    last: dict[str, tuple[int, int]] = {}
    for record_id, place in zip(theirs.ids.to_pylist(), theirs.places.tolist(), strict=True):
        first, number = split_copy_id(record_id)
        last[first] = max((number, place), last.get(first, (0, 0)))
    for record_id, place in zip(ours.ids.to_pylist(), ours.places.tolist(), strict=True):
        first, number = split_copy_id(record_id)
        if first in last and number <= last[first][0]:
            yield record_id, ours.shards[place], theirs.shards[last[first][1]]


def reject_published(
    blocks: Iterable[Block],
    published: PublishedIds,
    reject: Callable[[Reject], None],
    *,
    copies: bool = False,
) -> Iterator[Block]:
    """Yields the same blocks without the records whose id is published.

    Args:
        reject: Called with a reject of each of these records.
        copies: Whether records whose id is a hash are kept, because they are numbered.
    """
    for block in blocks:
        found = published.find(key_numbers(block.rows["key"])[:, 0], block.rows["id"])
        if copies:
            found = {place: shard for place, shard in found.items() if not is_hash(block.rows["id"][place].as_py())}
        if found:
            duplicates = from_rows(block.rows.take(pa.array(list(found))))
            for record, shard in zip(duplicates, found.values(), strict=True):
                message = (
                    f"the id {quote(record.id)} is also the id of a record that an earlier commit published "
                    f"(generation {shard.generation}, split {shard.split}), which is kept"
                )
                reject(Reject("duplicate_id", message, record.id, record.origin))
            kept = np.delete(np.arange(len(block.rows)), list(found))
            block = Block(block.rows.take(pa.array(kept)), [block.payloads[place] for place in kept.tolist()])
        yield block


def _range_of(shard: PublishedShard) -> tuple[int, int]:
    return shard.first, shard.end


def _between(keys: Array, first: int, end: int) -> Array:
    """Returns the part of the ascending uint64 `keys` in [first, end)."""
    return keys[count_less(keys, first) : count_less(keys, end)]


def _is_in(keys: Array, ascending: Array) -> Array:
    """Returns bool[keys], whether each key is one of `ascending`."""
    places = np.searchsorted(ascending, keys)
    inside = places < len(ascending)
    inside[inside] = ascending[places[inside]] == keys[inside]
    return inside


def _read_common(shard: PublishedShard, keys: Array, select: SelectIds | None) -> tuple[Array, pa.ChunkedArray]:
    """Returns the rows of an index whose key is one of `keys`: uint64[rows] and string[rows], their keys and ids.

    Args:
        select: Chooses some of these rows of each row group.
    """
    found, ids = [np.zeros(0, np.uint64)], []
    with _open_index(shard) as reader:
        for number in range(reader.num_row_groups):
            first, last = reader.key_range(number)
            wanted = _between(keys, first, last + 1)
            if not len(wanted):
                continue
            published = _read_group(reader, number)
            starts, ends = (np.searchsorted(published, wanted, side) for side in ("left", "right"))
            # The rows of a key are from its start to its end, and no two keys have a row in common.
            edges = [np.bincount(places, minlength=len(published) + 1) for places in (starts, ends)]
            rows = np.flatnonzero(np.cumsum(edges[0] - edges[1]))
            if len(rows):
                names = reader.read(number, ["id"])["id"].take(pa.array(rows))
                # The parts of a record have the same id and follow one another.
                is_other = np.append(True, pc.not_equal(names[1:], names[:-1]))
                rows, names = rows[is_other], names.filter(pa.array(is_other))
                if select is not None:
                    places = select(names)
                    rows, names = rows[places], names.take(pa.array(places))
                found.append(published[rows])
                ids += names.chunks
    return np.concatenate(found), pa.chunked_array(ids, pa.string())


def read_keys(shard: PublishedShard) -> Array:
    """Returns uint64[keys], the keys of an index, each once."""
    with _open_index(shard) as reader:
        keys = np.concatenate([_read_group(reader, number) for number in range(reader.num_row_groups)])
    return keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]


def _read_group(reader: IndexReader, number: int) -> Array:
    """Returns uint64[rows], the keys of a row group."""
    column = reader.read(number, [KEY])[KEY]
    if column.null_count:
        raise ValueError("has a row without a key")
    keys: Array = column.to_numpy()
    if (keys[1:] < keys[:-1]).any():
        raise ValueError("has keys that are not in ascending order")
    return keys


@contextlib.contextmanager
def _open_index(shard: PublishedShard) -> Iterator[IndexReader]:
    """Opens the index of a shard after a check of its digest. Raises a UserError for what is wrong with the file."""
    try:
        _check_digest(shard.index_path, shard.index_sha256)
        with open_read(shard.index_path) as file:
            reader = IndexReader(file, rows=shard.rows, shard_bytes=shard.bytes, columns=[KEY, "id"])
            if not reader.has_keys:
                raise ValueError("has no column key, since its dataset has format version 1")
            yield reader
    except (ValueError, pa.ArrowException, OSError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UserError(
            f"{shard.index_path}: {problem}. So the new records cannot be compared with the published ones. "
            "`lengthwise verify` lists all errors."
        ) from None


# A worker compares each of its shards with the same files.
@functools.lru_cache(maxsize=1 << 14)
def _check_digest(path: str, sha256: str) -> None:
    found = file_sha256(path)
    if found != sha256:
        raise ValueError(f"the SHA-256 of the file is {found}, but the manifest says {sha256}")
