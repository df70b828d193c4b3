"""Measures training on one GPU: useful steps per second by budget, with the reader and with batches in memory.

    python tests/benchmarks/gpu.py [--checks] [--seconds 8] [--budgets 6400 65536 262144 1048576]

Prints a table and writes gpu.json. `--checks` also runs the checks of `pytest -m gpu`, on a machine without pytest.
Everything together takes less than six minutes, needs no network and no Beam. Without a GPU it does nothing, unless
`--cpu` is given, which shows only that the programs run.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))

import gpu_checks  # noqa: E402
import gpu_programs  # noqa: E402

# The budgets of the review of what would starve a GPU.
BUDGETS = (6_400, 65_536, 262_144, 1_048_576)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checks", action="store_true", help="also run the checks of tests/test_gpu.py")
    parser.add_argument("--cpu", action="store_true", help="run although there is no GPU")
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds of each measurement (default: 8)")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="padded steps of a batch")
    parser.add_argument("--num_records", type=int, default=100_000, help="records of the dataset (default: 100,000)")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    options = parser.parse_args()
    environment = gpu_programs.call("describe")
    if not environment.get("gpus") and not options.cpu:
        print("gpu: skipped, TensorFlow sees no GPU. --cpu runs the programs on the CPU.")
        return
    options.output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"environment": environment, "checks": {}, "throughput": []}
    for check in gpu_checks.CHECKS if options.checks else ():
        result["checks"][check.__name__] = found = run_check(check)
        print(f"gpu: {'passed' if found['passed'] else 'FAILED'} in {found['seconds']:.0f} s: {check.__name__}")
        write(options.output, result)  # so that a later failure loses nothing
    dataset = gpu_programs.make_dataset(options.output / "data", options.num_records)
    result["throughput"] = gpu_programs.call("throughput", dataset, options.seconds, *options.budgets)
    write(options.output, result)
    print(f"{'budget':>10} {'rows':>8} {'useful':>7} {'in memory':>12} {'with reader':>12} {'lost to reader':>15}")
    for row in result["throughput"]:
        print(
            f"{row['batch_steps']:>10,} {row['rows']:>8,.0f} {row['useful_share']:>7.1%} "
            f"{row['in_memory_steps_per_second']:>12,.0f} {row['with_reader_steps_per_second']:>12,.0f} "
            f"{row['lost_to_reader']:>15.0%}"
        )
    print(f"useful steps per second, two LSTM layers of 100 units; {options.output / 'gpu.json'} has all of it")
    if not all(found["passed"] for found in result["checks"].values()):
        raise SystemExit(1)


def run_check(check: Any) -> dict[str, Any]:
    """Returns what a check measured, whether it passed, its message and its duration."""
    begin = time.monotonic()
    found: dict[str, Any] = {"passed": True}
    with tempfile.TemporaryDirectory() as folder:
        try:
            found |= check(pathlib.Path(folder))
        except Exception as error:  # one failure must not hide the results of the other checks
            found |= {"passed": False, "message": f"{type(error).__name__}: {error}"}
    return found | {"seconds": time.monotonic() - begin}


def write(output: pathlib.Path, result: dict[str, Any]) -> None:
    (output / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
