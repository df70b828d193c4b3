"""Runs the benchmarks of speed and memory, each against the textbook way in the same run.

    python tests/benchmarks/run.py [--quick] [--only reading planning training loop workers prepare ...]

Writes benchmark.json and benchmark.png into build/benchmarks; `--quick` takes less than a minute, and is less exact.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import subprocess
import sys
import time

from chart import draw
from measure import Row, describe_machine, print_table

HERE = pathlib.Path(__file__).parent
BENCHMARKS = (
    "reading",
    "planning",
    "training",
    "loop",
    "stateful",
    "workers",
    "prepare",
    "streaming",
    "predict",
    "growth",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less data, one repeat")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS, help="default: all")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    begin, rows = time.monotonic(), []
    for name in options.only:
        print(f"{name} …", file=sys.stderr, flush=True)
        rows += run(name, options)
    machine = describe_machine()
    result = {"quick": options.quick, "machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}
    (options.output / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(options.output / "benchmark.png", f"Lengthwise on {machine['cores']} cores of {machine['processor']}", rows)
    print_table(rows)
    for command in dict.fromkeys(row.command for row in rows):
        print(f"To repeat: {command}")
    software = ", ".join(f"{name} {version}" for name, version in machine["software"].items())
    print(f"{machine['cores']} cores, {machine['processor']}, Python {machine['python']}, {software}")
    print(
        f"Numbers are medians; the smallest and the largest ratio are in brackets. {time.monotonic() - begin:,.0f} s."
    )


def run(name: str, options: argparse.Namespace) -> list[Row]:
    """Runs a benchmark in a process of its own, and returns its rows."""
    arguments = ["--output", str(options.output), *(["--quick"] if options.quick else [])]
    begin = time.monotonic()
    done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} ended with status {done.returncode}.")
    print(f"{name}: {time.monotonic() - begin:,.0f} s", file=sys.stderr, flush=True)
    command = shlex.join(["python", f"tests/benchmarks/{name}.py", *arguments])
    return [Row(**values | {"command": command}) for values in json.loads(done.stdout.splitlines()[-1])]


if __name__ == "__main__":
    main()
