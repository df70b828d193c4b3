"""Estimates what a job on an engine takes for 100 GB and for 10 TB of raw records, from constants that it measures.

    python tests/benchmarks/scale.py [--quick] [--raw_gigabytes 100 10000] [--cores 64] [--num_shards 8000]

It runs the stages of such a job one by one, on records of 8 features: parsing into blocks, cutting blocks by shard, and
writing the shards of one number. It publishes simulated shards, two numbers of them, so that the cost of one shard is
their difference. Each stage runs in a process of its own, which gives its peak memory. The rest is arithmetic.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import pickle
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any

from data import schema_text, write_raw
from measure import run_program

from pipeline.beam.engine_shuffle import KeyByShard, keyed_bytes
from pipeline.format.manifest import FILE_NAME, read_manifest
from pipeline.format.summary import NO_REJECTS, summary_path
from pipeline.raw.json_lines import CHUNK_BYTES, Chunk
from pipeline.schema.schema import Schema
from pipeline.shuffle.packed_blocks import PACKED_BYTES, PackedBlock, pack_block
from pipeline.shuffle.sorted_rows import Block
from pipeline.writing.base import Base
from pipeline.writing.build_summary import build_summary
from pipeline.writing.commit_log import Change, commit, write_summary
from pipeline.writing.job import name_files
from pipeline.writing.shards import SHARD_BYTES, ShardWriter
from pipeline.writing.stages import ParsedBlocks, parse_into_blocks, write_grouped
from pipeline.writing.write_sources import list_sources

STAGES = ("parse", "key", "write", "publish")
# Number of shards in the measurement of the step that cuts blocks by shard.
_NUM_SHARDS = 1_000
# Requests to S3 for one shard of one split: of its file, and of its index.
_PUTS_PER_SHARD = 2
# Requests to S3 for a chunk of a raw file: its size, and pieces that grow from 256 KiB to 8 MiB.
_GETS_PER_CHUNK = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer records and shards")
    parser.add_argument("--raw_gigabytes", type=float, nargs="+", default=[100, 10_000], help="default: 100 10000")
    parser.add_argument(
        "--num_shards", type=int, default=8_000, help="of a second job of the largest size; default: 8000"
    )
    parser.add_argument("--cores", type=int, default=64, help="cores of the cluster; default: 64")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("build/benchmarks"))
    parser.add_argument("--stage", nargs=2, metavar=("STAGE", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.output / "scale"
    if options.stage:
        stage, number = options.stage
        run: dict[str, Any] = {"parse": run_parse, "key": run_key, "write": run_write, "publish": run_publish}
        print(json.dumps(run[stage](folder, int(number))))
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    num_records = 5_000 if options.quick else 75_000
    (folder / "schema.yaml").write_text(schema_text(8))
    write_raw(folder / "raw.jsonl", 8, num_records)
    shards = (100, 200) if options.quick else (2_000, 20_000)
    constants = measure(folder, num_records, shards)
    print_constants(constants)
    sizes = [int(size * 1e9) for size in sorted(options.raw_gigabytes)]
    print_estimates(constants, [*((size, None) for size in sizes), (sizes[-1], options.num_shards)], options.cores)
    shutil.rmtree(folder)


@dataclasses.dataclass(frozen=True)
class Constants:
    """What was measured. Rates are of one core; memory is the peak of a whole process, in MiB."""

    raw_bytes: float  # of a record
    example_bytes: float  # of a record in a shard
    packed_bytes: dict[int, float]  # of a record, by the number of records in a block
    parse_rate: float  # raw bytes per second
    key_rate: float  # packed bytes per second
    write_rate: float  # bytes of shards per second
    parse_memory: float
    key_memory: float
    write_memory: float
    shard_bytes: float  # of a shard in the message that describes it
    manifest_bytes: float  # of a shard in the manifest
    summary_bytes: float  # of a shard in the summary of its generation
    publish_seconds: float  # of a shard
    open_seconds: float  # of a shard, for each reader
    publish_memory: float  # of a shard
    publish_start_memory: float


def measure(folder: pathlib.Path, num_records: int, shards: tuple[int, int]) -> Constants:
    """Runs the stages, and returns the constants.

    Args:
        shards: Two numbers of shards to publish.
    """
    parse, key, write = (run_stage(folder, name, num_records) for name in ("parse", "key", "write"))
    few, many = (run_stage(folder, "publish", number) for number in shards)
    more = shards[1] - shards[0]
    per_shard = {name: (many[name] - few[name]) / more for name in many if name != "shard_bytes"}
    return Constants(
        raw_bytes=parse["raw_bytes"] / num_records,
        example_bytes=parse["example_bytes"] / num_records,
        packed_bytes={int(number): size for number, size in parse["packed_bytes"].items()},
        parse_rate=parse["raw_bytes"] / parse["seconds"],
        key_rate=key["bytes"] / key["seconds"],
        write_rate=write["bytes"] / write["seconds"],
        parse_memory=parse["peak_mebibytes"],
        key_memory=key["peak_mebibytes"],
        write_memory=write["peak_mebibytes"],
        shard_bytes=many["shard_bytes"],
        manifest_bytes=per_shard["manifest_bytes"],
        summary_bytes=per_shard["summary_bytes"],
        publish_seconds=per_shard["seconds"],
        open_seconds=per_shard["open_seconds"],
        publish_memory=per_shard["peak_mebibytes"],
        publish_start_memory=few["peak_mebibytes"] - per_shard["peak_mebibytes"] * shards[0],
    )


def run_stage(folder: pathlib.Path, stage: str, number: int) -> dict[str, Any]:
    """Runs a stage in a process of its own. Returns what it measured, and its peak memory."""
    print(f"{stage}: {number:,} …", file=sys.stderr, flush=True)
    done = run_program([sys.executable, __file__, "--output", folder.parent, "--stage", stage, number])
    return {**json.loads(done["stdout"].splitlines()[-1]), "peak_mebibytes": done["peak_mebibytes"]}


def parse_raw(folder: pathlib.Path) -> Iterator[ParsedBlocks]:
    """Parses the raw file, chunk by chunk."""
    raw, schema = folder / "raw.jsonl", Schema.read(str(folder / "schema.yaml"))
    size = raw.stat().st_size
    for start in range(0, size, CHUNK_BYTES):
        chunk = Chunk(str(raw), start, min(start + CHUNK_BYTES, size), False, size)
        yield parse_into_blocks([chunk], schema, seed=0, keep_raw=False)


def run_parse(folder: pathlib.Path, num_records: int) -> dict[str, Any]:
    begin, seconds, example_bytes = time.perf_counter(), 0.0, 0
    packed: dict[int, float] = {}
    with open(folder / "blocks", "wb") as file:
        for parsed in parse_raw(folder):
            seconds += time.perf_counter() - begin
            example_bytes += sum(parsed.totals.values())
            if not packed:
                packed = measure_packed(PackedBlock(parsed.blocks[0]).unpack())
            for block in parsed.blocks:
                pickle.dump(block, file)
            begin = time.perf_counter()
    raw_bytes = (folder / "raw.jsonl").stat().st_size
    return {"seconds": seconds, "raw_bytes": raw_bytes, "example_bytes": example_bytes, "packed_bytes": packed}


def measure_packed(block: Block) -> dict[int, float]:
    """Returns the packed bytes of a record, for blocks of several numbers of records."""
    found = {}
    for number in (1, 4, 16, 64, 256, 1024):
        pieces = [Block(block.rows[n : n + number], block.payloads[n : n + number]) for n in range(0, 1024, number)]
        pieces = [piece for piece in pieces if piece.payloads]
        found[number] = sum(len(pack_block(piece)) for piece in pieces) / sum(len(piece.payloads) for piece in pieces)
    return found


def read_blocks(folder: pathlib.Path) -> Iterator[bytes]:
    with open(folder / "blocks", "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        while file.tell() < end:
            yield pickle.load(file)  # our own, written by the stage before


def run_key(folder: pathlib.Path, num_records: int) -> dict[str, Any]:
    step, num_bytes, begin = KeyByShard(), 0, time.perf_counter()
    step.start_bundle()
    with open(folder / "keyed", "wb") as file:
        for block in read_blocks(folder):
            num_bytes += len(block)
            for _, keyed in step.process(block, num_shards=_NUM_SHARDS):
                file.write(keyed)
        for value in step.finish_bundle():
            file.write(value.value[1])
    return {"seconds": time.perf_counter() - begin, "bytes": num_bytes}


def run_write(folder: pathlib.Path, num_records: int) -> dict[str, Any]:
    """Writes one shard of the default size, or of all records if they are fewer."""
    files = name_files(str(folder / "dataset"))
    writer = ShardWriter(Schema.read(str(folder / "schema.yaml")), files.output, files.generation)
    blocks, num_bytes = [], 0
    for block in read_blocks(folder):
        if num_bytes < SHARD_BYTES:
            blocks.append(block)
            num_bytes += len(block)
    begin = time.perf_counter()
    written = write_grouped(0, 1, blocks, writer)
    seconds = time.perf_counter() - begin
    (folder / "shard").write_bytes(pickle.dumps((files, written.shards)))
    return {"seconds": seconds, "bytes": sum(shard.shard.bytes for shard in written.shards)}


def run_publish(folder: pathlib.Path, num_shards: int) -> dict[str, Any]:
    """Publishes copies of one shard, whose files do not exist."""
    _, (shard,) = pickle.loads((folder / "shard").read_bytes())  # our own, written by the stage before
    files = name_files(str(folder / f"published-{num_shards}"))
    schema = Schema.read(str(folder / "schema.yaml"))
    shards = [
        dataclasses.replace(
            shard, number=number, shard=shard.shard.model_copy(update={"path": path, "index_path": index})
        )
        for number in range(num_shards)
        for path, index in [name_shard(files.generation, number, num_shards)]
    ]
    begin = time.perf_counter()
    sources = list_sources([], output=files.output, generation=files.generation)
    more: dict[str, Any] = {"strings": {}, "rejected": NO_REJECTS, "sources": sources, "seed": 0}
    summary = build_summary(schema, shards, generation=files.generation, **more)
    write_summary(files.output, summary)
    commit(files.output, Change("create", Base("create"), summary), lock_timeout=60, retain=None)
    seconds = time.perf_counter() - begin
    begin = time.perf_counter()
    read_manifest(files.output)
    output = pathlib.Path(files.output)
    return {
        "seconds": seconds,
        "open_seconds": time.perf_counter() - begin,
        "shard_bytes": len(pickle.dumps(shards[0])),
        "manifest_bytes": (output / FILE_NAME).stat().st_size,
        "summary_bytes": (output / summary_path(files.generation)).stat().st_size,
    }


def name_shard(generation: str, number: int, num_shards: int) -> tuple[str, str]:
    stem = f"data/{generation}/train-{number:05d}-of-{num_shards:05d}"
    return f"{stem}.tfrecord", f"{stem}.index.parquet"


def print_constants(found: Constants) -> None:
    print("| measured on one core | |\n|---|---|")
    print(f"| a record: raw, in a shard | {found.raw_bytes:,.0f} bytes, {found.example_bytes:,.0f} bytes |")
    for number, size in found.packed_bytes.items():
        share = size / found.example_bytes
        print(f"| a record in a packed block of {number:,} | {size:,.0f} bytes ({share:.2f} of the shard) |")
    print(f"| parse: raw bytes, memory | {found.parse_rate / 1e6:,.0f} MB/s, {found.parse_memory:,.0f} MiB |")
    print(f"| cut by shard: packed bytes, memory | {found.key_rate / 1e6:,.0f} MB/s, {found.key_memory:,.0f} MiB |")
    print(f"| write a shard of 64 MB, memory | {found.write_rate / 1e6:,.0f} MB/s, {found.write_memory:,.0f} MiB |")
    print(
        f"| publish, for each shard | {found.publish_seconds * 1e3:,.2f} ms, {found.publish_memory * 1024:,.1f} KiB of "
        f"memory, {found.manifest_bytes:,.0f} bytes of manifest, {found.summary_bytes:,.0f} of summary, "
        f"{found.shard_bytes:,.0f} of messages |"
    )


def print_estimates(found: Constants, jobs: list[tuple[int, int | None]], cores: int) -> None:
    """Prints a table of jobs.

    Args:
        jobs: The raw bytes and the number of shards of each. None is the default number.
    """
    columns = [estimate(found, *job, cores) for job in jobs]
    titles = [f"{size / 1e9:,.0f} GB{f', --num_shards {number}' if number else ''}" for size, number in jobs]
    print("\n| estimated |", " | ".join(titles), "|")
    print("|---|" + "---|" * len(jobs))
    for name in columns[0]:
        print(f"| {name} |", " | ".join(column[name] for column in columns), "|")


def estimate(found: Constants, raw_bytes: int, num_shards: int | None, cores: int) -> dict[str, str]:
    """Returns the numbers of a job over raw records of this size, each as text.

    All records are in one split, as in the benchmark. Each core reads an equal share.
    """
    records = raw_bytes / found.raw_bytes
    example_bytes = records * found.example_bytes
    shards = num_shards or max(1, round(example_bytes / SHARD_BYTES))
    # A worker cuts some blocks at a time, so each shard gets this share of it in one block.
    block_bytes = min(PACKED_BYTES, keyed_bytes(shards) / shards)
    per_block = max(1.0, block_bytes / found.packed_bytes[1024])
    nearest = min(found.packed_bytes, key=lambda number: abs(number - per_block))
    shuffled = records * found.packed_bytes[nearest]
    chunks = raw_bytes / CHUNK_BYTES
    seconds = {
        "parse": raw_bytes / found.parse_rate / cores,
        "cut": records * found.packed_bytes[1024] / found.key_rate / cores,
        "write": example_bytes / found.write_rate / cores,
        "publish": shards * found.publish_seconds,
    }
    steps = ", ".join(f"{name} {value:,.0f}" for name, value in seconds.items())
    return {
        "records, shards": f"{records:,.0f}, {shards:,}",
        "elements before the shuffle (chunks), in it (blocks)": f"{chunks:,.0f}, {records / per_block:,.0f}",
        "records in a block, bytes of a shard": f"{per_block:,.1f}, {example_bytes / shards / 1e6:,.0f} MB",
        "bytes shuffled": f"{shuffled / 1e9:,.0f} GB ({shuffled / example_bytes:.2f} of the shards)",
        f"seconds on {cores} cores, without the network": steps,
        "requests to S3 to read raw files": f"{_GETS_PER_CHUNK * chunks:,.0f}",
        "requests to S3 to write shards": f"{_PUTS_PER_SHARD * shards:,}",
        "manifest, and seconds to open it": (
            f"{shards * found.manifest_bytes / 1e6:,.1f} MB, {shards * found.open_seconds:,.2f}"
        ),
        "summary of the generation": f"{shards * found.summary_bytes / 1e6:,.1f} MB",
        "messages about shards": f"{shards * found.shard_bytes / 1e6:,.1f} MB",
        "memory: parse, cut, write": ", ".join(
            f"{value:,.0f} MiB" for value in (found.parse_memory, found.key_memory, found.write_memory)
        ),
        "memory: publish": f"{found.publish_start_memory + shards * found.publish_memory:,.0f} MiB",
    }


if __name__ == "__main__":
    main()
