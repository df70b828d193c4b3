"""Reads one epoch of a split as padded batches of records of similar length."""

import os
from typing import Any, Literal

import tensorflow as tf

from trainer.batching.bucket import BucketPlan
from trainer.batching.plan import Plan
from trainer.batching.plan_epoch import plan_epoch
from trainer.batching.window import WindowPlan
from trainer.config import Batching, Parts
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.parts import choose_parts
from trainer.data.select_windows import Windows, select_windows
from trainer.data.target import Vocabularies
from trainer.reading.tf_data_reader import bucket_batches
from trainer.reading.window_reader import window_batches

# Number of batches that are ready before they are requested.
PREFETCHED_BATCHES = 8


def batches(
    dataset: str | os.PathLike[str] | Dataset,
    split: str,
    *,
    batching: Batching = "window",
    batch_steps: int | None = None,
    batch_size: int | None = None,
    pad_to_multiple: int = 1,
    pad_length: int | None = None,
    truncate: Literal["head", "tail"] | None = None,
    seed: int = 0,
    epoch: int = 0,
    first_batch: int = 0,
    reader_index: int = 0,
    num_readers: int = 1,
    vocabularies: Vocabularies | None = None,
    windows: Windows | None = None,
    parts: Parts = "whole",
) -> tf.data.Dataset:
    """Returns one epoch of a split as a tf.data.Dataset of (features, label, weight).

    The result suits `model.fit(..., shuffle=False)` or a loop of your own. Each record is yielded once per epoch, in an
    order that depends on `seed` and `epoch` only. The batches are those of `lengthwise.plan_epoch` with the same
    arguments.

    features: A dict with each step feature [batch, time, *shape] and each context feature [batch, *shape] (float32,
    int64 or string), and `length` int32[batch]. Steps at and after `length` are padding: 0 or "". A missing value is
    NaN, -1 or b"\\xff".

    label: class: int64[batch]. distribution, multilabel: float32[batch, classes]. regression: float32[batch].
    step_class: int64[batch, time]. step_multilabel: float32[batch, time, classes]. step_regression: float32[batch,
    time], or float32[batch, time, width] if the label is the next value of a feature with several values per step.

    weight: float32[batch], or float32[batch, time] for labels per step. It is 0 for padding and for steps without a
    label.

    Args:
        dataset: An opened dataset, or its path.
        split: Name of the split.
        batching: The batching method: `window` (windows of records sorted by length), `bucket` (tf.data's
            bucket_by_sequence_length), `pad` (all records padded to one length) or `exact` (no padding).
        batch_steps: Budget of padded steps per batch, for each reader. A longer record makes a batch of one record.
        batch_size: Maximum number of records per batch, for each reader. If both limits are given, both hold. If
            neither is given, the budget is 6,400 steps, or less so that a small dataset has at least 20 batches.
        pad_to_multiple: For `window` and `bucket`: batches are padded to a multiple of this number of steps, so that
            they have fewer distinct shapes. That helps a model that is compiled for each shape (`jit_compile=True`).
        pad_length: For `pad`: steps to which all batches are padded; by default the longest length.
        truncate: For `pad` with `pad_length`: cut off the head or the tail of longer records.
        seed, epoch: Determine the order of the records and batches.
        first_batch: Number of batches to skip at the beginning of the epoch; (epoch, first_batch) is the position at
            which a run resumes. With `window`, the records of skipped batches are not read. The other methods read
            them, but do not parse them.
        reader_index: Index of this reader, from 0 to num_readers - 1.
        num_readers: Number of readers that together yield each record once. With `window`, all readers have the same
            number of batches, and batch i has about the same number of steps for all of them. If the records cannot be
            divided evenly, a batch has filler rows: one step of padding with weight 0. With the other methods, reader i
            of n yields every n-th record.
        vocabularies: The strings of each feature by its name, if a label that is the next value of a string feature is
            not to use the vocabularies of the dataset.
        windows: Reads only the windows of event time that overlap a range: (start, end), without the end, each as
            seconds since 1970, a datetime, a string in ISO 8601 or None for no limit; or a duration such as "7d" that
            ends with the newest event time of the dataset. A window is read as a whole.
        parts: For a dataset that stores long records in parts (`over_length: parts`): `independent` reads each part as
            a record of its own. The label of the last step of a part is still the first step of the next part, if the
            label is the next value of a feature.

    Raises:
        UserError: The dataset or the split does not exist, a file is not the one that the manifest lists, no window is
            selected, or a record is stored in parts and `parts` is not `independent`.
        ValueError: An argument is wrong. The message has its name, its value and what was expected.
    """
    if num_readers < 1:
        raise ValueError(f"num_readers is {num_readers}, expected at least 1.")
    if not 0 <= reader_index < num_readers:
        raise ValueError(f"reader_index is {reader_index}, expected 0 to num_readers - 1, which is {num_readers - 1}.")
    dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
    dataset = choose_parts(dataset, parts)
    if windows is not None:
        dataset = select_windows(dataset, split, windows)
    plan = plan_epoch(
        dataset,
        split,
        batching=batching,
        batch_steps=batch_steps,
        batch_size=batch_size,
        pad_to_multiple=pad_to_multiple,
        pad_length=pad_length,
        truncate=truncate,
        seed=seed,
        epoch=epoch,
        num_readers=num_readers,
    )
    return planned_batches(
        dataset,
        split,
        plan,
        seed=seed,
        epoch=epoch,
        first_batch=first_batch,
        reader_index=reader_index,
        num_readers=num_readers,
        vocabularies=vocabularies,
        with_rows=False,
    )


def planned_batches(
    dataset: Dataset,
    split: str,
    plan: Plan,
    *,
    seed: int = 0,
    epoch: int = 0,
    first_batch: int = 0,
    reader_index: int = 0,
    num_readers: int = 1,
    vocabularies: Vocabularies | None = None,
    with_rows: bool = True,
) -> tf.data.Dataset:
    """Returns the batches of a plan as a tf.data.Dataset of (features, label, weight, row).

    `row` is int64[batch], the position of each record in `Dataset.index(split)`, or -1 for a filler row. All else is as
    in `batches`.

    Args:
        plan: A plan of the split.
        seed, epoch: Determine the order. A plan by `window` already contains its order.
        with_rows: False leaves out `row`.
    """
    options: dict[str, Any] = {
        "first_batch": first_batch,
        "reader_index": reader_index,
        "vocabularies": dataset.vocabularies() if vocabularies is None else vocabularies,
        "with_rows": with_rows,
    }
    if isinstance(plan, WindowPlan):
        planned = window_batches(dataset, split, plan, **options)
    else:
        assert isinstance(plan, BucketPlan)
        planned = bucket_batches(dataset, split, plan, seed=seed, epoch=epoch, num_readers=num_readers, **options)
    return planned.prefetch(PREFETCHED_BATCHES)
