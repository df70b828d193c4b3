"""Plans an epoch of a split by any batching method, from the manifest and the indexes alone."""

from typing import Any, Literal

from trainer.batching.bucket import check_pad_arguments, make_bucket_plan
from trainer.batching.plan import Plan
from trainer.batching.window import make_window_plan
from trainer.config import Batching, Parts
from trainer.data.dataset import Dataset
from trainer.data.parts import check_whole, choose_parts
from trainer.data.select_windows import Windows, select_windows


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
    windows: Windows | None = None,
    parts: Parts = "whole",
) -> Plan:
    """Returns the plan of an epoch: the number and the shapes of the batches that `batches` yields.

    `lengthwise.batches` takes the same arguments and describes them. No record is read.

    Args:
        dataset: An opened dataset.
        split: Name of the split.
        seed, epoch, num_readers: Only the plan of `window` depends on them. The other methods are planned as for one
            reader.

    Returns:
        A plan with `num_batches`, `records`, `steps`, `padded_steps`, `useful_share`, `shapes` and `largest_batch`. The
        plan of `window` also has `rows(batch, reader_index)`: the records of each batch, as int64[rows] positions in
        the split; with `windows`, in its selected shards.

    Raises:
        UserError: The split does not exist, its indexes are not those that the manifest lists, no window is selected,
            or a record is stored in parts and `parts` is not `independent`.
        ValueError: An argument is wrong. The message has its name, its value and what was expected.
    """
    dataset = choose_parts(dataset, parts)
    check_whole(dataset, split, batching)
    if windows is not None:
        dataset = select_windows(dataset, split, windows)
    limits: dict[str, Any] = {"batch_steps": batch_steps, "batch_size": batch_size, "pad_to_multiple": pad_to_multiple}
    if batching != "window":
        counts = dataset.split(split).length_counts
        return make_bucket_plan(counts, batching=batching, pad_length=pad_length, truncate=truncate, **limits)
    check_pad_arguments(batching, pad_length=pad_length, truncate=truncate)
    return make_window_plan(dataset.indexes(split), num_readers=num_readers, seed=seed, epoch=epoch, **limits)
