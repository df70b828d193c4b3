"""Cutting sorted records into batches: within the limits, each record in one batch, no very small batch."""

import numpy as np
import pytest

from trainer.batching.cut import BatchLimits, cut_batches


def cut_slowly(lengths, batch_steps):
    """The same batches, built one record at a time."""
    left = sorted(range(len(lengths)), key=lambda n: -lengths[n])
    batches = []
    while left:
        full = []
        for position in left:
            if full and (len(full) + 1) * lengths[left[0]] > batch_steps:
                break
            full.append(position)
        if batches and len(full) < len(left) < 1.5 * len(full):
            full = full[: len(left) // 2]
        batches.append(full)
        left = left[len(full) :]
    return batches


@pytest.mark.parametrize("batch_steps", [1, 7, 64, 1000, 10**6])
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_batches_hold_similar_lengths_within_the_budget(count, batch_steps):
    lengths = np.random.default_rng(count).integers(1, 90, count).tolist()
    batches = [batch.tolist() for batch in cut_batches(lengths, batch_steps=batch_steps)]
    assert batches == cut_slowly(lengths, batch_steps)
    assert sorted(n for batch in batches for n in batch) == list(range(count))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[n] for n in batch) <= batch_steps


@pytest.mark.parametrize(
    ("limits", "rows"),
    [
        (BatchLimits(100, None), 10),
        (BatchLimits(None, 7), 7),
        (BatchLimits(100, 7), 7),
        (BatchLimits(20, 7), 2),
        (BatchLimits(3, None), 1),
        (BatchLimits(100, None, pad_to_multiple=8), 6),
    ],
)
def test_a_full_batch_of_records_of_ten_steps_keeps_both_limits(limits, rows):
    assert limits.rows(10) == rows
