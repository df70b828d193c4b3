"""The rounds of `prepare --streaming`: look what is new, read it, publish it in one commit, and wait."""

import contextlib
import dataclasses
import functools
import sys
import time
from typing import Any

from pipeline.beam.options import runs_on_engine
from pipeline.beam.prepare import PrepareOptions, announce_windows, warn_of_local_files
from pipeline.beam.workers import start_workers
from pipeline.beam_files import set_store_options
from pipeline.errors import LockTimeout, NothingNew, TryAgain, UserError, counted
from pipeline.files import absolute, exists, is_local, join
from pipeline.format.commit import commit_path
from pipeline.format.manifest import Manifest
from pipeline.format.summary import GenerationSummary
from pipeline.raw.find_files import RawFile
from pipeline.raw.refuse_output import refuse_output
from pipeline.schema.auto_classes import read_schema
from pipeline.schema.schema import Schema
from pipeline.streaming.folder import FolderSource
from pipeline.streaming.kafka_config import KafkaOptions
from pipeline.streaming.kept_workers import KeptWorkers
from pipeline.streaming.metrics_file import StreamMetrics
from pipeline.streaming.positions import Positions
from pipeline.streaming.prepare_parts import Kept, prepare_parts
from pipeline.streaming.refresh import Refresh
from pipeline.streaming.source import OnRewrite, Source
from pipeline.streaming.stop import StopSignals
from pipeline.writing.base import Base
from pipeline.writing.choose_generations import count_surplus
from pipeline.writing.commit_log import recover_if_behind
from pipeline.writing.compact import compact
from pipeline.writing.job import DatasetJob, name_files
from pipeline.writing.open_base import append_to, open_base, take_classes, take_inputs
from pipeline.writing.paths import is_of_dataset
from pipeline.writing.published_ids import in_newest_windows
from pipeline.writing.published_keys import DEFAULT_DEDUP_MEMORY, PublishedKeys
from pipeline.writing.refresh_vocabularies import refresh_vocabularies
from pipeline.writing.summary_cache import SummaryCache

# A round of this size is read and written in 10 to 20 seconds.
DEFAULT_MAX_BYTES = 256 * 2**20
# Shards that could be merged, above which the stream compacts the dataset: each costs time in every round.
_MAX_SHARDS = 1000
# The stream leaves a generation with windows alone unless this share of its shards can be merged.
_MIN_SHARE = 0.5
# How often a single round is tried when others change the dataset or the files meanwhile.
_ATTEMPTS = 4
# A round is not begun sooner after the one before, also with an interval of 0.
_SHORTEST_WAIT = 0.1
# Names of files in a message.
_MAX_NAMES = 3


@dataclasses.dataclass(frozen=True)
class StreamOptions:
    """The options of `lengthwise prepare --streaming`.

    Attributes:
        prepare: The options that it shares with other jobs. `raw` are the folders.
        commit_interval: Seconds from the start of a round to that of the next one. A round that leaves something that
            could be read is followed at once.
        once: Whether to end after one round.
        idle: End after so many seconds in which nothing new came. None never ends.
        settle: Seconds for which a compressed file must stay as it is before it is read.
        on_rewrite: What to do with a file whose part that was read is no longer there.
        max_records: Most lines in one commit. None for any number.
        max_bytes: Most bytes in one commit. A single line, or compressed file, may be larger.
        metrics_file: File that gets the metrics of the stream after every round.
        dedup_memory: Largest memory for keys of published ids, in bytes. The ids of shards whose keys do not fit are
            searched on disk.
        dedup_windows: Number of the newest windows of event time whose ids are compared with those of new records. None
            compares all. Shards without a window are always compared.
        refresh: Seconds for which the commits keep the vocabularies. They are also chosen again when the stream ends.
        kafka: The topics to follow, instead of folders.
    """

    prepare: PrepareOptions
    commit_interval: float = 10.0
    once: bool = False
    idle: float | None = None
    settle: float = 5.0
    on_rewrite: OnRewrite = "error"
    max_records: int | None = None
    max_bytes: int = DEFAULT_MAX_BYTES
    metrics_file: str | None = None
    dedup_memory: int = DEFAULT_DEDUP_MEMORY
    dedup_windows: int | None = None
    refresh: float = 600.0
    kafka: KafkaOptions | None = None


