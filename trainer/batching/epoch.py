"""The exact plan of an epoch of a split, whichever the way of batching, from its counts and indexes alone."""

from typing import Any, Literal

from trainer.batching.plan import Plan, check_only_pad, make_plan
from trainer.batching.windows import make_window_plan
from trainer.config import Batching
from trainer.data.dataset import Dataset


def plan_epoch(
    dataset: Dataset,
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
    num_readers: int = 1,
) -> Plan:
    """What `trainer.reading.batches.batches` yields with the same arguments: how many batches, of which shapes.

    Args:
        seed, epoch, num_readers: What only `window` hangs on. The others are planned as one reader would yield them.

    Raises:
        UserError: the split is not there, or its indexes are not those that the manifest lists.
        ValueError: a wrong argument; says which, the value and what was expected.
    """
    limits: dict[str, Any] = {"batch_steps": batch_steps, "batch_size": batch_size, "pad_to_multiple": pad_to_multiple}
    if batching != "window":
        counts = dataset.split(split).length_counts
        return make_plan(counts, batching=batching, pad_length=pad_length, truncate=truncate, **limits)
    check_only_pad(batching, pad_length=pad_length, truncate=truncate)
    return make_window_plan(dataset.indexes(split), num_readers=num_readers, seed=seed, epoch=epoch, **limits)
