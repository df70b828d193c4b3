"""The connection to Kafka: asks for topics and offsets, reads messages, and waits for a broker that is away."""

import hashlib
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from pipeline.errors import UserError
from pipeline.streaming.kafka_config import hide_values
from pipeline.streaming.kafka_errors import (
    BrokerAway,
    Stopped,
    check_message,
    check_rights,
    describe_time,
    is_refusal,
    refused_connection,
)
from pipeline.streaming.stop import StopSignals

try:
    import confluent_kafka as kafka
    from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # it is documented
except ImportError as missing:  # the extra is not installed, which `KafkaClient` says
    _missing: ImportError | None = missing
else:
    _missing = None

Result = TypeVar("Result")
# A topic and the number of a partition.
Place: TypeAlias = tuple[str, int]

# Seconds that a request may take before it is sent again.
_REQUEST_SECONDS = 5.0
# Seconds between two lines about a broker that is away.
_LINE_SECONDS = 60.0
# Seconds for which a topic that was there may be unknown: a broker that has just started may not know it yet.
_UNKNOWN_SECONDS = 10.0
# Seconds between two requests while no broker answers, and seconds after which a wait looks at the signals.
_PAUSE, _SLICE = 0.5, 0.1
# Messages that are taken from the client at once.
_BATCH = 2000
# Seconds for which the end of a stream waits for the answer of the consumer group.
_GROUP_SECONDS = 2.0


class Topic(NamedTuple):
    """A topic as it is.

    Attributes:
        digests: The SHA-256 of its identity. Then, the one that it had on a broker without ids of topics.
        partitions: The numbers of its partitions.
    """

    digests: tuple[bytes, ...]
    partitions: Sequence[int]


class Ends(NamedTuple):
    """The offsets of a partition.

    Attributes:
        low: Of its oldest message.
        high: After its newest message that can be read: the first one of an open transaction, if there is one.
        num_open: Number of offsets after that.
    """

    low: int
    high: int
    num_open: int = 0


