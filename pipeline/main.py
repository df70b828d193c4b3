"""Flags of the commands on raw records and datasets: each parses them and calls one function."""

import json

from pipeline.beam.options import parse_with_beam
from pipeline.flags import FlagParser, natural, positive, share


def sample(arguments: list[str]) -> None:
    parser = FlagParser(
        "sample",
        "Makes the raw records of a classic benchmark with variable lengths, and their schema beside them.\n\n"
        "  temporal_order  which two symbols came, in which order? (class; Hochreiter & Schmidhuber 1997)\n"
        "  adding          the sum of the two marked numbers (regression; Hochreiter & Schmidhuber 1997)\n"
        "  seed            random records of 50, 10 and then 60 steps with two-class distributions",
        examples="  lengthwise sample temporal_order --output raw.jsonl --num_records 2000",
    )
    parser.add_argument("name", metavar="NAME", choices=("temporal_order", "adding", "seed"))
    parser.add_argument("--output", required=True, help="file to write, say raw.jsonl; raw.schema.yaml comes beside it")
    parser.add_argument("--num_records", type=positive, help="default: 5,000 (seed: 3,000)")
    parser.add_argument("--seed", type=int, default=0, help="other records for another seed; default: 0")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    values = parser.parse(arguments)
    from pipeline.raw.samples import write_sample

    for path in write_sample(**values):
        print(path)


def prepare(arguments: list[str]) -> None:
    parser = FlagParser(
        "prepare",
        "Turns raw records (JSON Lines, plain or .gz) into a dataset: shards of TFRecords, an index, a manifest.\n"
        "Any flag of Beam's serves too, --runner for one; without it the job runs in this process.",
        examples="  lengthwise prepare raw.jsonl --schema raw.schema.yaml --output dataset\n"
        "  lengthwise prepare 'logs/*.jsonl.gz' --schema schema.yaml --output dataset --max_rejected 0.05 --keep_raw\n"
        "  lengthwise prepare raw/ --schema schema.yaml --output dataset --overwrite \\\n"
        "      --direct_running_mode=multi_processing --direct_num_workers=2",
    )
    parser.add_argument(
        "raw", metavar="RAW", nargs="+", help="a file, a glob or a folder, on any file system of Beam's"
    )
    parser.add_argument("--schema", required=True, help="YAML file that says what a record holds")
    parser.add_argument("--output", required=True, help="folder of the dataset")
    parser.add_argument(
        "--num_shards",
        type=positive,
        help="TFRecord files for each split; default: so many that those of the largest have about 64 MB",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed gives other splits and another order; default: 0"
    )
    parser.add_argument(
        "--max_rejected",
        type=share,
        default=0.01,
        help="share of the records, 0 to 1, that may be rejected; above it nothing is published; default: 0.01",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset that is there")
    parser.add_argument("--keep_raw", action="store_true", help="rejects carry the raw record")
    parser.add_argument(
        "--max_record_bytes",
        type=positive,
        default=64 * 2**20,
        help="a raw record that has more is rejected as too_large; default: 67,108,864 (64 MiB)",
    )
    parser.add_argument(
        "--max_record_steps", type=positive, default=10_000_000, help="the same for its steps; default: 10,000,000"
    )
    parser.add_argument(
        "--processes",
        type=natural,
        help="that parse and write beside this one, up to 150 MB each; default: one for each core, at most 2, and none "
        "where the input is small or Beam has workers",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    values, beam_options = parse_with_beam(parser, arguments)
    from pipeline.beam.prepare import PrepareOptions
    from pipeline.beam.prepare import prepare as run

    as_json = values.pop("json")
    values["raw"] = tuple(values["raw"])
    manifest = run(PrepareOptions(**values), beam_options)
    from pipeline.inspection.inspect import print_summary, summarize

    if as_json:
        print(json.dumps(summarize(manifest)))
    else:
        print_summary(manifest, values["output"])


def inspect(arguments: list[str]) -> None:
    parser = FlagParser(
        "inspect",
        "Shows what is in a dataset: records, steps and lengths, labels and features by split, rejects by reason.",
        examples="  lengthwise inspect dataset\n  lengthwise inspect dataset --json | python -m json.tool",
    )
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    values = parser.parse(arguments)
    from pipeline.format.manifest import read_manifest
    from pipeline.inspection.inspect import print_details, summarize

    manifest = read_manifest(values["dataset"])
    if values["json"]:
        print(json.dumps(summarize(manifest)))
    else:
        print_details(manifest, values["dataset"])


def verify(arguments: list[str]) -> int:
    parser = FlagParser(
        "verify",
        "Checks every byte of a dataset: sizes, SHA-256, both CRCs of every record, counts and index against the "
        "manifest.\nExit status 1 if anything is off; each fault names its file and offset.",
        examples="  lengthwise verify dataset",
    )
    parser.add_argument("dataset", metavar="DATASET")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    values = parser.parse(arguments)
    from pipeline.inspection.verify import verify as run
    from pipeline.inspection.verify_report import print_report

    report = run(values["dataset"])
    if values["json"]:
        print(json.dumps(report.to_dict()))
    else:
        print_report(report, values["dataset"])
    return 1 if report.faults else 0