def stream(options: StreamOptions, beam_options: dict[str, Any] | None = None) -> Manifest | None:
    """Follows folders or topics until it is told to end, and publishes what is new in them in commits.

    Returns the manifest after the last commit, or None if nothing was published.

    Raises:
        UserError: Input, options or file system are wrong, or too many records were rejected. All commits before stay.
        NothingNew: With `once`, there was nothing new.
    """
    set_store_options(beam_options or {})
    warn_of_local_files(options.prepare, beam_options or {})
    with StopSignals() as stop:
        return _Stream(options, beam_options or {}, stop).run()


class _Stream:
    def __init__(self, options: StreamOptions, beam_options: dict[str, Any], stop: StopSignals) -> None:
        self._options, self._beam_options, self._stop = options, beam_options, stop
        shared = options.prepare
        self._output = absolute(shared.output)
        if not is_local(self._output):
            raise UserError(
                f"{self._output}: a stream needs an --output in a local folder. For an object store, run "
                "`prepare --append` from time to time."
            )
        self._schema = self._read_schema()
        self._source = self._open_source()
        refuse_output(shared.raw, [], self._output, is_written=is_of_dataset)
        self._positions = Positions(self._output)
        workers = KeptWorkers(shared.processes, shared.memory)
        self._kept = Kept(workers, PublishedKeys(options.dedup_memory), SummaryCache())
        self._refresh = Refresh(self._output, 0.0 if options.once else options.refresh)
        self._base: Base | None = None
        self._manifest: Manifest | None = None
        self._metrics = StreamMetrics(last_commit=time.time())
        # The files of a first round without a record, and whether the last round left some of what was ready.
        self._barren: list[RawFile] = []
        self._why_barren = ""
        self._is_capped = False
        # Whether the runner was named, and whether a line on the terminal is to be replaced.
        self._is_announced = self._has_line = False
        # The shards that could be merged when the dataset was compacted last, and were left: see `choose_generations`.
        self._surplus_left = 0
        # Whether the windows of the dataset were named, or were given.
        self._has_windows = shared.windows is not None

    def _open_source(self) -> Source:
        options, schema = self._options, self._schema
        if options.kafka is not None:
            from pipeline.streaming.kafka import KafkaSource  # imports confluent_kafka

            more: dict[str, Any] = {"on_rewrite": options.on_rewrite, "once": options.once, "stop": self._stop}
            return KafkaSource(options.kafka, id_field=schema.id, **more)
        return FolderSource(
            options.prepare.raw,
            settle=options.settle,
            on_rewrite=options.on_rewrite,
            has_id=schema.id is not None,
            record_bytes=options.prepare.max_record_bytes,
        )

    def _read_schema(self) -> Schema:
        shared, kafka = self._options.prepare, self._options.kafka
        inputs = shared.raw if kafka is None else kafka.topics
        schema = take_inputs(self._output, "append", read_schema(shared.schema), inputs, origin=shared.schema)
        schema = take_classes(self._output, "append", schema)
        if schema.label.is_open:
            raise UserError(
                f"{shared.schema}: label has classes: auto, but the records of a stream are not known when it starts. "
                "List the classes, or make the dataset with `lengthwise prepare` first."
            )
        return schema

    def run(self) -> Manifest | None:
        """Runs rounds. See `stream`."""
        last_news = time.monotonic()
        try:
            while not self._stop.requested:
                begin = time.monotonic()
                has_news = self._run_round()
                if has_news or self._source.is_settling():
                    last_news = time.monotonic()
                self._write_metrics()
                if self._options.once:
                    if not has_news and not self._stop.requested:
                        raise NothingNew(
                            f"{self._why_barren or f'{self._output}: nothing new.'}{self._describe_waiting()}"
                        )
                    break
                idle = self._options.idle
                has_more = has_news and self._is_capped
                if idle is not None and not has_more and time.monotonic() - last_news >= idle:
                    break
                self._wait(begin, last_news, has_news)
            if self._base is not None and self._base.vocabularies_of is not None:
                # If another job is in the way, a later commit of any job does it.
                with contextlib.suppress(TryAgain, LockTimeout):
                    self._refresh_vocabularies()
        finally:
            self._kept.workers.close()
            self._source.close()
            self._clear_line()
        if waiting := self._describe_waiting():
            self._print(waiting.strip())
        return self._manifest

    def _wait(self, begin: float, last_news: float, has_news: bool) -> None:
        """Waits for the next round, or for the end of the idle time."""
        if has_news and self._is_capped:
            return
        now, interval = time.monotonic(), max(self._options.commit_interval, _SHORTEST_WAIT)
        end = begin + interval
        if self._options.idle is not None:
            end = min(end, max(last_news + self._options.idle, now + _SHORTEST_WAIT))
        self._stop.wait(end - now)

    def _run_round(self) -> bool:
        """Runs one round, and returns whether something new was published."""
        for attempt in range(1, _ATTEMPTS + 1):
            self._metrics.rounds += 1
            try:
                return self._try_round()
            except TryAgain as error:
                self._base = None
                self._print(f"{error} The round begins again.")
                if attempt == _ATTEMPTS or self._stop.requested:
                    if self._options.once:
                        raise
                    return False
        return False

    def _try_round(self) -> bool:
        base = self._read_base()
        self._source.look(self._positions)
        max_bytes, max_records = self._options.max_bytes, self._options.max_records
        while True:
            names = name_files(self._output, is_fenced=runs_on_engine(self._beam_options))
            files = list(self._source.plan(names, max_bytes=max_bytes, max_records=max_records))
            if not files or files == self._barren:
                if base.vocabularies_of is not None and self._refresh.is_due(base):
                    self._refresh_vocabularies()
                return self._show_waiting()
            self._is_capped = self._source.has_more()
            keep = bool(self._schema.vocabulary_sizes) and not self._refresh.is_due(base)
            recent = self._positions.recent()
            job = DatasetJob(names, self._limit_windows(base), recent=recent, keep_vocabularies=keep)
            try:
                manifest = self._publish(files, job)
            except NothingNew as error:
                self._why_barren = str(error)
                # A first commit needs a record: with what is new later, or with more of what is there.
                max_bytes, max_records = 2 * max_bytes, 2 * max_records if max_records else None
                if not self._options.once and not self._barren:
                    self._print(f"{error} The stream waits for a record.")
                self._barren = files
                continue
            self._take(manifest, job.files.generation)
            return True

    def _limit_windows(self, base: Base) -> Base:
        """Returns the dataset without the shards of windows that are too old to be searched for ids."""
        num_windows = self._options.dedup_windows
        if num_windows is None:
            return base
        return base._replace(published=in_newest_windows(base.published, num_windows))

    def _publish(self, files: list[RawFile], job: DatasetJob) -> Manifest:
        self._clear_line()
        shared = dataclasses.replace(self._options.prepare, append=True)
        announce, self._is_announced = not self._is_announced, True
        more: dict[str, Any] = {"kept": self._kept, "announce": announce}
        return prepare_parts(shared, self._schema, files, job, self._beam_options, **more)

    def _read_base(self) -> Base:
        """Returns the dataset as it is. Reads it only if it has another commit than the one that is known."""
        base = self._base
        if base is None or exists(join(self._output, commit_path(base.number + 1))):
            shared = self._options.prepare
            recover_if_behind(self._output, lock_timeout=shared.lock_timeout)
            base = open_base(self._output, "append", self._schema, shared.seed, windows=shared.windows)
            if not self._has_windows:
                announce_windows(base, shared.output, shared.windows)
            self._has_windows = self._has_windows or base.windows is not None
            self._update_positions(base)
        self._base = base
        return base

    def _update_positions(self, base: Base) -> list[GenerationSummary]:
        if not self._positions.is_known(base.summaries):
            self._source.forget()
        try:
            return self._positions.update(base.summaries)
        except ValueError as error:
            raise UserError(f"{error} Restore the file from a copy; `lengthwise verify` lists all errors.") from None

    def _take(self, manifest: Manifest, generation: str) -> None:
        """Takes note of a commit of this stream, and prints a line about it."""
        assert manifest.commit is not None
        windows = self._options.prepare.windows
        self._base = append_to(self._output, manifest.commit, manifest, windows=windows)
        self._manifest = manifest
        summaries = self._update_positions(self._base)
        summary = next(each for each in summaries if each.generation == generation)
        records, rejected = sum(split.records for split in summary.splits.values()), summary.rejected
        metrics = self._metrics
        metrics.commits, metrics.last_commit = metrics.commits + 1, time.time()
        metrics.records += records + rejected.total
        metrics.bytes += summary.sources.bytes
        for reason, count in rejected.by_reason.items():
            metrics.rejected[reason] = metrics.rejected.get(reason, 0) + count
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in rejected.by_reason.items())
        self._print(
            f"commit {manifest.commit}: {counted(records, 'record')}, {rejected.total:,} rejected"
            + (f" ({reasons})" if reasons else "")
            + f", {counted(summary.sources.bytes, 'byte')} of {counted(summary.sources.files, self._source.noun)}"
        )
        self._compact_if_large(manifest)
        self._source.look(self._positions)  # so that the lags are those after the commit

    def _refresh_vocabularies(self) -> None:
        """Chooses the vocabularies again, if the newest commit has those of an older one."""
        shared = self._options.prepare
        more: dict[str, Any] = {"retain": shared.retain, "known": self._kept.summaries}
        manifest = refresh_vocabularies(self._output, lock_timeout=shared.lock_timeout, **more)
        self._base = None
        if manifest is not None:
            self._manifest = manifest
            self._print(f"commit {manifest.commit}: chose the vocabularies from all records")

    def _compact_if_large(self, manifest: Manifest) -> None:
        surplus = count_surplus(manifest.splits)
        if surplus <= max(_MAX_SHARDS, 2 * self._surplus_left) or self._stop.requested:
            return
        shared = self._options.prepare
        more: dict[str, Any] = {"retain": shared.retain, "lock_timeout": shared.lock_timeout}
        # In a process of its own: what it allocates for large shards would stay with this process.
        with start_workers(1, "pipeline.writing.compact") as pool:
            assert pool is not None
            done = pool.submit(functools.partial(compact, min_share=_MIN_SHARE, **more), self._output).result()
        if manifest.windows is not None:
            self._surplus_left = count_surplus(done.manifest.splits)
        if done.generations:
            self._print(f"commit {done.manifest.commit}: merged {len(done.generations):,} generations into one")
            self._manifest, self._base = done.manifest, None

    def _describe_waiting(self) -> str:
        """Returns a sentence about records that are not complete, or an empty string."""
        waiting = self._source.waiting()
        if not waiting:
            return ""
        names = ", ".join(sorted(waiting)[:_MAX_NAMES]) + (", …" if len(waiting) > _MAX_NAMES else "")
        total = sum(waiting.values())
        what, verb = counted(total, self._source.unit), "waits" if total == 1 else "wait"
        return f" {what} {verb} for the end of {self._source.awaited}: {names}."

    def _show_waiting(self) -> bool:
        """Shows on a terminal that nothing is new."""
        if sys.stderr.isatty():
            seconds = time.time() - self._metrics.last_commit
            lag = sum(self._source.lags().values())
            sys.stderr.write(
                f"\r\x1b[Kprepare: nothing new for {seconds:,.0f} s, {counted(lag, self._source.unit)} wait"
            )
            sys.stderr.flush()
            self._has_line = True
        return False

    def _clear_line(self) -> None:
        if self._has_line:
            sys.stderr.write("\r\x1b[K")
            self._has_line = False

    def _print(self, text: str) -> None:
        self._clear_line()
        print(f"prepare: {text}", file=sys.stderr, flush=True)

    def _write_metrics(self) -> None:
        if self._options.metrics_file is not None:
            self._metrics.lags, self._metrics.nulls = self._source.lags(), self._source.num_nulls()
            self._metrics.unit = self._source.unit
            self._metrics.write(absolute(self._options.metrics_file), now=time.time())
