"""Brokers for the tests: the mock broker inside librdkafka starts in a hundredth of a second and needs no Java."""

import ctypes
import glob
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, Self

import confluent_kafka
import streams

from pipeline.streaming.kafka_config import KafkaOptions
from pipeline.streaming.rounds import StreamOptions

# A partition of the mock broker drops its oldest batches above 5 MB or 100,000 batches.
MOCK_PARTITION_BYTES = 5 * 2**20


class MockBroker:
    """A mock cluster of one broker, which other processes can connect to as well. It knows no transactions."""

    def __init__(self) -> None:
        folder = pathlib.Path(confluent_kafka.__file__).parent.parent / "confluent_kafka.libs"
        (path,) = glob.glob(os.fspath(folder / "librdkafka*"))
        self._library = ctypes.CDLL(path)  # the one that the package has loaded
        # The mock cluster lives in a client, which connects to nothing.
        properties = self._call("rd_kafka_conf_new", result=ctypes.c_void_p)
        self._call("rd_kafka_conf_set", properties, b"log_level", b"0", None, 0, result=ctypes.c_int)
        self._client = self._call("rd_kafka_new", 0, properties, None, 0, result=ctypes.c_void_p)
        self._cluster = self._call("rd_kafka_mock_cluster_new", self._client, 1, result=ctypes.c_void_p)
        servers = self._call("rd_kafka_mock_cluster_bootstraps", self._cluster, result=ctypes.c_char_p)
        self.servers = servers.decode()
        self._on_cluster("set_controller_id", 1)  # without one, a topic cannot be described
        self._producer = confluent_kafka.Producer({"bootstrap.servers": self.servers, "linger.ms": 0, "log_level": 0})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._producer.flush()
        del self._producer
        self._call("rd_kafka_mock_cluster_destroy", self._cluster)
        self._call("rd_kafka_destroy", self._client)

    def _call(self, name: str, *arguments: Any, result: Any = None) -> Any:
        function = getattr(self._library, name)
        function.restype = result
        kinds = {int: ctypes.c_int64, bytes: ctypes.c_char_p}
        function.argtypes = [kinds.get(type(each), ctypes.c_void_p) for each in arguments]
        return function(*arguments)

    def _on_cluster(self, name: str, *arguments: Any) -> None:
        error = self._call(f"rd_kafka_mock_{name}", self._cluster, *arguments, result=ctypes.c_int)
        assert error == 0, (name, arguments, error)

    def make_topic(self, name: str, num_partitions: int = 1) -> None:
        """Makes a topic, which gets a new id."""
        self._on_cluster("topic_create", name.encode(), num_partitions, 1)

    def delete_topic(self, name: str) -> None:
        """Deletes a topic."""
        self._on_cluster("topic_delete", name.encode())

    def delete_records(self, name: str, partition: int, before: int) -> None:
        """Deletes the messages before an offset, as retention does."""
        self._on_cluster("partition_delete_records", name.encode(), partition, before)

    def set_down(self) -> None:
        """Lets the broker refuse connections."""
        self._on_cluster("broker_set_down", 1)

    def set_up(self) -> None:
        """Lets the broker accept connections again."""
        self._on_cluster("broker_set_up", 1)

    def send(
        self,
        topic: str,
        values: Iterable[bytes | str | None],
        *,
        partition: int = 0,
        keys: Sequence[bytes | None] | None = None,
        headers: Any = None,
    ) -> None:
        """Appends messages to a partition."""
        send(self._producer, topic, values, partition=partition, keys=keys, headers=headers)


def send(
    producer: confluent_kafka.Producer,
    topic: str,
    values: Iterable[bytes | str | None],
    *,
    partition: int = 0,
    keys: Sequence[bytes | None] | None = None,
    headers: Any = None,
) -> None:
    """Appends messages to a partition, and waits until the broker has them.

    Args:
        keys: The key of each message.
        headers: The headers of every message.
    """
    failed: list[Any] = []
    for number, value in enumerate(values):
        more: dict[str, Any] = {} if headers is None else {"headers": headers}
        if keys is not None:
            more["key"] = keys[number]
        while True:
            try:
                producer.produce(
                    topic,
                    value=value,
                    partition=partition,
                    on_delivery=lambda error, message: failed.append(error) if error else None,
                    **more,
                )
                break
            except BufferError:  # the queue of the producer is full
                producer.poll(0.1)
    assert producer.flush() == 0
    assert not failed, failed[0]


def fill_topic(broker: MockBroker, topic: str, values: Sequence[bytes]) -> int:
    """Makes a topic with enough partitions for values of any size, fills it, and returns their number."""
    num_partitions = 1 + int(1.2 * sum(map(len, values)) / MOCK_PARTITION_BYTES)
    broker.make_topic(topic, num_partitions)
    for partition in range(num_partitions):
        broker.send(topic, values[partition::num_partitions], partition=partition)
    return num_partitions


class TopicPlace(streams.Place):
    """A folder with a schema, and the dataset that streams make from topics."""

    def __init__(self, folder: pathlib.Path, servers: str, *topics: str, schema: str = streams.SCHEMA) -> None:
        super().__init__(folder, schema)
        self.servers, self.topics = servers, topics

    def options(self, *, streaming: dict[str, Any] | None = None, **prepare: Any) -> StreamOptions:
        """Returns the options of a stream; those of KafkaOptions are in `kafka`."""
        of_kafka = {"servers": self.servers, "topics": self.topics} | (streaming or {}).pop("kafka", {})
        more = (streaming or {}) | {"kafka": KafkaOptions(**of_kafka)}
        return super().options(streaming=more, **{"raw": (), **prepare})
