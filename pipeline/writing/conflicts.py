"""Decides whether new records fit a dataset: the schema, and what other jobs published meanwhile."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import TryAgain, UserError, show
from pipeline.format.manifest import Manifest
from pipeline.format.sources import SourceRow, SourcesFile, read_sources, rows_of
from pipeline.format.summary import GenerationSummary
from pipeline.schema.compatibility import find_difference
from pipeline.schema.schema import Schema
from pipeline.schema.windows import EventWindows, check_same_windows
from pipeline.shuffle.copies import numbers_copies
from pipeline.writing.published_ids import find_common_ids, list_published


def check_no_conflict(output: str, added: GenerationSummary, others: Sequence[GenerationSummary]) -> None:
    """Checks that a generation can be added on top of generations that other jobs published meanwhile.

    Raises:
        TryAgain: A record or a raw file of the generation is in one of the others too.
    """
    for other in others:
        found = _find_common_source(output, added.sources, other.sources)
        found = found or _find_common_part(output, added.sources, other.sources)
        if found is not None:
            raise TryAgain(
                f"{output}: another job added the raw file {found} meanwhile (generation {other.generation}). Nothing "
                "was published. Run the same command again, which then skips this file."
            )
    if not others:
        return
    theirs = [shard for other in others for shard in list_published(output, other.splits)]
    copies = numbers_copies(added.record_schema)
    for record_id, _, shard in find_common_ids(list_published(output, added.splits), theirs, copies=copies):
        raise TryAgain(
            f"{output}: another job added a record with the id {show(record_id)} meanwhile (generation "
            f"{shard.generation}). Nothing was published. Run the same command again, which then "
            f"{'gives this copy another number' if copies else 'rejects this record'}."
        )


def _find_common_source(output: str, some: SourcesFile, others: SourcesFile) -> str | None:
    """Returns the path of a raw file in `some` whose digest is also in `others`, or None if there is none."""
    for block in read_sources(output, some):
        for other in read_sources(output, others):
            common = block.filter(pc.is_in(block["sha256"], value_set=pa.chunked_array(other["sha256"].chunks)))
            if len(common):
                path: str = common["path"][0].as_py()
                return path
    return None


def _find_common_part(output: str, some: SourcesFile, others: SourcesFile) -> str | None:
    """Returns the path of a file of which `some` has a part that does not follow what `others` has of it, or None.

    Also if one of the two took it as a whole file.
    """
    if not some.parts and not others.parts:
        return None
    for other in read_sources(output, others):
        ends: dict[str, Place] = {}
        for row in rows_of(other):
            ends[row.path] = max(ends.get(row.path, (0, 0)), _end(row))
        for block in read_sources(output, some):
            for row in rows_of(block):
                if row.path in ends and _begin(row) < ends[row.path]:
                    return row.path
    return None


# The number of rewrites, and the offset in the file. A whole file begins before any part of it, and ends after it.
Place: TypeAlias = tuple[float, float]


def _begin(row: SourceRow) -> Place:
    return (-math.inf, 0) if row.start is None or row.rewrites is None else (row.rewrites, row.start)


def _end(row: SourceRow) -> Place:
    return (math.inf, 0) if row.start is None or row.rewrites is None else (row.rewrites, row.start + row.stored_bytes)


def check_not_replayed(output: str, added: GenerationSummary, manifest: Manifest | None) -> None:
    """Checks that the rejects which a generation takes back still count.

    Raises:
        TryAgain: Another job took them back meanwhile.
    """
    live = () if manifest is None else manifest.rejected.files
    gone = [file.path for file in added.replayed.files if file.path not in live]
    if gone:
        raise TryAgain(
            f"{output}: another job replayed {gone[0]} or replaced the dataset meanwhile. Nothing was published. Run "
            "the same command again without this file."
        )


def check_windows_of_shards(output: str, of_dataset: EventWindows, found: EventWindows | None) -> None:
    """Checks that a generation has the windows of the dataset.

    Raises:
        UserError: It has other windows: another job has added the first ones meanwhile.
        TryAgain: It has no windows for the same reason.
    """
    if found is None:
        raise TryAgain(
            f"{output}: another job added {of_dataset.describe()} meanwhile. Nothing was published. Run the same "
            "command again, which then uses them, too."
        )
    check_same_windows(output, of_dataset, found)


def check_may_append(
    output: str, manifest: Manifest, schema: Schema, seed: int | None, *, may_widen: bool = False
) -> None:
    """Raises a UserError unless records with this schema and seed can be added to a dataset.

    Args:
        seed: None is the seed of the dataset.
        may_widen: Whether the schema may also be one that accepts more and stores the records of the dataset as they
            are (`find_difference` says which). The dataset then gets this schema.
    """
    if manifest.format_version == 1:
        raise UserError(
            f"{output}: has format version 1, to which nothing can be added. Prepare all raw files again with "
            "--overwrite, or choose another --output."
        )
    difference = find_difference(schema, manifest.record_schema, may_widen=may_widen)
    if difference is not None:
        ways_out = "Use the schema of the dataset, or prepare all raw files again with --overwrite."
        if may_widen:
            ways_out = (
                "With --replay, a schema may only accept more records than that of the dataset. For any other change, "
                "prepare all raw files again with --overwrite."
            )
        raise UserError(f"{output}: has another schema than the records to add: {difference}. {ways_out}")
    if seed is not None and seed != manifest.seed:
        raise UserError(
            f"{output}: has the seed {manifest.seed}, so records with seed {seed} cannot be added. Leave --seed out."
        )
