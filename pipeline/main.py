"""The commands on raw records and datasets: each function parses its flags and calls one function."""

import json
import sys

from pipeline.beam.options import parse_with_beam
from pipeline.errors import counted
from pipeline.flags import FlagParser, add_commit_flag, add_limit_flags, duration, fraction, natural, positive


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
    parser = FlagParser(
        "prepare",
        "Converts raw records (JSON Lines, plain, .gz, .bz2, .zst or .xz) to a dataset: TFRecord shards, indexes and\n"
        "a manifest. Of a folder, files named *.jsonl, *.ndjson or *.json are read, and the others are named.\n"
        "With --train, --validation and --test instead of RAW, the input of a file names its split.\n"
        "With --append, adds raw files that an existing dataset does not have yet; the exit status is 3 if there are "
        "none.\nWith --append --replay, tries records again that a job with --keep_raw rejected; the schema may accept "
        "more.\nWith --streaming, follows the files of folders, and adds what is new in them, round after round.\n"
        "All flags of Beam are valid too, for example --runner. Without --runner, the job runs in this process.",
        examples="  lengthwise prepare raw.jsonl --schema raw.schema.yaml --output dataset\n"
        "  lengthwise prepare 'logs/*.jsonl.gz' --schema schema.yaml --output dataset --max_rejected 0.05 --keep_raw\n"
        "  lengthwise prepare --train train/ --test test.jsonl --schema schema.yaml --output dataset\n"
        "  lengthwise prepare raw/ --schema schema.yaml --output dataset --append\n"
        "  lengthwise prepare --append --replay dataset/rejected --schema longer.yaml --output dataset\n"
        "  lengthwise prepare logs/ --schema schema.yaml --output dataset --streaming --commit_interval 1m\n"
        "  lengthwise prepare raw/ --schema schema.yaml --output dataset --overwrite --retain 7d \\\n"
        "      --direct_running_mode=multi_processing --direct_num_workers=2",
    )
    parser.add_argument(
        "raw", metavar="RAW", nargs="*", help="file, glob or folder, on any file system that Beam supports"
    )
    for name, more in (
        ("train", "; required if --validation or --test is given, but for --append"),
        ("validation", "; without it, splits: {validation: 0.1} in the schema takes a tenth of the train records"),
        ("test", ""),
    ):
        parser.add_argument(
            f"--{name}",
            nargs="+",
            default=(),
            metavar="RAW",
            help=f"raw files of the split {name}, instead of RAW and of splits in the schema{more}",
        )
    parser.add_argument("--schema", required=True, help="YAML file that describes the records")
    parser.add_argument("--output", required=True, help="folder of the dataset")
    parser.add_argument(
        "--num_shards",
        type=positive,
        help="number of TFRecord files per split; default: the shards of the largest split have about 64 MB each",
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="seed of the splits and of the order of the records; default: 0, or that of the dataset to add to",
    )
    parser.add_argument(
        "--max_rejected",
        type=fraction,
        default=0.01,
        help="maximum fraction of rejected records, 0 to 1; above it, nothing is published; default: 0.01",
    )
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    existing.add_argument(
        "--append",
        action="store_true",
        help="add the raw files to an existing dataset, or create it; files that it has already are skipped",
    )
    parser.add_argument(
        "--replay",
        nargs="+",
        default=(),
        metavar="REJECTS",
        help="with --append, also try the records in these files of DATASET/rejected again, or in all of them if it is "
        "the folder itself; --schema replaces that of the dataset, and may accept more, but the accepted records must "
        "keep their bytes; --max_rejected does not count these records",
    )
    parser.add_argument(
        "--changed_inputs",
        choices=("refuse", "add"),
        default="refuse",
        help="with --append, what to do with a file that the dataset has taken with other content; default: refuse",
    )
    _add_commit_flags(parser)
    parser.add_argument("--keep_raw", action="store_true", help="store the raw record in each reject")
    add_limit_flags(parser)
    parser.add_argument(
        "--processes",
        type=natural,
        help="number of additional processes that parse and write, up to 150 MB each; default: one per core, at most "
        "2, and none if the input is small or Beam has its own workers",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_stream_flags(parser)
    values, beam_options = parse_with_beam(parser, arguments)
    from pipeline.beam.prepare import PrepareOptions
    from pipeline.beam.prepare import prepare as run

    as_json, is_stream = values.pop("json"), values.pop("streaming")
    of_stream = {name: value for name in _STREAM_FLAGS if (value := values.pop(name)) is not None}
    if of_stream and not is_stream:
        parser.error(f"argument --{next(iter(of_stream))}: only with --streaming")
    if is_stream:
        for name in ("overwrite", "append", "replay", "train", "validation", "test"):
            if values[name]:
                parser.error(f"argument --{name}: not allowed with --streaming, which always appends, from RAW")
        if values["changed_inputs"] != "refuse":
            parser.error("argument --changed_inputs: not allowed with --streaming; --on_rewrite is the flag for it")
        if "once" in of_stream and "idle" in of_stream:
            parser.error("argument --idle: not allowed with --once")
        if not values["raw"]:
            parser.error("expected RAW, the folders to follow")
    values |= {name: tuple(values[name]) for name in ("raw", "replay", "train", "validation", "test")}
    named = [name for name in ("train", "validation", "test") if values[name]]
    if values["raw"] and named:
        parser.error(f"argument --{named[0]}: not allowed with RAW ({values['raw'][0]}); give all raw files by split")
    if named and not values["train"] and not values["append"]:
        parser.error(f"argument --{named[0]}: expected --train, too: without it, there is nothing to train on")
    if not values["raw"] and not values["replay"] and not named:
        parser.error("expected RAW, the raw files, or --train, or --append with --replay, the rejects to try again")
    options = PrepareOptions(**values)
    if is_stream:
        from pipeline.streaming.rounds import StreamOptions, stream

        last = stream(StreamOptions(options, **of_stream), beam_options)
        if last is None:
            return
        manifest = last
    else:
        manifest = run(options, beam_options)
    from pipeline.inspection.inspect import print_summary, summarize
    from pipeline.inspection.warnings import find_warnings

    for warning in find_warnings(manifest):
        print(f"prepare: warning: {warning}.", file=sys.stderr)
    if as_json:
        print(json.dumps(summarize(manifest)))
    else:
        print_summary(manifest, values["output"])


_STREAM_FLAGS = ("once", "idle", "commit_interval", "settle", "on_rewrite", "max_records", "max_bytes", "metrics_file")


def _add_stream_flags(parser: FlagParser) -> None:
    """Adds the flags of `prepare --streaming`. Each is None if it is not given."""
    group = parser.add_argument_group("with --streaming")
    group.add_argument(
        "--streaming",
        action="store_true",
        help="follow the files of the folders RAW: publish what is new in them, round after round, until SIGTERM or "
        "Ctrl-C. Each commit also says up to where each file was read, so no record is lost or read twice",
    )
    group.add_argument(
        "--commit_interval", type=duration, metavar="TIME", help="time from round to round; default: 10s"
    )
    group.add_argument(
        "--once", action="store_true", default=None, help="run one round; the exit status is 3 if nothing was new"
    )
    group.add_argument("--idle", type=duration, metavar="TIME", help="end after this time without anything new")
    group.add_argument(
        "--settle",
        type=duration,
        metavar="TIME",
        help="take a compressed file, as a whole, when it has not changed for this time; default: 5s",
    )
    group.add_argument(
        "--on_rewrite",
        choices=("error", "reread"),
        help="what to do with a file that no longer has what was read of it, if no other file has it: stop, or read it "
        "from its start; default: error",
    )
    group.add_argument("--max_records", type=positive, metavar="N", help="maximum records of a commit; default: any")
    group.add_argument(
        "--max_bytes",
        type=positive,
        metavar="N",
        help="maximum raw bytes of a commit; default: 268,435,456 (256 MiB)",
    )
    group.add_argument(
        "--metrics_file", metavar="FILE", help="file that gets counts and lags after each round, as Prometheus text"
    )


def _add_commit_flags(parser: FlagParser) -> None:
    """Adds the flags of a command that writes to a dataset."""
    parser.add_argument(
        "--retain",
        type=duration,
        default="24h",
        help="how long replaced files are kept for readers, for example 90s, 24h or 7d; default: 24h",
    )
    parser.add_argument(
        "--lock_timeout",
        type=duration,
        default="60s",
        help="longest time to wait for another job that publishes to the dataset; default: 60s",
    )


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
    _add_commit_flags(parser)
    values = parser.parse(arguments)
    from pipeline.writing.compact import compact as run

    done = run(**values)
    if done.generations:
        before, commit = len(done.generations), done.manifest.commit
        print(f"{values['dataset']}: merged {counted(before, 'generation')} into one (commit {commit})")
    else:
        print(f"{values['dataset']}: nothing to merge: it has fewer than two generations with small shards")


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
    _add_commit_flags(parser)
    values = parser.parse(arguments)
    from pipeline.writing.clean import clean as run
    from pipeline.writing.clean import print_cleaning

    dataset = values.pop("dataset")
    print_cleaning(run(dataset, **values), dataset)
