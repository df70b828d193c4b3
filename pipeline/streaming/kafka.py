"""Follows topics of Kafka: each partition is read on from the offset that the newest commit of the dataset names."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

from pipeline.errors import TryAgain, UserError, counted
from pipeline.raw.find_files import TOPIC_SCHEME, RawFile
from pipeline.raw.spooled_messages import SpoolWriter
from pipeline.streaming.kafka_client import Ends, KafkaClient, Place, Topic
from pipeline.streaming.kafka_config import KafkaOptions, read_properties
from pipeline.streaming.kafka_errors import Stopped
from pipeline.streaming.message_id import choose_reader
from pipeline.streaming.partition import Partition, partition_path
from pipeline.streaming.positions import Position, Positions
from pipeline.streaming.source import OnRewrite
from pipeline.streaming.stop import StopSignals
from pipeline.streaming.take_messages import take_messages
from pipeline.writing.job import JobFiles
from pipeline.writing.marker import mark_writer

# A commit without a record, of offsets that have no message to read, is made at most that often, in seconds. (It costs
# as much as another commit. Without it, the next start reads these offsets again.)
_SKIP_SECONDS = 600.0
# A log may seem to be shorter than what was read of it, for so many seconds after its broker has started.
_SHORT_SECONDS = 30.0


class KafkaSource:
    """The partitions of topics. It implements `Source`.

    Args:
        id_field: The field of the id in the schema. None if it has none.
        on_rewrite: What to do if the messages after the position are no longer there, because they expired or the topic
            was made anew: `error`, or `reread` to go on at the oldest message that is there.
        once: Whether there is one round only.
        stop: Ends a wait for a broker.

    Raises:
        UserError: The package confluent-kafka is missing, or an option is wrong.
    """

    noun, unit, awaited = "partition", "offset", "a transaction"

    def __init__(
        self, options: KafkaOptions, *, id_field: str | None, on_rewrite: OnRewrite, once: bool, stop: StopSignals
    ) -> None:
        topics = list(dict.fromkeys(options.topics))
        self._start, self._on_rewrite, self._once = options.start, on_rewrite, once
        self._read_value = choose_reader(options.record_id, id_field)
        properties = {} if options.config is None else read_properties(options.config)
        self._stop = stop
        self._client = KafkaClient(
            options.servers,
            topics,
            properties,
            origin=options.config,
            group=options.group,
            broker_timeout=options.broker_timeout,
            stop=stop,
        )
        self._partitions: dict[Place, Partition] = {}
        # The partitions that the client reads.
        self._assigned: set[Place] = set()
        # The version of the positions at the last look, and whether there is a dataset.
        self._version, self._exists = -1, False
        # The last plan, if it is not known to be published, and the newest offsets that it was made for.
        self._planned: list[RawFile] = []
        self._planned_for: dict[Place, int] = {}
        self._has_more = False
        self._skipped_since: float | None = None
        self._short_since: float | None = None
        # Messages without a value in what is published.
        self._num_nulls = 0

    def look(self, positions: Positions) -> None:
        """Asks for the offsets of all partitions. See `Source`."""
        try:
            topics, ends = self._client.ask()
        except Stopped:
            for partition in self._partitions.values():
                partition.high = 0
            return
        self._exists = positions.has_generations
        if self._once and self._start == "latest" and not self._exists:
            raise UserError(
                "--start latest: there is no dataset yet that could remember where the topic ended, so --once would "
                "find nothing, time after time. Use --start earliest, or run without --once until the first commit."
            )
        has_changed = positions.version != self._version
        for place in self._partitions.keys() - ends.keys():  # the topic was made anew with fewer
            del self._partitions[place]
            self._assigned.clear()
        published: dict[Place, int] = {}
        for place, found in ends.items():
            is_known = place in self._partitions
            if not is_known:
                self._partitions[place] = self._begin(place, topics[place[0]], found, positions)
            partition = self._partitions[place]
            if is_known and has_changed and self._update(partition, positions, topics[place[0]], found):
                published[place] = partition.position.end
            self._check_topic(partition, topics[place[0]], found)
            self._check_low(partition, found.low)
            partition.high, partition.num_open = found.high, found.num_open
        self._check_high()
        if has_changed:
            self._planned = []
            self._skipped_since = None
        self._version = positions.version
        self._client.inform(published)

    def _begin(self, place: Place, topic: Topic, ends: Ends, positions: Positions) -> Partition:
        """Returns a partition that is to be read from the position in the dataset, or from its start."""
        known = positions.newest(partition_path(*place))
        if known is not None:
            return Partition(*place, known, is_new=False)
        prefix = f"{TOPIC_SCHEME}{place[0]}/"
        start = ends.low if self._start == "earliest" else ends.high
        if any(path.startswith(prefix) for path in positions.by_path):  # it was added since
            start = 0
        return Partition(*place, Position(0, start, 0, topic.digests[0]), is_new=True)

    def _update(self, partition: Partition, positions: Positions, topic: Topic, ends: Ends) -> bool:
        """Takes the position of a partition from a dataset that has changed. Returns whether the last plan is in it."""
        known = positions.newest(partition.path)
        if known is None:
            if not partition.is_new:  # the dataset was replaced
                self._replace(partition, self._begin(partition.place, topic, ends, positions))
            elif partition.taken:
                self._replace(partition, Partition(*partition.place, partition.position, is_new=True))
            return False
        if known[:2] == (partition.position.rewrites, partition.next):
            is_news = known != partition.position
            self._num_nulls += partition.nulls
            partition.position, partition.is_new, partition.taken, partition.nulls = known, False, 0, 0
            return is_news
        if known != partition.position or partition.is_new or partition.taken:
            self._replace(partition, Partition(*partition.place, known, is_new=False))
        return False

    def _replace(self, partition: Partition, other: Partition) -> None:
        """Lets a partition be read from another place."""
        for field in dataclasses.fields(Partition):
            setattr(partition, field.name, getattr(other, field.name))
        self._assigned.clear()

    def _move(self, partition: Partition, position: Position) -> None:
        self._replace(partition, Partition(*partition.place, position, is_new=True))

    def _check_topic(self, partition: Partition, topic: Topic, ends: Ends) -> None:
        """Checks that the topic is the one that was read before.

        Raises:
            UserError: It is another one, and `on_rewrite` is `error`.
        """
        before = partition.position
        if before.tail in topic.digests:
            return
        if not partition.is_new and self._on_rewrite == "error":
            raise UserError(
                f"{partition.path}: was read up to offset {before.end:,}, but this topic is another one than the one "
                "that was read: it was deleted and made anew, or --kafka names another cluster. Connect to the cluster "
                "of before, or read the new topic from its start with --on_rewrite reread."
            )
        if partition.is_new:
            start = ends.low if self._start == "earliest" else ends.high
            self._move(partition, before._replace(end=start, tail=topic.digests[0]))
        else:
            self._move(partition, Position(before.rewrites + 1, ends.low, 0, topic.digests[0]))

    def _check_low(self, partition: Partition, low: int) -> None:
        """Checks that no message expired before it was read.

        Raises:
            UserError: Some did, and `on_rewrite` is `error`.
        """
        if low <= partition.next:
            return
        lost = (
            f"{partition.path}: was read up to offset {partition.next:,}, but the oldest offset that is there is "
            f"{low:,}: {counted(low - partition.next, 'offset')} expired before they were read"
        )
        if self._on_rewrite == "error":
            raise UserError(
                f"{lost}. Raise retention.ms or retention.bytes of the topic, so that it does not happen again, and go "
                f"on at offset {low:,} with --on_rewrite reread. All commits before stay."
            )
        print(f"prepare: warning: {lost}. Going on at offset {low:,}.", file=sys.stderr, flush=True)
        self._move(partition, partition.position._replace(end=low))

    def _check_high(self) -> None:
        """Checks that the brokers still have what was read.

        Raises:
            UserError: They do not, also some seconds later, and `on_rewrite` is `error`.
        """
        short = [each for each in self._partitions.values() if each.high < each.position.end]
        if not short:
            self._short_since = None
            return
        now = time.monotonic()
        self._short_since = now if self._short_since is None else self._short_since
        if now - self._short_since < _SHORT_SECONDS and not self._once:
            return
        if self._on_rewrite == "error":
            raise UserError(
                f"{short[0].path}: was read up to offset {short[0].position.end:,}, but now it ends at offset "
                f"{short[0].high:,}: the brokers lost messages, as unclean.leader.election.enable allows them. Read "
                "the partition from its start with --on_rewrite reread; records with an id are not added again."
            )
        for each in short:
            high = each.high
            self._move(each, each.position._replace(rewrites=each.position.rewrites + 1, end=0, lines=0))
            each.high = high

    def forget(self) -> None:
        """Lets the next look compare all positions: the dataset has other ones."""
        self._version = -1

    def plan(self, files: JobFiles, *, max_bytes: int, max_records: int | None) -> Sequence[RawFile]:
        """Copies the next messages of all partitions to a file, and returns the parts they are in. See `Source`."""
        partitions = list(self._partitions.values())
        goal = {each.place: each.high for each in partitions}
        if self._planned:  # and not published
            if not self._has_more and goal == self._planned_for:
                return self._planned
            for each in partitions:
                if each.taken:
                    each.rewind()
                    self._assigned.clear()
        self._planned, self._planned_for, self._has_more = [], goal, False
        if any(each.lag for each in partitions):
            with contextlib.suppress(Stopped):  # then, nothing is planned
                self._planned = self._copy(partitions, files, max_bytes, max_records)
        elif self._is_worth_a_commit(partitions):
            for each in partitions:
                each.begin_round()
            self._planned = list(_list_parts(partitions, SpoolWriter(files.folder)))
        return self._planned

    def _copy(
        self, partitions: list[Partition], files: JobFiles, max_bytes: int, max_records: int | None
    ) -> list[RawFile]:
        """Copies the next messages to a file, and returns the parts that they are in, if they are worth a commit."""
        with mark_writer(files.output, files.generation, command="prepare"), SpoolWriter(files.folder) as spool:
            self._assign(partitions)
            self._has_more = take_messages(
                partitions,
                self._client,
                spool,
                read_value=self._read_value,
                max_bytes=max_bytes,
                max_records=max_records,
                stop=self._stop,
            )
            spool.flush()
            if any(each.taken for each in partitions):
                self._check_same(partitions)
            return list(_list_parts(partitions, spool)) if self._is_worth_a_commit(partitions) else []

    def _assign(self, partitions: Iterable[Partition]) -> None:
        """Lets the client read all partitions on from what came of them."""
        offsets = {each.place: each.arrived for each in partitions}
        if not self._assigned:
            for each in partitions:
                each.held.clear()
                each.held_bytes, each.is_paused, each.arrived = 0, False, each.next
            self._client.assign({each.place: each.next for each in partitions})
        elif more := {place: offset for place, offset in offsets.items() if place not in self._assigned}:
            self._client.assign_more(more)
        self._assigned = set(offsets)

    def _check_same(self, partitions: Iterable[Partition]) -> None:
        """Checks that all messages that were taken are of the topics that the positions are of.

        Raises:
            TryAgain: A topic was made anew meanwhile.
        """
        topics = self._client.identify()
        for each in partitions:
            if each.position.tail not in topics[each.topic].digests:
                raise TryAgain(f"{each.path}: the topic was made anew while it was read. Nothing was published.")

    def _is_worth_a_commit(self, partitions: Iterable[Partition]) -> bool:
        """Whether there are messages to publish, or a position that must not wait for them."""
        if any(each.taken for each in partitions):
            return True
        if self._exists and self._start == "latest" and any(each.is_new for each in partitions):
            return True  # so that the next start reads what comes from now on
        if not any(each.next > each.position.end for each in partitions):
            return False
        now = time.monotonic()
        self._skipped_since = now if self._skipped_since is None else self._skipped_since
        return self._once or now - self._skipped_since >= _SKIP_SECONDS

    def has_more(self) -> bool:
        """Whether the last plan left messages that could be read."""
        return self._has_more

    def is_settling(self) -> bool:
        """Never: all that can be read is complete."""
        return False

    def lags(self) -> Mapping[str, int]:
        """Returns the number of offsets that are not read yet, by partition, for those that have any."""
        return {each.path: each.lag for each in self._partitions.values() if each.lag}

    def num_nulls(self) -> int:
        """Returns the number of messages without a value, which were skipped."""
        return self._num_nulls + sum(each.nulls for each in self._partitions.values())

    def waiting(self) -> Mapping[str, int]:
        """Returns the number of offsets from the first message of an open transaction on, by partition."""
        return {each.path: each.num_open for each in self._partitions.values() if each.num_open}

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()


def _list_parts(partitions: Iterable[Partition], spool: SpoolWriter) -> Iterable[RawFile]:
    """Yields the parts to publish, also those without a message, sorted by path."""
    for each in sorted(partitions, key=lambda each: each.path):
        if each.is_advanced:
            yield RawFile(each.path, each.num_bytes, None, each.part(), spool.spool(each.path, each.next))
