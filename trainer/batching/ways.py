"""The ways of batching and of sharing the work, by name."""

from typing import Literal

Batching = Literal["window", "bucket", "pad", "exact"]
WAYS: tuple[Batching, ...] = ("window", "bucket", "pad", "exact")
# For these the counts of each length are enough (trainer.batching.plan); `window` takes the length of every record.
COUNTED_WAYS = WAYS[1:]

Strategy = Literal["auto", "one", "mirrored", "multi_worker"]
