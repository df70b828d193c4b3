"""Presents the parts of long records as records of their own, and refuses them where whole records are read."""

import collections
import dataclasses

from pipeline.errors import UserError, counted
from pipeline.format.models import Split
from trainer.data.dataset import Dataset


def choose_parts(dataset: Dataset, parts: str) -> Dataset:
    """Returns the dataset; with `independent`, one in which each part of a record is a record of its own.

    Its splits have the records, labels and lengths of the parts. Its other counts, its statistics and its fingerprint
    stay those of the dataset.

    Args:
        parts: `whole` or `independent`.
    """
    if parts == "whole" or not dataset.schema.stores_parts:
        return dataset
    splits = {name: _separate(split, dataset) for name, split in dataset.manifest.splits.items()}
    return dataclasses.replace(dataset, manifest=dataset.manifest.model_copy(update={"splits": splits}))


def _separate(split: Split, dataset: Dataset) -> Split:
    if split.parts is None:  # this was done before
        return split
    size = dataset.schema.max_length
    assert size is not None
    lengths: collections.Counter[int] = collections.Counter()
    for length, count in split.length_counts.items():
        for part, number in ((size, length // size), (length % size, 1)):
            if part and number:
                lengths[part] += number * count
    shards = [shard.model_copy(update={"records": shard.examples, "parts": None}) for shard in split.shards]
    return split.model_copy(
        update={
            "records": split.parts,
            "parts": None,
            "labels": split.labels if dataset.schema.label.per_step else split.parts,
            "shards": tuple(shards),
            "length_counts": dict(sorted(lengths.items())),
        }
    )


def has_parts(dataset: Dataset, split: str) -> bool:
    """Returns whether a record of the split is stored in several parts."""
    found = dataset.split(split)
    return found.parts is not None and found.parts > found.records


def check_whole(dataset: Dataset, split: str, batching: str) -> None:
    """Raises a UserError if a record of the split is stored in several parts, which `batching` cannot read."""
    if has_parts(dataset, split):
        found = dataset.split(split)
        raise UserError(
            f"{dataset.path}: the split {split!r} stores {counted(found.records, 'record')} as {found.parts:,} parts "
            f"(over_length: parts), but batching {batching} reads whole records. Read the parts of a record one after "
            "the other, with batching stateful (to evaluate: --chunk_steps); or read each part as a record of its own, "
            "with --parts independent."
        )
