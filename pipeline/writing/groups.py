"""Checks that no group of a dataset is in two splits, if the records and not a hash of the group choose the split."""

from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.files import join
from pipeline.format.groups import describe_shared_group, find_shared_groups
from pipeline.format.summary import GenerationSummary


def check_groups(output: str, summaries: Sequence[GenerationSummary], *, folder: str) -> None:
    """Checks that no group is in two splits. Memory is bounded, and only groups are read, no record.

    Args:
        summaries: All generations of the dataset, which have the same schema; at least one.
        folder: Folder for temporary files.

    Raises:
        UserError: A group is in two splits, or a file of counts is missing or damaged.
    """
    schema = summaries[-1].record_schema
    if not schema.checks_groups:
        return
    counts = [summary.groups for summary in summaries if summary.groups is not None]
    files = {join(output, file.path): file.sha256 for file in counts}
    try:
        found = find_shared_groups(files, schema.split_names, folder=folder, digests=files)
        first = next(found, None)
        others = sum(1 for _ in found)
    except ValueError as error:
        raise UserError(
            f"{error} So the groups cannot be checked, and nothing was published. `lengthwise verify` lists all "
            "errors; restore the file from a copy, or prepare the dataset again."
        ) from None
    if first is None:
        return
    shards = {name: [s for summary in summaries for s in summary.splits[name].shards] for name in schema.split_names}
    more = f", and so are {others:,} other groups" if others > 1 else ", and so is 1 other group" if others else ""
    raise UserError(
        f"{output}: {describe_shared_group(first, schema.group, output, shards)}{more}; expected all records of a "
        "group in one split. Nothing was published. Correct the splits of these records, leave them out, or remove "
        "`group` from the schema."
    )
