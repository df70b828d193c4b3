"""Reads a dataset as batches of like lengths: every record once an epoch, in an order that seed and epoch decide."""

import os
from typing import Any, Literal

import tensorflow as tf

from trainer.batching.bucket import BucketPlan
from trainer.batching.plan import Plan
from trainer.batching.plan_epoch import plan_epoch
from trainer.batching.window import WindowPlan
from trainer.config import Batching
from trainer.data.dataset import Dataset, open_dataset
from trainer.data.target import Vocabularies
from trainer.reading.bucket_reader import bucket_batches
from trainer.reading.window_reader import window_batches

# Batches that are ready before they are asked for.
READY = 8


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
) -> tf.data.Dataset:
    """One epoch of a split as a tf.data.Dataset of (features, label, weight), for `model.fit` or a loop of your own.

    features: a dict of each step feature [batch, time, *shape] and each context feature [batch, *shape] (float32, int64
    or string), and `length` int32[batch]. Steps at and after `length` are padding: 0 or "". A value that is missing is
    NaN, -1 or b"\\xff". label: class int64[batch]; distribution and multilabel float32[batch, classes]; regression
    float32[batch]; step_class int64[batch, time]; step_multilabel float32[batch, time, classes]; step_regression
    float32[batch, time], or float32[batch, time, width] where a vector comes next. weight: float32[batch], or
    float32[batch, time] for labels per step, where 0 marks padding and steps without a label.

    The batches are those of `trainer.batching.plan_epoch.plan_epoch`, which takes the same arguments.

    Args:
        batching: `window` (windows of records sorted by length), `bucket` (tf.data's bucket_by_sequence_length), `pad`
            (all to one length), `exact` (no padding).
        batch_steps: Budget of padded steps a batch, for each reader. A record that is longer makes a batch of one.
        batch_size: Records a batch, for each reader, at most; both limits hold where both are given. With neither, the
            budget is such that an epoch has some batches at least.
        pad_to_multiple: For `window` and `bucket`: steps to a multiple of which batches are padded; 8 suits half
            precision on a GPU.
        pad_length, truncate: For `pad`, as for `trainer.batching.plan.make_bucket_plan`.
        first_batch: Batches of the epoch that are left out at its beginning, so (epoch, first_batch) is where a run
            goes on. By `window` their records are not read; the others put them into batches and parse none.
        reader_index, num_readers: The readers together yield every record once. By `window` they all have the same
            number of batches, each of about as many steps as the others' of its number; where records do not divide, a
            batch has rows of one step of padding, of weight 0. Otherwise reader i of n yields every n-th record.
        vocabularies: Those by which the label `next_of` a string is numbered, if not the dataset's own.

    Raises:
        UserError: the dataset or the split is not there, or its files are not those that the manifest lists.
        ValueError: a wrong argument.
    """
    if num_readers < 1:
        raise ValueError(f"num_readers is {num_readers}, expected at least 1.")
    if not 0 <= reader_index < num_readers:
        raise ValueError(f"reader_index is {reader_index}, expected 0 to num_readers - 1, which is {num_readers - 1}.")
    dataset = dataset if isinstance(dataset, Dataset) else open_dataset(dataset)
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
    return numbered_batches(
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


def numbered_batches(
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
    """`batches` by a plan of the split, with one element more: `row` int64[batch], the place of each record in
    `Dataset.index(split)`; -1 in a row that is no record.

    Args:
        seed, epoch: Of the order; a plan in windows has it in itself.
        with_rows: False leaves that element out again.
    """
    options: dict[str, Any] = {
        "first_batch": first_batch,
        "reader_index": reader_index,
        "vocabularies": dataset.vocabularies() if vocabularies is None else vocabularies,
        "with_rows": with_rows,
    }
    if isinstance(plan, WindowPlan):
        numbered = window_batches(dataset, split, plan, **options)
    else:
        assert isinstance(plan, BucketPlan)
        numbered = bucket_batches(dataset, split, plan, seed=seed, epoch=epoch, num_readers=num_readers, **options)
    return numbered.prefetch(READY)
