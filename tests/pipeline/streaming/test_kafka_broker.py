"""A stream over the topics of a real broker: transactions, compaction, retention, and kills of both."""

import contextlib
import itertools
import os
import random
import subprocess
import sys
import threading
import time

import confluent_kafka
import pytest
from confluent_kafka.admin import AdminClient, OffsetSpec
from kafka import PASSWORD, RealBroker, TopicPlace, kill_again_and_again
from paths import ROOT
from prepare_jobs import read_whole
from streams import values

from pipeline.errors import NothingNew, UserError

pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    with RealBroker(tmp_path_factory.mktemp("kafka") / "broker") as broker:
        yield broker


@pytest.fixture
def make_place(tmp_path, broker, request):
    def make(num_partitions=1, **config):
        topic = request.node.name[:60]
        broker.make_topic(topic, num_partitions, **config)
        return TopicPlace(tmp_path, broker.servers, topic)

    return make


# A segment of a log has at least a megabyte.
SEGMENT = str(2**20)
PAD = "x" * 1500


def transaction(broker, name, topic, numbers, partition=0):
    """Returns a producer with a transaction that is open."""
    producer = confluent_kafka.Producer({"bootstrap.servers": broker.servers, "transactional.id": name, "log_level": 0})
    producer.init_transactions(60)
    producer.begin_transaction()
    for value in values(numbers):
        producer.produce(topic, value, partition=partition)
    producer.flush()
    return producer


def test_aborted_transactions_are_skipped_and_open_ones_are_waited_for(make_place, broker, ids):
    place = make_place(2)
    (topic,) = place.topics
    transaction(broker, "a", topic, range(0, 5)).commit_transaction()
    transaction(broker, "b", topic, range(100, 105)).abort_transaction()
    place.once()
    assert ids(place) == [*range(5)]
    # A topic that ends with what is skipped is read to its end once.
    transaction(broker, "b", topic, range(110, 115)).abort_transaction()
    place.once()
    with pytest.raises(NothingNew):
        place.once()
    still_open = transaction(broker, "c", topic, range(5, 8))
    broker.send(topic, values(range(8, 10)))
    broker.send(topic, values(range(10, 12)), partition=1)
    place.once()
    assert ids(place) == [*range(5), 10, 11]  # not what comes after the open transaction in its partition
    with pytest.raises(
        NothingNew, match=rf"nothing new\. 5 offsets wait for the end of a transaction: kafka://{topic}/0"
    ):
        place.once()
    place.follow(still_open.commit_transaction, lambda: None)
    assert ids(place) == [*range(12)]
    assert read_whole(place.dataset).rejected.total == 0


def test_a_compacted_topic_is_read_with_its_gaps(make_place, broker, ids):
    place = make_place(1, cleanup_policy="compact", segment_bytes=SEGMENT, min_cleanable_dirty_ratio="0.01")
    (topic,) = place.topics
    keys = [b"%d" % (number % 10) for number in range(2000)]
    broker.send(topic, [*values(range(1999), pad=PAD), None], keys=keys)
    end = time.monotonic() + 120
    while time.monotonic() < end:
        consumer = confluent_kafka.Consumer(
            {"bootstrap.servers": broker.servers, "group.id": "x", "auto.offset.reset": "earliest"}
        )
        consumer.assign([confluent_kafka.TopicPartition(topic, 0, 0)])
        first = consumer.consume(1, 30)[0].offset()
        consumer.close()
        if first > 100:
            break
        time.sleep(0.5)
    assert first > 100
    place.once(max_records=50)
    place.follow(lambda: broker.send(topic, values([5000]), keys=[b"last"]))
    found = ids(place)
    assert [number for number in found if number >= 1990] == [*range(1990, 1999), 5000]
    assert len(found) < 1000
    assert read_whole(place.dataset).rejected.total == 0


def low_offset(broker, topic):
    place = confluent_kafka.TopicPartition(topic, 0)
    return broker.admin.list_offsets({place: OffsetSpec.earliest()})[place].result(30).offset