class KafkaClient:
    """A consumer of all partitions of some topics, which is no member of a group, and a client for questions.

    Args:
        servers: `HOST:PORT` of some brokers, separated by commas.
        topics: Names of topics.
        properties: More properties of the connection. Their values appear in no message.
        origin: The file that they are from, for messages.
        group: Name of the consumer group that is told what was read.
        broker_timeout: Longest time to wait for a broker, in seconds.
        stop: Ends a wait.

    Raises:
        UserError: The package confluent-kafka is missing, or a property is wrong.
    """

    def __init__(
        self,
        servers: str,
        topics: Sequence[str],
        properties: Mapping[str, str],
        *,
        origin: str | None,
        group: str,
        broker_timeout: float,
        stop: StopSignals,
    ) -> None:
        if _missing is not None:
            raise UserError(f"--kafka needs the package confluent-kafka ({_missing}): pip install 'lengthwise[kafka]'.")
        self._servers, self._topics, self._group, self._origin = servers, list(topics), group, origin
        self._properties, self._broker_timeout, self._stop = dict(properties), broker_timeout, stop
        self._consumer: Any = None
        self._admin: Any = None
        self._cluster: str | None = None
        # What the client reported last, and the message of an error that waiting does not end.
        self._last_report = ""
        self._refused: str | None = None
        self._is_known = self._warned = False
        # Answers of the group that are still to come.
        self._num_informing = 0

    def ask(self) -> tuple[dict[str, Topic], dict[Place, Ends]]:
        """Returns the topics, and the offsets of their partitions.

        Raises:
            UserError: A topic does not exist, or the broker refuses the request.
            BrokerAway: No broker answered in time.
            Stopped: A signal came meanwhile.
        """

        def ask_both() -> tuple[dict[str, Topic], dict[Place, Ends]]:
            topics = self._describe()
            places = [(name, number) for name, topic in topics.items() for number in topic.partitions]
            low = self._list_offsets(places, OffsetSpec.earliest())
            # Before `high`: what is sent between the two requests belongs to no open transaction.
            last = self._list_offsets(places, OffsetSpec.latest(), kafka.IsolationLevel.READ_UNCOMMITTED)
            high = self._list_offsets(places, OffsetSpec.latest(), kafka.IsolationLevel.READ_COMMITTED)
            return topics, {place: Ends(low[place], high[place], max(0, last[place] - high[place])) for place in places}

        return self._wait_for(ask_both)

    def identify(self) -> dict[str, Topic]:
        """Returns the topics. See `ask`."""
        return self._wait_for(self._describe)

    def _wait_for(self, call: Callable[[], Result]) -> Result:
        """Calls a function until it does not fail for the reason that a broker is away."""
        begin, line_at = time.monotonic(), 0.0
        self._last_report = ""
        while True:
            try:
                result = call()
            except kafka.KafkaException as error:
                found: kafka.KafkaError = error.args[0]
                reason = self._hide(found.str())
                self._refuse(found)
            else:
                if line_at:
                    self._print("a broker answers again.")
                self._is_known = True
                return result
            now = time.monotonic()
            if now - begin >= self._broker_timeout:
                raise BrokerAway(
                    f"--kafka {self._servers}: no broker answered for {describe_time(now - begin)}: "
                    f"{self._last_report or reason}. Nothing that was published is lost; start the stream again when a "
                    "broker is there, or wait longer with --broker_timeout."
                )
            if now >= line_at:
                left = describe_time(begin + self._broker_timeout - now)
                self._print(
                    f"no broker answers at {self._servers}: {self._last_report or reason}. Waiting, at most {left}."
                )
                line_at = now + _LINE_SECONDS
            self._pause(_PAUSE)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._admin_client().poll(0)
            if self._stop.requested:
                raise Stopped
            time.sleep(min(left, _SLICE))

    def _result(self, future: Any) -> Any:
        """Returns the result of a request; sooner than a request can end, a signal raises Stopped."""
        while True:
            try:
                return future.result(_SLICE)
            except TimeoutError:
                self._admin_client().poll(0)
                self._raise_refused()
                if self._stop.requested:
                    raise Stopped from None

    def _describe(self) -> dict[str, Topic]:
        """Returns the topics; those that exist must be all."""
        admin, begin = self._admin_client(), time.monotonic()
        found, unknown = self._find_topics(admin)
        while unknown:
            if not self._is_known or time.monotonic() - begin > _UNKNOWN_SECONDS:
                raise UserError(
                    f"--topic {unknown[0]}: there is no such topic at {self._servers}. Correct the name, or make the "
                    "topic first."
                )
            self._pause(_PAUSE)
            found, unknown = self._find_topics(admin)
        if self._cluster is None:
            self._cluster = admin.list_topics(topic=self._topics[0], timeout=_REQUEST_SECONDS).cluster_id or ""
        return {name: self._to_topic(each) for name, each in found.items()}

    def _find_topics(self, admin: Any) -> tuple[dict[str, Any], list[str]]:
        """Returns the descriptions of the topics that exist, and the names of the others."""
        asked = admin.describe_topics(kafka.TopicCollection(self._topics), request_timeout=_REQUEST_SECONDS)
        found, unknown = {}, []
        for name, future in asked.items():
            try:
                found[name] = self._result(future)
            except kafka.KafkaException as error:
                if error.args[0].code() not in (
                    kafka.KafkaError.UNKNOWN_TOPIC_OR_PART,
                    kafka.KafkaError._UNKNOWN_TOPIC,
                ):
                    raise
                unknown.append(name)
        return found, unknown

    def _to_topic(self, found: Any) -> Topic:
        assert self._cluster is not None
        identity, no_id = str(found.topic_id), str(kafka.Uuid(0, 0))
        digests = (hashlib.sha256(f"{self._cluster}/{each}".encode()).digest() for each in (identity, no_id))
        return Topic(tuple(digests), sorted(partition.id for partition in found.partitions))

    def _list_offsets(self, places: Sequence[Place], spec: Any, isolation: Any = None) -> dict[Place, int]:
        more = {} if isolation is None else {"isolation_level": isolation}
        asked = self._admin_client().list_offsets(
            {kafka.TopicPartition(*place): spec for place in places}, request_timeout=_REQUEST_SECONDS, **more
        )
        return {(each.topic, each.partition): self._result(future).offset for each, future in asked.items()}

    def assign(self, offsets: Mapping[Place, int]) -> None:
        """Begins to read partitions, each from an offset. A second call reads nothing of what the first one began."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = self._make(
            kafka.Consumer,
            {
                "queued.max.messages.kbytes": "32768",
                # By default, a full queue is looked at once in a second, in which it could be filled several times.
                "fetch.queue.backoff.ms": "20",
                "check.crcs": "true",
                "max.poll.interval.ms": "86400000",  # a round may take long
                **self._properties,
                "group.id": self._group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "error",
                "isolation.level": "read_committed",
                "on_commit": self._on_informed,
            },
        )
        self._num_informing = 0
        self._consumer.assign([kafka.TopicPartition(*place, offset) for place, offset in offsets.items()])

    def assign_more(self, offsets: Mapping[Place, int]) -> None:
        """Begins to read more partitions."""
        self._consumer.incremental_assign([kafka.TopicPartition(*place, offset) for place, offset in offsets.items()])

    def read(self, seconds: float) -> list[Any]:
        """Returns the next messages and events. Waits for the first of them at most some seconds."""
        found = self._consumer.consume(_BATCH, 0)
        if not found and seconds:
            found = self._consumer.consume(1, seconds)
        self._raise_refused()
        return found

    def is_end(self, error: Any) -> bool:
        """Whether an event is no error, but the end of a partition: all messages before its offset have come."""
        return bool(error.code() == kafka.KafkaError._PARTITION_EOF)

    def pause(self, places: Iterable[Place]) -> None:
        """Lets the client get no more messages of some partitions for now."""
        if found := [kafka.TopicPartition(*place) for place in places]:
            self._consumer.pause(found)

    def resume(self, places: Iterable[Place]) -> None:
        """Lets the client get messages of paused partitions again."""
        if found := [kafka.TopicPartition(*place) for place in places]:
            self._consumer.resume(found)

    def inform(self, offsets: Mapping[Place, int]) -> None:
        """Tells the consumer group up to where partitions were read, for monitoring. A failure is a warning."""
        if self._consumer is None or not offsets:
            return
        try:
            self._consumer.commit(
                offsets=[kafka.TopicPartition(*place, offset) for place, offset in offsets.items()], asynchronous=True
            )
        except kafka.KafkaException as error:
            self._on_informed(error.args[0], [])
        else:
            self._num_informing += 1

    def _on_informed(self, error: Any, partitions: Any) -> None:
        self._num_informing -= 1
        failed = error or next((each.error for each in partitions if each.error), None)
        if failed is not None and not self._warned:
            self._warned = True
            self._print(
                f"warning: the group {self._group} could not be told what was read: {self._hide(failed.str())}. Only "
                "its monitoring is affected."
            )

    def close(self) -> None:
        """Ends the connection."""
        if self._consumer is not None:
            end = time.monotonic() + _GROUP_SECONDS
            while self._num_informing > 0 and time.monotonic() < end:
                self._consumer.consume(_BATCH, _SLICE)
            self._consumer.close()
            self._consumer = None

    def _admin_client(self) -> Any:
        if self._admin is None:
            self._admin = self._make(AdminClient, dict(self._properties))
        return self._admin

    def _make(self, kind: Callable[[dict[str, Any]], Result], properties: dict[str, Any]) -> Result:
        shared = {"client.id": "lengthwise", **properties, "bootstrap.servers": self._servers}
        try:
            return kind(shared | {"log_level": 0, "error_cb": self._on_error})
        except (kafka.KafkaException, TypeError, ValueError) as error:
            # The message may have the value.
            found = str(error.args[0].str() if isinstance(error, kafka.KafkaException) else error)
            key = next(
                (key for key in self._properties if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w.])", found)), None
            )
            text = f"{key}: not a property of librdkafka, or a wrong value" if key else self._hide(found)
        raise UserError(f"--kafka_config {self._origin}: {text}. The properties are those of librdkafka.")

    def _on_error(self, error: Any) -> None:
        # "All brokers are down" says less than what was reported before.
        if error.code() != kafka.KafkaError._ALL_BROKERS_DOWN or not self._last_report:
            self._last_report = self._hide(error.str())
        if is_refusal(error):
            self._refused = self._last_report

    def check(self, error: Any, path: str) -> None:
        """Raises an error for what the client reports of a partition, if waiting does not help. See `check_message`."""
        check_message(error, path, hide=self._hide)
        self._refuse(error)

    def _raise_refused(self) -> None:
        if self._refused is not None:
            raise refused_connection(self._refused, servers=self._servers, origin=self._origin)

    def _refuse(self, error: Any) -> None:
        """Raises a UserError if waiting does not help."""
        self._raise_refused()
        check_rights(error, topics=self._topics, servers=self._servers, group=self._group, hide=self._hide)

    def _hide(self, text: str) -> str:
        return hide_values(text, self._properties).rstrip(".")

    def _print(self, text: str) -> None:
        print(f"prepare: {text}", file=sys.stderr, flush=True)
