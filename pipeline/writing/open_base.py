"""Decides, before any work, what a job may do to the dataset in its output folder."""

import os
from collections.abc import Mapping

from pipeline.errors import UserError, show
from pipeline.files import exists, is_local, join
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.models import TRAIN
from pipeline.raw.find_files import RawFiles
from pipeline.schema.auto_classes import fix_classes
from pipeline.schema.input_splits import use_inputs
from pipeline.schema.labels import AUTO
from pipeline.schema.schema import Schema, SplitFromInputs
from pipeline.schema.windows import EventWindows, check_same_windows
from pipeline.writing.base import Base, Mode
from pipeline.writing.commit_log import Head, read_head
from pipeline.writing.conflicts import check_may_append
from pipeline.writing.published_ids import list_published


def open_base(
    output: str,
    mode: Mode,
    schema: Schema,
    seed: int | None,
    *,
    windows: EventWindows | None = None,
    may_widen: bool = False,
) -> Base:
    """Returns the dataset in an output folder, after a check that a job with this mode may publish there.

    Args:
        seed: Seed of the splits and of the order of the records. None is 0, or that of the dataset to add to.
        windows: The windows to label the new shards with. None is those of the dataset to add to, if it has any. A
            dataset without windows may get shards with windows; those that it has stay without.
        may_widen: Whether the schema may accept more than that of the dataset to add to.

    Raises:
        UserError: `output` is a file, or contains a dataset that must not be replaced, or that records with this
            schema, seed and windows cannot be added to.
    """
    head = _check_output(output, mode, schema, seed, may_widen)
    manifest = head.manifest
    if mode != "append" or manifest is None:
        return Base(mode, head.number, seed or 0, windows=windows)
    if manifest.windows is not None and windows is not None:
        check_same_windows(output, manifest.windows, windows)
    return append_to(output, head.number, manifest, windows=windows)


def append_to(output: str, number: int, manifest: Manifest, *, windows: EventWindows | None = None) -> Base:
    """Returns the base of a job that adds to a dataset, whose newest commit has this number and manifest.

    Args:
        windows: The windows to label the new shards with, if the dataset has none.
    """
    published = list_published(output, manifest.splits)
    return Base(
        "append",
        number,
        manifest.seed,
        manifest.summaries,
        published,
        manifest.windows or windows,
        manifest.vocabularies_of,
    )


def take_classes(output: str, mode: Mode, schema: Schema) -> Schema:
    """Returns a schema whose label is open (`classes: auto`) with the classes of the dataset that it is added to.

    Without such a dataset, and for any other schema, returns the schema itself.
    """
    manifest = read_head(output).manifest if mode == "append" and schema.label.is_open else None
    if manifest is None:
        return schema
    # If the dataset has another kind of label, that is the error which follows.
    classes = manifest.record_schema.label.classes or (AUTO,)
    return fix_classes(schema, classes, hint="the classes (classes: auto) were fixed when the dataset was created")


def take_inputs(output: str, mode: Mode, schema: Schema, inputs: RawFiles, *, origin: str = "schema") -> Schema:
    """Returns the schema with the splits of the inputs, if raw files are given by split; else the schema itself.

    A job without raw files, which only replays rejects, takes them if the dataset has them.

    Args:
        inputs: The raw files: patterns, or the patterns of each split.
        origin: Path of the schema, for messages.

    Raises:
        UserError: The schema or the dataset has other splits than those of the inputs, or there is no train input.
    """
    manifest = read_head(output).manifest if mode == "append" else None
    of_dataset = manifest is not None and isinstance(manifest.record_schema.splits, SplitFromInputs)
    if isinstance(inputs, Mapping):
        if TRAIN not in inputs and manifest is None:
            raise UserError(
                f"{output}: the raw files are given for {' and '.join(inputs) or 'no split'} only; a new dataset also "
                "needs those of train (--train)."
            )
        return use_inputs(schema, origin=origin)
    if inputs and of_dataset:
        raise UserError(
            f"{output}: the input of a raw file names its split in this dataset. Give the new files with --train, "
            "--validation or --test, too."
        )
    if inputs and isinstance(schema.splits, SplitFromInputs):
        raise UserError(
            f"{origin}: splits: {show(schema.splits.moved or {'inputs': True})}: needs raw files that are given by "
            "split, with --train, --validation or --test. For one input, give the shares of all splits, for example "
            "{train: 0.8, validation: 0.1, test: 0.1}."
        )
    return use_inputs(schema, origin=origin) if of_dataset and not inputs else schema


def _check_output(output: str, mode: Mode, schema: Schema, seed: int | None, may_widen: bool) -> Head:
    """Returns the state of an output folder, after a check that a job with this mode may publish there."""
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
            check_may_append(output, head.manifest, schema, seed, may_widen=may_widen)
        elif exists(manifest_path):
            raise UserError(
                f"{manifest_path}: not a manifest of a dataset, so nothing can be added. Choose another "
                "--output, or replace it with --overwrite."
            )
    return head