def test_retention_that_overtakes_the_stream_stops_it(make_place, broker, ids, capsys):
    place = make_place(1, retention_bytes=SEGMENT, segment_bytes=SEGMENT)
    (topic,) = place.topics
    broker.send(topic, values(range(10)))
    place.once()
    broker.send(topic, values(range(10, 3000), pad=PAD))
    while low_offset(broker, topic) <= 10:
        time.sleep(0.1)
    with pytest.raises(UserError, match="was read up to offset 10, but the oldest offset that is there is"):
        place.once()
    place.once(on_rewrite="reread")
    place.follow(lambda: broker.send(topic, values([3000])), on_rewrite="reread")
    found = ids(place)
    low = found[10]
    assert low > 10
    assert found == [*range(10), *range(low, 3001)]
    read_whole(place.dataset)


def test_a_topic_that_is_made_anew_while_the_stream_waits_is_another_one(make_place, broker, ids):
    place = make_place(1)
    (topic,) = place.topics
    broker.send(topic, values(range(10)))

    def anew():
        broker.delete_topic(topic)
        broker.make_topic(topic, 1)
        broker.send(topic, values(range(5, 40)))

    with pytest.raises(UserError, match="was read up to offset 10, but this topic is another one than the one that"):
        place.follow(anew, lambda: None)
    place.follow(lambda: None, on_rewrite="reread")
    assert ids(place) == [*range(40)]
    assert read_whole(place.dataset).rejected.by_reason == {"duplicate_id": 5}


def test_new_partitions_are_found_while_the_stream_waits(make_place, broker, ids):
    place = make_place(1)
    (topic,) = place.topics
    broker.send(topic, values(range(5)))

    def grow():
        broker.add_partitions(topic, 3)
        broker.send(topic, values(range(5, 9)), partition=2)

    place.follow(grow, lambda: time.sleep(1), lambda: broker.send(topic, values([9]), partition=1))
    assert ids(place) == [*range(10)]


