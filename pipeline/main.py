"""The commands on raw records and datasets: each function parses its flags and calls one function."""

import json
import sys

from pipeline.errors import counted
from pipeline.flags import FlagParser, add_commit_flag, add_commit_flags, positive
from pipeline.prepare_flags import parse_prepare


def sample(arguments: list[str]) -> None:
    """Runs `lengthwise sample`."""
    parser = FlagParser(
        "sample",
        "Generates the raw records of a classic benchmark with variable lengths, and a schema for them.\n\n"
        "  temporal_order  two marked symbols and their order (class; Hochreiter & Schmidhuber 1997)\n"
        "  adding          the sum of two marked numbers (regression; Hochreiter & Schmidhuber 1997)\n"
        "  seed            random records of 50, then 10, then 60 steps with distributions over two classes",
        examples="  lengthwise sample temporal_order --output raw.jsonl --num_records 2000",
    )
    parser.add_argument("name", metavar="NAME", choices=("temporal_order", "adding", "seed"))
    parser.add_argument(
        "--output", required=True, help="file to write, for example raw.jsonl; the schema is written to raw.schema.yaml"
    )
    parser.add_argument("--num_records", type=positive, help="number of records; default: 5,000 (seed: 3,000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random generator; default: 0")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    values = parser.parse(arguments)
    from pipeline.raw.samples import write_sample

    for path in write_sample(**values):
        print(path)


def prepare(arguments: list[str]) -> None:
    """Runs `lengthwise prepare`."""
    flags = parse_prepare(arguments)
    if flags.stream is None and not flags.beam and not flags.options["append"]:
        from pipeline.beam.early_workers import start_early_workers

        start_early_workers(
            [path for name in ("raw", "train", "validation", "test") for path in flags.options[name]],
            processes=flags.options["processes"],
            memory=flags.options["memory"],
        )
    from pipeline.beam.prepare import PrepareOptions
    from pipeline.beam.prepare import prepare as run
    from pipeline.schema.windows import EventWindows

    of_flags = flags.options.pop("windows")
    windows = None if of_flags is None else EventWindows(**of_flags)
    options = PrepareOptions(**flags.options, windows=windows)
    if flags.stream is None:
        manifest = run(options, flags.beam)
    else:
        from pipeline.streaming.kafka_config import KafkaOptions
        from pipeline.streaming.rounds import StreamOptions, stream

        of_kafka = flags.stream.pop("kafka", None)
        topics = None if of_kafka is None else KafkaOptions(**of_kafka)
        last = stream(StreamOptions(options, kafka=topics, **flags.stream), flags.beam)
        if last is None:
            return
        manifest = last
    from pipeline.inspection.inspect import print_summary, summarize
    from pipeline.inspection.warnings import find_warnings

    for warning in find_warnings(manifest):
        print(f"prepare: warning: {warning}.", file=sys.stderr)
    if flags.as_json:
        print(json.dumps(summarize(manifest)))
    else:
        print_summary(manifest, options.output)


def compact(arguments: list[str]) -> None:
    """Runs `lengthwise compact`."""
    parser = FlagParser(
        "compact",
        "Merges the small generations of a dataset, which appends leave, into one with large shards, in one commit.\n"
        "Records, ids and splits stay. Other jobs may append meanwhile, and readers keep the old shards for a time.",
        examples="  lengthwise compact dataset\n  lengthwise compact dataset --num_shards 8 --retain 1h",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder of the dataset")
    parser.add_argument(
        "--num_shards",
        type=positive,
        help="merge all generations, into this number of TFRecord files per split; default: merge those whose shards "
        "are small, into shards of about 64 MB",
    )
    add_commit_flags(parser)
    values = parser.parse(arguments)
    from pipeline.writing.compact import compact as run

    done = run(**values)
    if done.generations:
        before, commit = len(done.generations), done.manifest.commit
        print(f"{values['dataset']}: merged {counted(before, 'generation')} into one (commit {commit})")
    else:
        windows = ", and none of its windows has more shards than it needs" if done.manifest.windows else ""
        print(f"{values['dataset']}: nothing to merge: it has fewer than two generations with small shards{windows}")


def inspect(arguments: list[str]) -> None:
    """Runs `lengthwise inspect`."""
    parser = FlagParser(
        "inspect",
        "Shows a dataset: records, steps, lengths, labels and features by split, and rejects by reason.\n"
        "With --commits, lists its commits instead: what each of them did, and whether it can still be opened.",
        examples="  lengthwise inspect dataset\n  lengthwise inspect dataset --json | python -m json.tool\n"
        "  lengthwise inspect dataset --commits",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder of the dataset")
    parser.add_argument("--commits", action="store_true", help="list the commits of the dataset")
    add_commit_flag(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    values = parser.parse(arguments)
    from pipeline.format.history import read_manifest_at

    manifest = read_manifest_at(values["dataset"], values["commit"])
    if values["commits"]:
        from pipeline.inspection.commits import list_commits, print_commits

        commits = list_commits(values["dataset"], manifest)
        print(json.dumps(commits)) if values["json"] else print_commits(commits, values["dataset"])
        return
    from pipeline.inspection.inspect import print_details, summarize

    if values["json"]:
        print(json.dumps(summarize(manifest)))
    else:
        print_details(manifest, values["dataset"])


def verify(arguments: list[str]) -> int:
    """Runs `lengthwise verify`. Returns the exit status."""
    parser = FlagParser(
        "verify",
        "Checks every byte of a dataset against the manifest: sizes, SHA-256, both CRCs of every record, counts and "
        "index.\nPrints each fault with its file and offset. The exit status is 1 if there is a fault.",
        examples="  lengthwise verify dataset\n  lengthwise verify dataset --commit 3",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder of the dataset")
    add_commit_flag(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    values = parser.parse(arguments)
    from pipeline.inspection.verify import verify as run
    from pipeline.inspection.verify_report import print_report

    report = run(values["dataset"], commit=values["commit"])
    if values["json"]:
        print(json.dumps(report.to_dict()))
    else:
        print_report(report, values["dataset"])
    return 1 if report.faults else 0


def clean(arguments: list[str]) -> None:
    """Runs `lengthwise clean`."""
    parser = FlagParser(
        "clean",
        "Removes the files of a dataset that are older than --retain: those of generations that a commit removed, and\n"
        "those that no commit names, which killed or failed jobs left. The newest commit stays, and so does what jobs\n"
        "at work have written. Every commit removes such files too: this command only does it sooner.",
        examples="  lengthwise clean dataset --dry_run\n  lengthwise clean dataset --retain 1h",
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder of the dataset")
    parser.add_argument("--dry_run", action="store_true", help="only print each file that would be removed, and why")
    add_commit_flags(parser)
    values = parser.parse(arguments)
    from pipeline.writing.clean import clean as run
    from pipeline.writing.clean import print_cleaning

    dataset = values.pop("dataset")
    print_cleaning(run(dataset, **values), dataset)
