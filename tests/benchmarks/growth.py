"""Measures what a dataset costs when it has grown: the time and the memory to open it, to append to it, to compact it.

    python tests/benchmarks/growth.py [--quick] [--scale 1.0] [--only shards files strings commits generations]

Each large dataset is compared with a small one that has one generation, in the same run. Scale 1 means 10,000 shards,
1,000,000 raw files, 10,000,000 distinct strings, 10,000 commits of which each hundredth is a compaction, and 10,000
commits without a compaction (so 10,000 generations).

The datasets of shards and strings are made by `lengthwise prepare`. The others would take hours: the functions of
`prepare` write their files without its Beam job, and the list of raw files names files that do not exist.
"""

import argparse
import functools
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from measure import Row, print_rows, run_command, run_program

from pipeline.create_once import create_once
from pipeline.files import file_sha256, join, remove, replace
from pipeline.format.commit import AddedGeneration, Commit, commit_path, sha256_of
from pipeline.format.manifest import read_manifest
from pipeline.format.sources import SourceRow, SourcesFile, write_sources
from pipeline.format.summary import NO_REJECTS, GenerationSummary
from pipeline.raw.json_lines import Chunk
from pipeline.schema.schema import Schema
from pipeline.writing.build_summary import build_summary
from pipeline.writing.commit_log import recover, write_summary
from pipeline.writing.job import JobFiles, name_files
from pipeline.writing.open_shard import ShardSummary
from pipeline.writing.paths import new_generation, sources_path
from pipeline.writing.shards import ShardWriter
from pipeline.writing.stages import merge_into_shards, parse_into_runs
from pipeline.writing.write_sources import list_sources

KINDS = ("shards", "files", "strings", "commits", "generations")
# A compaction follows this number of commits in `commits`.
_COMPACT_EVERY = 100
_APPENDED = 100
_PLAIN = "id: id\nsteps: {x: {dtype: float32}}\nlabel: {name: y, kind: class, classes: [a, b]}\n"
_PLAIN += "splits: {train: 0.5, test: 0.5}\n"
_STRINGS = "id: id\nsteps: {word: {dtype: string, vocabulary: 50000}}\n"
_STRINGS += "label: {name: y, kind: class, classes: [a, b]}\nsplits: {train: 0.5, test: 0.5}\n"
_OPEN = """
import sys, time
from lengthwise import open_dataset
begin = time.perf_counter()
open_dataset(sys.argv[1], commit=int(sys.argv[2]) if sys.argv[2:] else None)
print(time.perf_counter() - begin)
"""


class Entry(NamedTuple):
    """One commit: the generation that it adds, and the names of those that it removes."""

    generation: str
    summary_sha256: str
    removed: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the numbers")
    parser.add_argument("--scale", type=float, default=0.1, help="share of the numbers; default: 0.1")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, help="default: all")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    options = parser.parse_args()
    scale = 0.01 if options.quick else options.scale
    folder = options.output / "growth"
    shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for kind in options.only:
        rows += measure(folder / kind, kind, scale)
        shutil.rmtree(folder / kind)
    print_rows(rows)


def measure(folder: pathlib.Path, kind: str, scale: float) -> list[Row]:
    """Returns the rows of one kind of growth."""
    make: dict[str, tuple[str, int, Callable[[pathlib.Path, int], None]]] = {
        "shards": ("shards", int(10_000 * scale), make_shards),
        "files": ("raw files", int(1_000_000 * scale), make_files),
        "strings": ("distinct strings", int(10_000_000 * scale), make_strings),
        "commits": ("commits", int(10_000 * scale), functools.partial(make_commits, compact=True)),
        "generations": ("generations", int(10_000 * scale), functools.partial(make_commits, compact=False)),
    }
    unit, number, function = make[kind]
    print(f"making {number:,} {unit}", file=sys.stderr, flush=True)
    results = []
    for size in (number, {"shards": 2, "commits": 1, "generations": 1}.get(kind, 100)):
        path = folder / str(size)
        path.mkdir(parents=True)
        begin = time.monotonic()
        function(path, size)
        print(f"made {size:,} {unit} in {time.monotonic() - begin:,.0f} s", file=sys.stderr, flush=True)
        results.append(measure_commands(path))
    rows = []
    for operation, large in results[0].items():
        small = results[1][operation]
        for measured, measure_unit in (("seconds", "s"), ("peak_mebibytes", "MiB")):
            ours, theirs = large[measured], small[measured]
            unit_is_first = (operation, measure_unit) == ("open", "s")
            memory = ", peak memory" if measure_unit == "MiB" else ""
            rows.append(
                Row(
                    f"{operation}, {number:,} {unit}{memory}",
                    measure_unit,
                    ours,
                    "the same with a small dataset",
                    theirs,
                    ours / theirs,
                    floor=6.0 if measure_unit == "MiB" else 100.0,
                    aim=2.0 if measure_unit == "MiB" else 10.0,
                    at_most=True,
                    note=f"manifest.json has {large['manifest_bytes']:,} bytes" if unit_is_first else "",
                )
            )
    return rows


