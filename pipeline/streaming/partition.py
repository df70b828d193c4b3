"""A partition of a topic, up to where it was read, and the messages of it that a round takes."""

import collections
import dataclasses
from typing import Any

from pipeline.raw.find_files import TOPIC_SCHEME, FileRange
from pipeline.streaming.positions import Position


@dataclasses.dataclass
class Partition:
    """A partition.

    Attributes:
        topic, number: Its topic, and its number in it.
        position: Up to where it was read, as the dataset says. `tail` is the digest of the topic.
        is_new: Whether the dataset has no position of it.
        high: The offset after its newest message that can be read.
        num_open: Number of offsets after that, from the first message of an open transaction on.
        next: The offset to read next in the following round.
        taken: Messages that were taken since `position` without being published.
        nulls: Messages without a value since `position`, which were skipped.
        arrived: The offset up to which all messages came from the client; they were taken or are in `held`.
        held: Messages that came, and that no round has taken yet.
        held_bytes: Bytes of their values.
        is_paused: Whether the client gets no more messages of it for now.
        stop: Where the round at work may end in it.
        is_done: Whether that round has all messages before `stop`.
        records, num_bytes: What that round has taken of it, messages without a value not included.
    """

    topic: str
    number: int
    position: Position
    is_new: bool
    high: int = 0
    num_open: int = 0
    next: int = 0
    taken: int = 0
    nulls: int = 0
    arrived: int = 0
    held: "collections.deque[Any]" = dataclasses.field(default_factory=collections.deque)
    held_bytes: int = 0
    is_paused: bool = False
    stop: int = 0
    is_done: bool = False
    records: int = 0
    num_bytes: int = 0

    def __post_init__(self) -> None:
        self.next = self.arrived = self.position.end

    @property
    def place(self) -> tuple[str, int]:
        """Topic and number."""
        return self.topic, self.number

    @property
    def path(self) -> str:
        """Its name in the dataset."""
        return partition_path(self.topic, self.number)

    @property
    def lag(self) -> int:
        """Offsets that are not read yet."""
        return max(0, self.high - self.next)

    @property
    def is_advanced(self) -> bool:
        """Whether it was read beyond its position, or has none yet."""
        return self.is_new or self.next > self.position.end

    def rewind(self) -> None:
        """Lets it be read from its position again."""
        self.next = self.arrived = self.position.end
        self.held.clear()
        self.taken = self.nulls = self.held_bytes = 0
        self.is_paused = False

    def begin_round(self) -> None:
        """Begins a round that reads up to the newest message."""
        self.stop, self.is_done = self.high, False
        self.records = self.num_bytes = 0

    def hold(self, message: Any, num_bytes: int) -> None:
        """Keeps a message that came from the client."""
        self.held.append(message)
        self.held_bytes += num_bytes
        self.arrived = message.offset() + 1

    def part(self) -> FileRange:
        """Returns the place of what was read since the position."""
        return FileRange(self.position.end, self.position.lines, self.position.rewrites, self.position.tail)


def partition_path(topic: str, number: int) -> str:
    """Returns the name of a partition in a dataset.

    >>> partition_path("clicks", 0)
    'kafka://clicks/0'
    """
    return f"{TOPIC_SCHEME}{topic}/{number}"
