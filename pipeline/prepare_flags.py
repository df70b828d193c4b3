"""The flags of `lengthwise prepare`, and which of them exclude one another."""

from typing import Any, NamedTuple

from pipeline.beam.memory_budget import check_memory
from pipeline.beam.options import parse_with_beam
from pipeline.errors import UserError
from pipeline.flags import FlagParser, add_commit_flags, add_limit_flags, duration, fraction, natural, positive, size

# The largest window: ten years.
MAX_WINDOW = 3660 * 86400


class PrepareFlags(NamedTuple):
    """The values of the flags.

    Attributes:
        options: Those of PrepareOptions, by name; `windows` are the arguments of EventWindows, or None.
        stream: With --streaming, those of StreamOptions that were given, by name; `kafka` has those of KafkaOptions.
            None without --streaming.
        as_json: Whether the result is printed as JSON.
        beam: The flags of Beam that were given, by name.
    """

    options: dict[str, Any]
    stream: dict[str, Any] | None
    as_json: bool
    beam: dict[str, Any]


def parse_prepare(arguments: list[str]) -> PrepareFlags:
    """Parses the flags of `lengthwise prepare`. Flags that exclude one another end the program with a message."""
    parser = FlagParser(
        "prepare",
        "Converts raw records (JSON Lines, plain, .gz, .bz2, .zst or .xz) to a dataset: TFRecord shards, indexes and\n"
        "a manifest. Of a folder, files named *.jsonl, *.ndjson or *.json are read, and the others are named.\n"
        "With --train, --validation and --test instead of RAW, the input of a file names its split.\n"
        "With --append, adds raw files that an existing dataset does not have yet; the exit status is 3 if there are "
        "none.\nWith --append --replay, tries records again that a job with --keep_raw rejected; the schema may accept "
        "more.\nWith --streaming, follows the files of folders, or topics of Kafka, and adds what is new, round after "
        "round.\n"
        "All flags of Beam are valid too, for example --runner. Without --runner, the job runs in this process.",
        examples="  lengthwise prepare raw.jsonl --schema raw.schema.yaml --output dataset\n"
        "  lengthwise prepare 'logs/*.jsonl.gz' --schema schema.yaml --output dataset --max_rejected 0.05 --keep_raw\n"
        "  lengthwise prepare --train train/ --test test.jsonl --schema schema.yaml --output dataset\n"
        "  lengthwise prepare raw/ --schema schema.yaml --output dataset --append\n"
        "  lengthwise prepare --append --replay dataset/rejected --schema longer.yaml --output dataset\n"
        "  lengthwise prepare logs/ --schema schema.yaml --output dataset --streaming --commit_interval 1m\n"
        "  lengthwise prepare --kafka broker:9092 --topic clicks --schema schema.yaml --output dataset --streaming\n"
        "  lengthwise prepare raw/ --schema schema.yaml --output dataset --overwrite --retain 7d \\\n"
        "      --direct_running_mode=multi_processing --direct_num_workers=2",
    )
    _add_input_flags(parser)
    parser.add_argument("--schema", required=True, help="YAML file that describes the records")
    parser.add_argument("--output", required=True, help="folder of the dataset")
    parser.add_argument(
        "--num_shards",
        type=positive,
        help="number of TFRecord files per split (and window); default: those of the largest have about 64 MB each",
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
    add_commit_flags(parser)
    parser.add_argument("--keep_raw", action="store_true", help="store the raw record in each reject")
    add_limit_flags(parser)
    parser.add_argument(
        "--processes",
        type=natural,
        help="number of additional processes that parse and write; default: one per core within --memory, and none if "
        "the input is small or Beam has its own workers",
    )
    parser.add_argument(
        "--memory",
        type=size,
        metavar="SIZE",
        help="maximum memory of all processes together, for example 1500M or 2G: about 300 MB for this one, and 150 MB "
        "for each of --processes; Beam's own workers do not count; default: half of the free memory, at least 600MB, "
        "and 600MB on two cores or fewer",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    _add_window_flags(parser)
    _add_stream_flags(parser)
    values, beam_options = parse_with_beam(parser, arguments)
    as_json, is_stream = values.pop("json"), values.pop("streaming")
    of_stream = {name: value for name in _STREAM_FLAGS if (value := values.pop(name)) is not None}
    if of_stream and not is_stream:
        parser.error(f"argument --{next(iter(of_stream))}: only with --streaming")
    if is_stream:
        _check_stream(parser, values, of_stream)
    else:
        _check_inputs(parser, values)
    try:
        check_memory(values["processes"], values["memory"])
    except UserError as error:
        parser.error(f"argument --memory: {error}")
    values["windows"] = _take_windows(parser, values)
    values |= {name: tuple(values[name]) for name in ("raw", "replay", "train", "validation", "test")}
    return PrepareFlags(values, of_stream if is_stream else None, as_json, beam_options)


def _check_stream(parser: FlagParser, values: dict[str, Any], of_stream: dict[str, Any]) -> None:
    """Refuses flags that a stream does not have."""
    for name in ("overwrite", "append", "replay", "train", "validation", "test"):
        if values[name]:
            parser.error(f"argument --{name}: not allowed with --streaming, which always appends, from RAW or --kafka")
    if values["changed_inputs"] != "refuse":
        parser.error("argument --changed_inputs: not allowed with --streaming; --on_rewrite is the flag for it")
    if "once" in of_stream and "idle" in of_stream:
        parser.error("argument --idle: not allowed with --once")
    if "dedup_windows" in of_stream and values["window"] is None:
        parser.error("argument --dedup_windows: only with --window and --event_time")
    _check_kafka(parser, values, of_stream)


def _check_kafka(parser: FlagParser, values: dict[str, Any], of_stream: dict[str, Any]) -> None:
    """Gathers the flags of topics in one value, `kafka`, or refuses them."""
    given = [name for name in _KAFKA_FLAGS if name in of_stream]
    if "kafka" not in of_stream:
        if given:
            parser.error(f"argument --{given[0]}: only with --kafka")
        if not values["raw"]:
            parser.error("expected RAW, the folders to follow, or --kafka")
        return
    if values["raw"]:
        parser.error(f"argument --kafka: not allowed with RAW ({values['raw'][0]}); follow one of both in each dataset")
    if "topic" not in of_stream:
        parser.error("argument --kafka: expected --topic, too: the topic to follow")
    if "settle" in of_stream:
        parser.error("argument --settle: not allowed with --kafka; a message is always complete")
    options = {field: of_stream.pop(name) for name, field in _KAFKA_FLAGS.items() if name in of_stream}
    of_stream["kafka"] = options | {"topics": tuple(options["topics"])}


def _check_inputs(parser: FlagParser, values: dict[str, Any]) -> None:
    """Refuses raw files that are given in two ways, or not at all."""
    named = [name for name in ("train", "validation", "test") if values[name]]
    if values["raw"] and named:
        parser.error(f"argument --{named[0]}: not allowed with RAW ({values['raw'][0]}); give all raw files by split")
    if named and not values["train"] and not values["append"]:
        parser.error(f"argument --{named[0]}: expected --train, too: without it, there is nothing to train on")
    if not values["raw"] and not values["replay"] and not named:
        parser.error("expected RAW, the raw files, or --train, or --append with --replay, the rejects to try again")


def _take_windows(parser: FlagParser, values: dict[str, Any]) -> dict[str, Any] | None:
    """Removes the flags about windows from all values, and returns those of EventWindows; None if none was given."""
    names = ("window", "event_time", "event_time_unit")
    window, event_time, unit = found = tuple(values.pop(name) for name in names)
    if found == (None, None, None):
        return None
    for name, value in (("window", window), ("event_time", event_time)):
        if not value:
            given = next(name for name, value in zip(names, found, strict=True) if value is not None)
            parser.error(f"argument --{given}: expected --window and --event_time together; --{name} is missing")
    if window != int(window) or not 1 <= window <= MAX_WINDOW:
        parser.error(f"argument --window: {window:g} s, expected whole seconds from 1s to {MAX_WINDOW // 86400}d")
    return {"field": event_time, "seconds": int(window), "unit": unit or "s"}


def _add_window_flags(parser: FlagParser) -> None:
    """Adds the flags about windows of event time. Each is None if it is not given."""
    group = parser.add_argument_group("windows of event time")
    group.add_argument(
        "--window",
        type=duration,
        metavar="TIME",
        help="write shards that hold the records of one window of this size, for example 1h or 1d, so that a trainer "
        "can read the newest ones; with --event_time; default: as the dataset that is added to",
    )
    group.add_argument(
        "--event_time",
        metavar="FIELD",
        help="field of a record with its time: a number of --event_time_unit since 1970, or an ISO 8601 string, UTC if "
        "it has no zone; a record without it is rejected",
    )
    group.add_argument(
        "--event_time_unit", choices=("s", "ms", "us", "ns"), help="unit of --event_time if it is a number; default: s"
    )


def _add_input_flags(parser: FlagParser) -> None:
    """Adds the flags that name raw files."""
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


# The flags of topics, and the fields of KafkaOptions.
_KAFKA_FLAGS = {
    "kafka": "servers",
    "topic": "topics",
    "start": "start",
    "kafka_config": "config",
    "kafka_id": "record_id",
    "group": "group",
    "broker_timeout": "broker_timeout",
}
_STREAM_FLAGS = (
    "once",
    "idle",
    "commit_interval",
    "settle",
    "on_rewrite",
    "max_records",
    "max_bytes",
    "metrics_file",
    "dedup_memory",
    "dedup_windows",
    "refresh",
    *_KAFKA_FLAGS,
)


def _add_stream_flags(parser: FlagParser) -> None:
    """Adds the flags of `prepare --streaming`. Each is None if it is not given."""
    group = parser.add_argument_group("with --streaming")
    group.add_argument(
        "--streaming",
        action="store_true",
        help="follow the files of the folders RAW, or topics: publish what is new, round after round, until SIGTERM or "
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
        help="what to do with a file that no longer has what was read of it, if no other file has it, with a topic "
        "that was made anew, and with messages that expired before they were read: stop, or read what is there from "
        "its start; default: error",
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
    group.add_argument(
        "--dedup_memory",
        type=size,
        metavar="SIZE",
        help="maximum memory for the keys of published ids, 8 bytes each; more ids are searched on disk in each round; "
        "default: 256M (33 million ids)",
    )
    group.add_argument(
        "--dedup_windows",
        type=positive,
        metavar="N",
        help="look for duplicates in the newest N windows only, for a stream without an end; needs --window. The id of "
        "a record in an older window can then be taken again; default: all windows",
    )
    group.add_argument(
        "--refresh",
        type=duration,
        metavar="TIME",
        help="how long the commits keep the vocabularies before one chooses them again from all records, as the last "
        "one does; default: 10m",
    )
    group = parser.add_argument_group("with --streaming, instead of RAW")
    group.add_argument(
        "--kafka", metavar="SERVERS", help="follow topics at these brokers: HOST:PORT, or several with commas"
    )
    group.add_argument(
        "--topic",
        action="append",
        metavar="TOPIC",
        help="topic to follow; each value is one record as JSON; may be given several times",
    )
    group.add_argument(
        "--start",
        choices=("earliest", "latest"),
        help="where to begin in a topic of which the dataset has nothing yet; default: earliest",
    )
    group.add_argument(
        "--kafka_config",
        metavar="FILE",
        help="properties of the connection, one key=value in a line, as librdkafka names them: security.protocol, "
        "sasl.mechanism, sasl.username, sasl.password, ssl.ca.location and others. The values are never shown",
    )
    group.add_argument(
        "--kafka_id",
        metavar="key|header:NAME",
        help="take the id of a record from the key or a header of its message; default: from the value",
    )
    group.add_argument(
        "--group",
        metavar="NAME",
        help="consumer group that is told what was read, for monitoring; default: lengthwise",
    )
    group.add_argument(
        "--broker_timeout",
        type=duration,
        metavar="TIME",
        help="longest time to wait for a broker; then, the exit status is 75; default: 10m",
    )