def measure_commands(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Returns the seconds and the peak memory of each operation, in the order in which a user would do them."""
    dataset, schema, raw = path / "dataset", path / "schema.yaml", path / "new.jsonl"
    opened = run_open(dataset)
    opened["manifest_bytes"] = (dataset / "manifest.json").stat().st_size
    word = "strings" in str(path)
    write_raw(raw, _APPENDED, first=10**9, values=(lambda n: [f"new {n}"]) if word else None)
    appended = run_command("prepare", raw, "--schema", schema, "--output", dataset, "--append")
    compacted = run_command("compact", dataset, *(["--num_shards", 4] if word else []))
    # The commit before those that were just made is found by reading the log.
    older = run_open(dataset, max(1, (read_manifest(str(dataset)).commit or 0) - 2))
    return {
        "open": opened,
        f"append {_APPENDED} records": appended,
        "compact": compacted,
        "open an older commit": older,
        "inspect --commits": run_command("inspect", dataset, "--commits"),
    }


def run_open(dataset: pathlib.Path, *commit: int) -> dict[str, Any]:
    """Opens a dataset in a process of its own. The seconds are those of the call, without the imports."""
    opened = run_program([sys.executable, "-c", _OPEN, dataset, *commit])
    return opened | {"seconds": float(opened["stdout"])}


def write_raw(
    path: pathlib.Path, num_records: int, *, first: int = 0, values: Callable[[int], list[Any]] | None = None
) -> None:
    """Writes records as JSON Lines. Without `values` each record has one number."""
    with open(path, "w") as file:
        for number in range(first, first + num_records):
            features = {"x": [number % 7]} if values is None else {"word": values(number)}
            file.write(json.dumps({"id": f"record-{number}", "y": "ab"[number % 2], **features}) + "\n")


def make_shards(path: pathlib.Path, number: int) -> None:
    """Makes a dataset with this number of shards in two splits."""
    (path / "schema.yaml").write_text(_PLAIN)
    write_raw(path / "raw.jsonl", 40_000)
    prepare(path, "--num_shards", max(1, number // 2))


def make_strings(path: pathlib.Path, number: int) -> None:
    """Makes a dataset with this number of distinct strings, fifty in each record."""
    (path / "schema.yaml").write_text(_STRINGS)
    write_raw(path / "raw.jsonl", number // 50, values=lambda record: [f"string {record}-{i}" for i in range(50)])
    prepare(path)


def prepare(path: pathlib.Path, *flags: Any) -> None:
    run_command("prepare", path / "raw.jsonl", "--schema", path / "schema.yaml", "--output", path / "dataset", *flags)


def make_files(path: pathlib.Path, number: int) -> None:
    """Makes a dataset of a few records whose list of raw files has this number of entries."""
    (path / "schema.yaml").write_text(_PLAIN)
    files = name_files(str(path / "dataset"))
    listed = sources_path(files.generation)
    random = np.random.default_rng(0)
    rows = (SourceRow(f"/data/raw/{i:09d}.jsonl", 40, 40, random.bytes(32)) for i in range(number))
    summary = write_generation(path, files, range(100))
    with replace(join(files.output, listed)) as file:
        written = write_sources(file, rows)
    sources = SourcesFile(path=listed, sha256=file_sha256(join(files.output, listed)), **written._asdict())
    summary = summary.model_copy(update={"sources": sources})
    write_summary(files.output, summary)
    write_log(path, [Entry(summary.generation, sha256_of(summary.to_json()), ())])


def make_commits(path: pathlib.Path, number: int, *, compact: bool) -> None:
    """Makes a dataset with this number of commits, each of which adds four records or merges what was added."""
    (path / "schema.yaml").write_text(_PLAIN)
    output = str(path / "dataset")
    live: list[str] = []
    log: list[Entry] = []
    compactions = range(_COMPACT_EVERY - 10, number, _COMPACT_EVERY) if compact else range(0)
    last_compaction = max(compactions, default=0)
    for commit in range(1, number + 1):
        removed = tuple(live) if commit in compactions else ()
        # Only the generations that the newest commit still has need files.
        if commit < last_compaction:
            entry = Entry(new_generation(), "0" * 64, removed)
        else:
            summary = write_generation(path, name_files(output), range(4 * commit, 4 * commit + 4))
            entry = Entry(summary.generation, sha256_of(summary.to_json()), removed)
            write_summary(output, summary)
        log.append(entry)
        live = [entry.generation] if removed else [*live, entry.generation]
    write_log(path, log)


def write_generation(path: pathlib.Path, files: JobFiles, numbers: range) -> GenerationSummary:
    """Writes the files of a generation without a Beam job."""
    schema, raw = Schema.read(str(path / "schema.yaml")), path / "raw.jsonl"
    write_raw(raw, len(numbers), first=numbers.start)
    chunk = Chunk(str(raw), 0, raw.stat().st_size, False, raw.stat().st_size)
    parsed = parse_into_runs([chunk], schema, seed=0, folder=files.folder, keep_raw=False)
    writer = ShardWriter(schema, files.output, files.generation)
    shards: list[ShardSummary] = merge_into_shards(0, 1, parsed.runs, writer, folder=files.folder).shards
    remove([run.path for run in parsed.runs])
    return build_summary(
        schema,
        shards,
        strings={},
        rejected=NO_REJECTS,
        sources=list_sources([], output=files.output, generation=files.generation),
        seed=0,
        generation=files.generation,
    )


def write_log(path: pathlib.Path, log: list[Entry]) -> None:
    """Writes commits, and the manifest of the last one."""
    output, previous = str(path / "dataset"), None
    for number, entry in enumerate(log, 1):
        commit = Commit(
            number=number,
            previous_sha256=previous,
            time="2026-01-01T00:00:00Z",
            operation="create" if number == 1 else "compact" if entry.removed else "append",
            added=(AddedGeneration(generation=entry.generation, summary_sha256=entry.summary_sha256),),
            removed=entry.removed,
        )
        data = commit.to_json()
        create_once(join(output, commit_path(number)), data)
        previous = sha256_of(data)
    recover(output)


if __name__ == "__main__":
    main()
