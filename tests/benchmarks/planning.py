"""Measures the time and the memory that the plan of an epoch of ten million records takes.

python tests/benchmarks/planning.py [--quick]
"""

import argparse
import resource
import statistics
import time
import types

import numpy as np
from data import draw_lengths
from measure import Row, print_rows

from trainer.batching.window import make_window_plan

# Records per shard.
NUM_RECORDS = 100_000


def peak_gigabytes() -> float:
    """Returns the peak memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the records, with a tenth of the time limit")
    parser.add_argument("--output", help="not used: this benchmark writes no files")
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    num_records = 10_000_000 // scale
    # Lengths are drawn shard by shard. Drawing all lengths at once needs more memory than the plan, and would hide it.
    shards = [draw_shard(number, NUM_RECORDS) for number in range(num_records // NUM_RECORDS)]
    before = peak_gigabytes()
    times = sorted(seconds_of_plan(shards, num_records, epoch) for epoch in range(3))
    after, seconds = peak_gigabytes(), statistics.median(times)
    name = f"plan of {num_records:,} records"
    print_rows(
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
                note=f"of the whole process; {before:.2f} GB before the plan, including the lengths",
            ),
        ]
    )


def draw_shard(number: int, num_records: int) -> types.SimpleNamespace:
    """Returns the attributes of a shard index that the plan reads."""
    steps = draw_lengths(num_records, seed=number).astype(np.int32)
    return types.SimpleNamespace(num_steps=steps, num_bytes=steps.astype(np.int64) * 32 + 60)


def seconds_of_plan(shards: list[types.SimpleNamespace], num_records: int, epoch: int) -> float:
    """Returns the time to plan an epoch."""
    begin = time.perf_counter()
    plan = make_window_plan(shards, batch_steps=6400, epoch=epoch)
    seconds = time.perf_counter() - begin
    if plan.records != num_records:
        raise SystemExit(f"The plan has {plan.records:,} records, expected {num_records:,}.")
    return seconds


if __name__ == "__main__":
    main()
