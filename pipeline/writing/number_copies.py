"""Gives each of several equal records an id of its own, if the schema has no id."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.format.examples import replace_id
from pipeline.shuffle.copies import copy_id, is_hash
from pipeline.shuffle.sorted_rows import Block, key_numbers
from pipeline.writing.published_ids import PublishedIds


def number_copies(blocks: Iterable[Block], published: PublishedIds | None = None) -> Iterator[Block]:
    """Yields the same blocks with the ids of the copies numbered, in the rows and in the Examples.

    Copies follow one another, since they share their order key, so memory holds the id of the last record only. A
    record whose id is no hash keeps it.

    Args:
        blocks: Records sorted by `sort_key`.
        published: The last copies of these records that earlier generations published, whose numbers are continued.
    """
    last: str | None = None
    number = 0
    for block in blocks:
        before = {} if published is None else published.last_copies(key_numbers(block.rows["key"])[:, 0])
        ids = block.rows["id"].to_pylist()
        changed = {}
        for place, record_id in enumerate(ids):
            if record_id != last:
                last, number = record_id, before.get(record_id, 0)
            number += 1
            if number > 1 and is_hash(record_id):
                changed[place] = copy_id(record_id, number)
        yield _rename(block, ids, changed) if changed else block


def _rename(block: Block, ids: list[str], changed: dict[int, str]) -> Block:
    """Returns a block with other ids.

    Args:
        ids: The ids of the block. They are changed in place.
        changed: The new ids, by place.
    """
    examples = list(block.payloads)
    for place, record_id in changed.items():
        ids[place], examples[place] = record_id, replace_id(examples[place], record_id)
    number = block.rows.schema.get_field_index("id")
    return Block(block.rows.set_column(number, "id", pa.array(ids, pa.string())), examples)
