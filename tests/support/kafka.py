"""Brokers for the tests: the mock one inside librdkafka, which starts at once, and a real one, which needs Java."""

import contextlib
import ctypes
import ctypes.util
import glob
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import confluent_kafka
import pytest
import streams
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic
from paths import ROOT

from pipeline.streaming.kafka_config import KafkaOptions
from pipeline.streaming.rounds import StreamOptions
from trainer.devices.local_workers import free_ports

# A partition of the mock broker drops its oldest batches above 5 MB or 100,000 batches.
MOCK_PARTITION_BYTES = 5 * 2**20


class MockBroker:
    """A mock cluster of one broker, which other processes can connect to as well. It knows no transactions."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_find_library())
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

    def fail_requests(self, kind: int, codes: Sequence[int]) -> None:
        """Lets the broker answer the next requests of a kind with errors: the numbers of both in Kafka's protocol."""
        array = (ctypes.c_int * len(codes))(*codes)
        self._call("rd_kafka_mock_push_request_errors_array", self._cluster, kind, len(codes), array)

    def fail_topic(self, name: str, code: int) -> None:
        """Lets the broker answer with an error what a client asks about a topic."""
        self._call("rd_kafka_mock_topic_set_error", self._cluster, name.encode(), code)

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


def kill_again_and_again(
    place: TopicPlace, kills: int, chance: random.Random, during: Callable[[int], object] = lambda kill: None
) -> set[int]:
    """Follows the topics of a place with processes that are killed, and returns the newest commits after the kills.

    Every second process is killed at any moment, also before it has begun, and the others after a commit.

    Args:
        during: Called before each kill, with its number.
    """
    command = [sys.executable, "-m", "lengthwise", "prepare", "--kafka", place.servers, "--schema", "schema.yaml"]
    command += [word for topic in place.topics for word in ("--topic", topic)]
    command += ["--output", "dataset", "--streaming", "--commit_interval", "0.1s", "--max_bytes", "50000"]
    command += ["--retain", "0"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    commits = set()
    count = lambda: len(list(place.dataset.glob("commits/*.json")))  # noqa: E731
    for kill in range(kills):
        with subprocess.Popen(
            command, cwd=place.folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            before, end = count(), time.monotonic() + 60
            while not kill % 2 and count() == before and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(chance.uniform(0, 2))
            during(kill)
            assert process.stderr is not None
            assert process.poll() is None, process.stderr.read()
            process.kill()
            process.wait()
        commits.add(count())
    return commits


# The broker of the proofs, which Maven fetches.
_KAFKA_VERSION = "4.1.0"
_POM = """\
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>lengthwise</groupId><artifactId>broker</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{}</version></dependency>
  </dependencies>
</project>
"""
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secure}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_ssl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_reader="{password}";
ssl.keystore.location={folder}/keys.p12
ssl.keystore.password=of-the-keys
ssl.keystore.type=PKCS12
log.dirs={folder}/logs
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
log.retention.check.interval.ms=300
log.initial.task.delay.ms=300
log.cleaner.backoff.ms=300
"""
PASSWORD = "not-to-be-shown"
# Seconds that no start of a broker takes, even on a very busy machine.
_PATIENCE = 240


def _find_library() -> str:
    """Returns the path of the library that the package has loaded: its own one, or that of the system."""
    folder = pathlib.Path(confluent_kafka.__file__).parent
    for place in (folder.parent / "confluent_kafka.libs", folder / ".dylibs"):
        if found := glob.glob(os.fspath(place / "librdkafka*")):
            return found[0]
    return ctypes.util.find_library("rdkafka") or "librdkafka.so.1"


class RealBroker:
    """A broker of Kafka 4 in a process of its own, with a plain listener and one with TLS and a password.

    Attributes:
        servers: Where the plain listener is.
        secure_servers: Where the other one is. Its certificate is `certificate`, and its user `reader` has PASSWORD.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        for program in ("java", "keytool", "mvn"):
            if shutil.which(program) is None:
                pytest.skip(f"a real broker needs Java 17 and Maven, but there is no {program}")
        self._jars, self._folder = _fetch_jars(), folder
        folder.mkdir()
        plain, secure, controller = free_ports(3)
        self.servers, self.secure_servers = f"127.0.0.1:{plain}", f"127.0.0.1:{secure}"
        self.certificate = folder / "ca.pem"
        self._make_certificate()
        ports = {"plain": plain, "secure": secure, "controller": controller}
        (folder / "server.properties").write_text(_PROPERTIES.format(**ports, folder=folder, password=PASSWORD))
        self._run("kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c", "server.properties").wait()
        self.start()
        self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.kill()

    def _connect(self) -> None:
        self.admin = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        self.producer = confluent_kafka.Producer({"bootstrap.servers": self.servers, "log_level": 0})

    def _make_certificate(self) -> None:
        keys = ["-keystore", "keys.p12", "-storepass", "of-the-keys", "-alias", "broker"]
        make = [*("-genkeypair", "-keyalg", "RSA", "-dname", "CN=broker"), *("-ext", "san=ip:127.0.0.1")]
        for arguments in (make, ["-exportcert", "-rfc", "-file", "ca.pem"]):
            subprocess.run(["keytool", *arguments, *keys], cwd=self._folder, check=True, capture_output=True)

    def _run(self, *command: str) -> "subprocess.Popen[bytes]":
        with open(self._folder / "output", "ab") as output:
            return subprocess.Popen(
                ["java", "-Xmx256m", "-cp", f"{self._jars}/*", *command],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def start(self) -> None:
        """Starts the broker, and waits until it answers."""
        self._process = self._run("kafka.Kafka", "server.properties")
        client = AdminClient({"bootstrap.servers": self.servers, "log_level": 0})
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            assert self._process.poll() is None, (self._folder / "output").read_text()[-2000:]
            with contextlib.suppress(confluent_kafka.KafkaException):
                if client.list_topics(timeout=1).brokers:
                    return
        raise AssertionError("the broker does not answer")

    def kill(self) -> None:
        """Kills the broker with SIGKILL."""
        self._process.kill()
        self._process.wait()

    def make_topic(self, name: str, num_partitions: int = 1, **config: str) -> None:
        """Makes a topic, with properties in which `_` stands for a dot."""
        config = {key.replace("_", "."): value for key, value in config.items()}
        self._wait(self.admin.create_topics([NewTopic(name, num_partitions, 1, config=config)]))

    def delete_topic(self, name: str) -> None:
        """Deletes a topic."""
        self._wait(self.admin.delete_topics([name], operation_timeout=30))
        while name in self.admin.list_topics(timeout=10).topics:
            time.sleep(0.1)

    def add_partitions(self, name: str, total: int) -> None:
        """Adds partitions to a topic."""
        self._wait(self.admin.create_partitions([NewPartitions(name, total)]))
        self._connect()  # a producer asks for new partitions only once in a while

    def _wait(self, futures: dict[Any, Any]) -> None:
        for future in futures.values():
            future.result(_PATIENCE)

    def send(self, topic: str, values: Iterable[bytes | str | None], **more: Any) -> None:
        """Appends messages to a partition. See the function `send`."""
        send(self.producer, topic, values, **more)


def _fetch_jars() -> pathlib.Path:
    """Returns the folder with the jars of the broker, which Maven fetches once."""
    folder = ROOT / "build" / f"kafka-{_KAFKA_VERSION}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pom.xml").write_text(_POM.format(_KAFKA_VERSION))
        command = [
            "mvn",
            "-q",
            "-B",
            "dependency:copy-dependencies",
            "-DoutputDirectory=jars",
            "-DincludeScope=runtime",
        ]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a real broker needs the jars of Kafka, which Maven could not fetch: {done.stdout[-300:]}")
        (folder / "complete").touch()
    return folder / "jars"
