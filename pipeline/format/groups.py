"""Finds groups whose records are in several splits, from the number of records that each group has in each split.

The counts are in files of counts as those of strings are (see string_counts.py): one row for each group.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import show
from pipeline.files import join, open_read
from pipeline.format.index import IndexReader
from pipeline.format.merge_counts import merge_counts
from pipeline.format.models import Shard
from pipeline.format.string_counts import count_arrays

# The name under which a StringCounter counts groups.
GROUP = "group"


class SharedGroup(NamedTuple):
    """A group with records in several splits.

    Attributes:
        name: Value of the schema's group field.
        splits: The splits, in the order of the schema.
    """

    name: str
    splits: tuple[str, ...]


def find_shared_groups(
    paths: Iterable[str], splits: Sequence[str], *, folder: str, digests: Mapping[str, str] | None = None
) -> Iterator[SharedGroup]:
    """Yields the groups that have records in several splits, sorted by name. See `merge_counts` for the arguments."""
    for rows in merge_counts(paths, splits, folder=folder, digests=digests):
        occurs = np.array(count_arrays(rows)) > 0
        for place in np.flatnonzero(occurs.sum(axis=0) > 1).tolist():
            name = rows["string"][place].as_py().decode()
            yield SharedGroup(name, tuple(splits[number] for number in np.flatnonzero(occurs[:, place]).tolist()))


def describe_shared_group(
    group: SharedGroup, field: str | None, dataset: str, shards: Mapping[str, Iterable[Shard]]
) -> str:
    """Returns a message that names a group, two of its splits, and one of its records in each of them.

    Args:
        field: The schema's group field.
        dataset: Folder of the dataset.
        shards: The shards of each split, whose indexes are searched for the records.
    """
    places = []
    for split in group.splits[:2]:
        record_id = _find_record(group.name, dataset, shards[split])
        places.append(split if record_id is None else f"{split} (for example the record {show(record_id)})")
    return f"the group {show(group.name)} (field {field}) is in two splits: {' and '.join(places)}"


def _find_record(group: str, dataset: str, shards: Iterable[Shard]) -> str | None:
    """Returns the id of the first record of a group, or None if no index that can be read has one."""
    columns = [GROUP, "id"]
    for shard in shards:
        try:
            with open_read(join(dataset, shard.index_path)) as file:
                reader = IndexReader(file, rows=shard.examples, shard_bytes=shard.bytes, columns=columns)
                for number in range(reader.num_row_groups):
                    rows = reader.read(number, columns)
                    place = pc.index(rows[GROUP], group).as_py()
                    if place >= 0:
                        record_id: str = rows["id"][place].as_py()
                        return record_id
        except (ValueError, pa.ArrowException, OSError):  # a damaged index has an error of its own
            continue
    return None
