"""Decides, before any work, what a job may do to the dataset in its output folder."""

import os
from typing import Any, Literal

from pipeline.errors import UserError, show
from pipeline.files import exists, is_local, join
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.schema.schema import Schema
from pipeline.writing.commit_log import Head, read_head

# `create` makes a new dataset, `replace` also replaces one that is there, `append` also adds to one that is there.
Mode = Literal["create", "replace", "append"]


def check_output(output: str, mode: Mode, schema: Schema | None = None) -> Head:
    """Returns the state of an output folder, after a check that a job with this mode may publish there.

    Args:
        schema: Schema of the records; only for `append`.

    Raises:
        UserError: `output` is a file, or contains a dataset that must not be replaced or cannot be appended to.
    """
    if is_local(output) and os.path.lexists(output) and not os.path.isdir(output):
        raise UserError(f"{output}: a file is in the way, expected a folder or nothing. Choose another --output.")
    manifest_path = join(output, FILE_NAME)
    if is_local(output) and os.path.isdir(manifest_path):
        raise UserError(
            f"{manifest_path}: a folder is in the way, expected a file or nothing. Choose another --output."
        )
    head = read_head(output)
    if mode == "create" and (head.manifest is not None or exists(manifest_path)):
        raise UserError(
            f"{output}: a dataset is there already. Choose another --output, add to it with --append, or replace it "
            "with --overwrite."
        )
    if mode == "append":
        if head.manifest is not None:
            check_may_append(output, head.manifest, schema)
        elif exists(manifest_path):
            raise UserError(
                f"{manifest_path}: not a manifest of a dataset, so nothing can be added. Choose another "
                "--output, or replace it with --overwrite."
            )
    return head


def check_may_append(output: str, manifest: Manifest, schema: Schema | None) -> None:
    """Raises a UserError unless records with a schema can be added to a dataset."""
    if manifest.format_version == 1:
        raise UserError(
            f"{output}: has format version 1, to which nothing can be added. Prepare all raw files again with "
            "--overwrite, or choose another --output."
        )
    if schema is not None and schema != manifest.record_schema:
        difference = _describe_difference(schema.canonical(), manifest.record_schema.canonical())
        raise UserError(
            f"{output}: has another schema than the records to add: {difference}."
            " Use the schema of the dataset, or prepare all raw files again with --overwrite."
        )


def _describe_difference(mine: Any, theirs: Any, place: str = "") -> str:
    """Returns the first place where the values of two schemas differ, and both values."""
    if not isinstance(mine, dict) or not isinstance(theirs, dict):
        return f"{place} is {show(mine)}, but {show(theirs)} in the dataset"
    key = next(key for key in {**theirs, **mine} if mine.get(key) != theirs.get(key))
    return _describe_difference(mine.get(key), theirs.get(key), f"{place}.{key}" if place else key)
