"""Takes the messages of one round from partitions: in equal shares, if the round cannot have all of them."""

import time
from collections.abc import Sequence

from pipeline.errors import TryAgain
from pipeline.raw.spooled_messages import SpoolWriter
from pipeline.streaming.kafka_client import KafkaClient, Place
from pipeline.streaming.message_id import ReadValue
from pipeline.streaming.partition import Partition
from pipeline.streaming.stop import StopSignals

# Bytes of messages that no round has taken yet. Above it, the client gets no more from partitions that have some.
_HELD_BYTES = 16 * 2**20
# Seconds that a call waits for messages.
_WAIT = 0.1
# Without a message for so many seconds, a round ends with what it has, and one without any asks whether a broker is
# there; then it begins again after the second time.
_QUIET_SECONDS, _TOO_QUIET_SECONDS = 5.0, 60.0


def take_messages(
    partitions: Sequence[Partition],
    client: KafkaClient,
    spool: SpoolWriter,
    *,
    read_value: ReadValue | None,
    max_bytes: int,
    max_records: int | None,
    stop: StopSignals,
) -> bool:
    """Writes the messages of partitions up to their newest ones to a spool, and moves `next` of each partition.

    Returns whether it left messages because of the limits.

    A signal ends it early, and so does a broker that sends nothing, if there are some messages.

    Raises:
        TryAgain: Messages that should be there did not come.
        UserError: A message is damaged, or no broker answers.
        Stopped: A signal came while no broker answered.
    """
    for each in partitions:
        each.begin_round()
    by_place = {each.place: each for each in partitions}
    taking = _Taking(partitions, spool, read_value, max_bytes, max_records)
    taking.take()
    began = heard = asked = time.monotonic()
    progress = taking.progress()
    while not taking.is_complete() and not stop.requested:
        _receive(client, by_place)
        taking.take()
        _hold_back(client, partitions, taking)
        now = time.monotonic()
        if progress != (progress := taking.progress()):
            heard = asked = now
        elif now - heard >= _QUIET_SECONDS and taking.num_records:
            break
        elif now - heard >= _TOO_QUIET_SECONDS:
            raise TryAgain(f"{taking.first_left().path}: no message came for {now - began:.0f} seconds.")
        elif now - asked >= _QUIET_SECONDS:
            client.ask()
            asked = now
    client.resume([each.place for each in partitions if each.is_paused])
    for each in partitions:
        each.is_paused = False
    return taking.is_limited()


def _receive(client: KafkaClient, by_place: dict[Place, Partition]) -> None:
    """Takes the next messages from the client, and up to where it has come."""
    for message in client.read(_WAIT):
        error = message.error()
        partition = by_place.get((message.topic(), message.partition()))
        if error is None:
            assert partition is not None
            if message.offset() >= partition.arrived:
                partition.hold(message, len(message.value() or b""))
        elif client.is_end(error):
            assert partition is not None
            partition.arrived = max(partition.arrived, message.offset())
        else:
            client.check(error, partition.path if partition is not None else str(message.topic()))


def _hold_back(client: KafkaClient, partitions: Sequence[Partition], taking: "_Taking") -> None:
    """Lets the client get nothing from partitions of which many messages wait, and again if they do no longer."""
    if sum(each.held_bytes for each in partitions) > _HELD_BYTES:
        new = [each for each in partitions if each.held and not each.is_paused]
        client.pause([each.place for each in new])
        for each in new:
            each.is_paused = True
    elif again := [each for each in partitions if each.is_paused and not each.held and not taking.has_enough(each)]:
        client.resume([each.place for each in again])
        for each in again:
            each.is_paused = False


class _Taking:
    """What a round may take of each partition: a partition that has less leaves the rest of its share to the others.

    Attributes:
        num_records: Messages with a value that were taken.
    """

    def __init__(
        self,
        partitions: Sequence[Partition],
        spool: SpoolWriter,
        read_value: ReadValue | None,
        max_bytes: int,
        max_records: int | None,
    ) -> None:
        self._partitions, self._spool, self._read_value = partitions, spool, read_value
        self._max_bytes, self._max_records = max_bytes, max_records
        self._byte_share: float = 0
        self._record_share: float = 0
        self.num_records = 0

    def take(self) -> None:
        """Takes what may be taken of the messages that came."""
        num_done = -1
        while num_done != (num_done := self._count_done()):
            self._share()
            for each in self._partitions:
                if not each.is_done:
                    self._take_of(each)

    def _count_done(self) -> int:
        return sum(each.is_done for each in self._partitions)

    def _share(self) -> None:
        """Divides what the partitions that are done left among the others."""
        done = [each for each in self._partitions if each.is_done]
        num_left = max(1, len(self._partitions) - len(done))
        self._byte_share = (self._max_bytes - sum(each.num_bytes for each in done)) / num_left
        if self._max_records is not None:
            records = self._max_records - sum(each.records for each in done)
            self._record_share = max(1, records // num_left)

    def _take_of(self, partition: Partition) -> None:
        held, path = partition.held, partition.path
        while held and not self.has_enough(partition):
            message = held[0]
            offset = message.offset()
            if offset >= partition.stop:
                break
            held.popleft()
            value = message.value()
            partition.next = offset + 1
            if value is None:
                partition.nulls += 1
                continue
            partition.held_bytes -= len(value)
            if self._read_value is not None:
                value = self._read_value(message)
            self._spool.add(path, offset, value)
            partition.num_bytes += len(value)
            partition.records += 1
            partition.taken += 1
            self.num_records += 1
        if (held[0].offset() if held else partition.arrived) >= partition.stop:
            partition.is_done = True
            partition.next = max(partition.next, partition.stop)

    def has_enough(self, partition: Partition) -> bool:
        """Whether a partition has its share, or all of its messages."""
        if partition.is_done or partition.num_bytes >= self._byte_share:
            return True
        if self._max_records is None:
            return False
        return partition.records >= self._record_share or self.num_records >= self._max_records

    def is_complete(self) -> bool:
        """Whether nothing more may be taken."""
        return all(map(self.has_enough, self._partitions))

    def is_limited(self) -> bool:
        """Whether a partition has its share, but not all of its messages."""
        return any(self.has_enough(each) and not each.is_done for each in self._partitions)

    def progress(self) -> int:
        """Returns a number that grows with what has come of this round. Later messages do not count."""
        return sum(min(each.arrived, each.stop) for each in self._partitions)

    def first_left(self) -> Partition:
        """Returns a partition of which messages are to come."""
        return next(each for each in self._partitions if not self.has_enough(each))
