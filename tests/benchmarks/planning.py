"""Measures how long the plan of an epoch of ten million records takes, and how much memory.

python tests/benchmarks/planning.py [--quick]
"""

import argparse
import resource
import sys
import time
import types

import numpy as np
from data import draw_lengths
from measure import Row, tell

from trainer.windows import make_window_plan


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the records, and of what is allowed")
    parser.add_argument("--output", help="nothing is written there")
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    num_records = 10_000_000 // scale
    lengths = draw_lengths(num_records).astype(np.int32)
    shards = [
        types.SimpleNamespace(num_steps=part, num_bytes=part.astype(np.int64) * 32 + 60)
        for part in np.array_split(lengths, 100)
    ]
    before, begin = peak(), time.perf_counter()
    plan = make_window_plan(shards, batch_steps=6400)
    seconds, memory = time.perf_counter() - begin, peak() - before
    if plan.records != num_records:
        raise SystemExit(f"A plan of {plan.records:,} records, expected {num_records:,}.")
    name = f"plan of {num_records:,} records"
    tell(
        [
            Row(name, "s", seconds, "", None, seconds, 5.0 / scale, 2.0 / scale, at_most=True),
            Row(f"{name}, memory", "GiB", memory, "", None, memory, 1.0 / scale, 1.0 / scale, at_most=True),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