def test_tls_and_a_password_are_read_from_a_file_and_shown_nowhere(make_place, broker, ids, tmp_path, capfd):
    place = make_place(1)
    (topic,) = place.topics
    config = tmp_path / "client.properties"
    properties = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "reader",
        "sasl.password": PASSWORD,
        "ssl.ca.location": str(broker.certificate),
    }

    def write(**changed):
        config.write_text("# of the test\n" + "".join(f"{k} = {v}\n" for k, v in (properties | changed).items()))
        config.chmod(0o600)

    write()
    broker.send(topic, values(range(10)))
    place.servers = broker.secure_servers
    place.once(kafka={"config": str(config)})
    assert ids(place) == [*range(10)]
    command = [sys.executable, "-m", "lengthwise", "prepare", "--kafka", broker.secure_servers, "--topic", topic]
    command += ["--schema", "schema.yaml", "--output", "dataset", "--streaming", "--once", "--kafka_config"]
    command += ["client.properties"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for changed, reason in (
        ({"sasl.password": "wrong-and-secret"}, "Authentication failed"),
        ({"ssl.ca.location": "/etc/ssl/certs"}, "certificate"),
        ({"ssl.ca.location": "/no/such/file"}, "ssl.ca.location"),
        ({"security.protocol": "wrong-and-secret"}, "security.protocol"),
    ):
        write(**changed)
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        (line,) = done.stderr.splitlines()
        assert reason in line
        assert "wrong-and-secret" not in line
        print(line)
    for path in place.dataset.rglob("*"):
        assert not path.is_file() or (PASSWORD.encode() not in path.read_bytes())
    out, err = capfd.readouterr()
    assert PASSWORD not in out + err
    print(out)


def committed(broker, topic, group):
    admin = AdminClient({"bootstrap.servers": broker.servers})
    ask = confluent_kafka.ConsumerGroupTopicPartitions(group, [confluent_kafka.TopicPartition(topic, 0)])
    return admin.list_consumer_group_offsets([ask])[group].result(30).topic_partitions[0].offset


def test_the_consumer_group_is_told_what_was_read(make_place, broker):
    place = make_place(1)
    (topic,) = place.topics
    broker.send(topic, values(range(7)))
    place.once(kafka={"group": "watched"})
    assert committed(broker, topic, "watched") == 7


def test_ten_kills_among_transactions_lose_and_repeat_nothing(make_place, broker, ids):
    """Every second transaction is aborted."""
    place, chance, is_over, sent = make_place(2), random.Random(0), threading.Event(), []
    (topic,) = place.topics

    def send_all(partition):
        producer = confluent_kafka.Producer(
            {"bootstrap.servers": broker.servers, "transactional.id": f"kill-{partition}", "log_level": 0}
        )
        producer.init_transactions(60)
        numbers = itertools.count(partition, 2)
        for lot in itertools.count():
            if is_over.is_set():
                return
            producer.begin_transaction()
            some = list(itertools.islice(numbers, 30))
            for value in values(some):
                producer.produce(topic, value, partition=partition)
            producer.flush()  # an earlier end would be an error
            time.sleep(0.05)
            if lot % 2:
                producer.abort_transaction(60)
            else:
                producer.commit_transaction(60)
                sent.extend(some)

    senders = [threading.Thread(target=send_all, args=(partition,)) for partition in (0, 1)]
    for sender in senders:
        sender.start()
    commits = kill_again_and_again(place, 10, chance)
    is_over.set()
    for sender in senders:
        sender.join()
    with contextlib.suppress(NothingNew):
        place.follow(lambda: None)
    assert ids(place) == sorted(sent)
    assert read_whole(place.dataset).rejected.total == 0
    print(f"\n{len(sent):,} records; after a kill, the newest commit was {sorted(commits)}")
    assert len(commits) >= 4


def test_thirty_kills_of_the_stream_and_three_of_the_broker_lose_and_repeat_nothing(make_place, broker, ids):
    place, chance = make_place(3), random.Random(0)
    (topic,) = place.topics
    sent, is_over = [0], threading.Event()
    producers = [
        confluent_kafka.Producer(
            {"bootstrap.servers": broker.servers, "enable.idempotence": True, "linger.ms": 20, "log_level": 0}
        )
    ]

    def send_all():
        with contextlib.suppress(confluent_kafka.KafkaException):
            while not is_over.is_set():
                for value in values(range(sent[0], sent[0] + 40)):
                    producers[0].produce(topic, value, partition=chance.randrange(3))
                sent[0] += 40
                producers[0].poll(0)
                time.sleep(0.05)

    def restart(kill):
        if kill % 10 == 5:
            broker.kill()
            time.sleep(chance.uniform(0, 2))
            broker.start()
            time.sleep(chance.uniform(0, 4))

    sender = threading.Thread(target=send_all)
    sender.start()
    commits = kill_again_and_again(place, 30, chance, restart)
    is_over.set()
    sender.join()
    assert producers[0].flush(120) == 0
    with contextlib.suppress(NothingNew):
        place.follow(lambda: None)
    assert ids(place) == [*range(sent[0])]
    manifest = read_whole(place.dataset)
    assert manifest.rejected.total == 0
    print(f"\n{sent[0]:,} records, {manifest.commit} commits; after a kill, the newest was {sorted(commits)}")
    assert len(commits) >= 10


def test_a_broker_that_is_killed_and_started_again_is_waited_for(make_place, broker, ids, capsys):
    place = make_place(1)
    (topic,) = place.topics
    broker.send(topic, values(range(10)))

    def restart():
        broker.kill()
        threading.Timer(6, broker.start).start()

    place.follow(
        restart, lambda: broker.send(topic, values(range(10, 20))), lambda: time.sleep(1), lambda: time.sleep(1)
    )
    assert ids(place) == [*range(20)]
    print(capsys.readouterr().err)
