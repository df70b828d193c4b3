"""The options of a stream that follows topics of Kafka, and the properties of its connection, which are never shown."""

import dataclasses
import os
import re
import stat
import sys
from collections.abc import Iterable
from typing import Literal

from pipeline.errors import UserError

# Set by the stream: with another value, it could lose records.
_OWNED = {
    "auto.offset.reset": "--start is the flag for it",
    "bootstrap.servers": "--kafka is the flag for it",
    "enable.auto.commit": "the positions are in the commits of the dataset",
    "enable.auto.offset.store": "the positions are in the commits of the dataset",
    "enable.partition.eof": "the stream needs it",
    "group.id": "--group is the flag for it",
    "group.instance.id": "the stream takes all partitions, and is no member of a group",
    "group.protocol": "the stream takes all partitions, and is no member of a group",
    "isolation.level": "the stream reads committed messages only",
    "log_level": "the stream prints what concerns it",
    "metadata.broker.list": "--kafka is the flag for it",
    "partition.assignment.strategy": "the stream takes all partitions, and is no member of a group",
}
# Properties of the Java clients that librdkafka calls otherwise.
_OF_JAVA = {
    "sasl.jaas.config": "sasl.username and sasl.password",
    "ssl.keystore.type": "ssl.keystore.location for PKCS#12, or ssl.certificate.location and ssl.key.location for PEM",
    "ssl.truststore.certificates": "ssl.ca.pem",
    "ssl.truststore.location": "ssl.ca.location, with a file in PEM",
    "ssl.truststore.password": "ssl.ca.location, with a file in PEM",
    "ssl.truststore.type": "ssl.ca.location, with a file in PEM",
}
_SECRET = re.compile(r"password|secret|username|oauth|\.pem$", re.IGNORECASE)
_OTHERS_MAY_READ = stat.S_IRGRP | stat.S_IROTH


@dataclasses.dataclass(frozen=True)
class KafkaOptions:
    """The options of `lengthwise prepare --streaming --kafka`.

    Attributes:
        servers: `HOST:PORT` of some brokers, separated by commas.
        topics: Names of the topics.
        config: File with properties of the connection.
        record_id: What has the id of a record: `key`, or `header:NAME`. None for a field of the value.
        start: Where to begin in a topic of which the dataset has nothing yet.
        group: Name of the consumer group that is told what was read, for monitoring.
        broker_timeout: Longest time to wait for a broker, in seconds.
    """

    servers: str
    topics: tuple[str, ...]
    config: str | None = None
    record_id: str | None = None
    start: Literal["earliest", "latest"] = "earliest"
    group: str = "lengthwise"
    broker_timeout: float = 600.0


def read_properties(path: str) -> dict[str, str]:
    """Returns the properties in a file, with a warning on stderr if others may read it.

    A line is `key=value`, or begins with # or !. Blanks around key and value do not count.

    Raises:
        UserError: The file cannot be read, or has a line or a key that is not allowed. No message has a value.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
            mode = os.fstat(file.fileno()).st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"--kafka_config {path}: cannot be read: {reason}.") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith(("#", "!")):
            continue
        key, separator, value = line.partition("=")
        key = key.strip()
        if not separator or not re.fullmatch(r"[\w.]+", key):
            raise UserError(
                f"--kafka_config {path}: line {number} is not `key=value`, for example ssl.ca.location=ca.pem."
            )
        if key in found:
            raise UserError(f"--kafka_config {path}: line {number}: {key} is there twice, expected once.")
        found[key] = value.strip()
    _check(path, found)
    if mode & _OTHERS_MAY_READ and any(map(_SECRET.search, found)):
        print(
            f"prepare: warning: {path}: other users may read this file. `chmod 600 {path}` ends that.", file=sys.stderr
        )
    return found


def _check(path: str, keys: Iterable[str]) -> None:
    for key in keys:
        if key in _OWNED:
            raise UserError(f"--kafka_config {path}: {key} cannot be set: {_OWNED[key]}. Remove the line.")
        if key in _OF_JAVA:
            raise UserError(f"--kafka_config {path}: {key} is of the Java clients. Use {_OF_JAVA[key]} instead.")


def hide_values(text: str, properties: dict[str, str]) -> str:
    """Returns a message of the client in one line, without the values of secret properties."""
    for key, value in sorted(properties.items(), key=lambda item: -len(item[1])):
        if value and _SECRET.search(key):
            text = text.replace(value, "***")
    return " ".join(text.split())
