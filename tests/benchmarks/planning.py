"""Measures how long the plan of an epoch of ten million records takes, and how much memory.

python tests/benchmarks/planning.py [--quick]
"""

import argparse
import resource
import statistics
import sys
import time
import types

import numpy as np
from data import draw_lengths
from measure import Row, tell

from trainer.batching.window import make_window_plan

# Of a shard.
NUM_RECORDS = 100_000


def peak() -> float:
    """The most that the process ever held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the records, and of the seconds allowed")
    parser.add_argument("--output", help="nothing is written there")
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    num_records = 10_000_000 // scale
    # Shard by shard: what drawing all lengths at once holds for a moment would hide what the plan holds.
    shards = [shard(number, NUM_RECORDS) for number in range(num_records // NUM_RECORDS)]
    before = peak()
    times = sorted(seconds_of_plan(shards, num_records, epoch) for epoch in range(3))
    after, seconds = peak(), statistics.median(times)
    name = f"plan of {num_records:,} records"
    tell(
        [
            Row(
                name,
                "s",
                seconds,
                "",
                None,
                seconds,
                floor=5.0 / scale,
                aim=2.0 / scale,
                at_most=True,
                note=f"three epochs took {times[0]:.2f} to {times[-1]:.2f} s",
            ),
            Row(
                f"{name}, memory",
                "GB",
                after,
                "",
                None,
                after,
                floor=1.0,
                aim=1.0,
                at_most=True,
                note=f"of the whole process; {before:.2f} GB before the plan, the lengths included",
            ),
        ]
    )


def shard(number: int, num_records: int) -> types.SimpleNamespace:
    """What the plan needs to know of a shard."""
    steps = draw_lengths(num_records, seed=number).astype(np.int32)
    return types.SimpleNamespace(num_steps=steps, num_bytes=steps.astype(np.int64) * 32 + 60)


def seconds_of_plan(shards: list[types.SimpleNamespace], num_records: int, epoch: int) -> float:
    begin = time.perf_counter()
    plan = make_window_plan(shards, batch_steps=6400, epoch=epoch)
    seconds = time.perf_counter() - begin
    if plan.records != num_records:
        raise SystemExit(f"A plan of {plan.records:,} records, expected {num_records:,}.")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
