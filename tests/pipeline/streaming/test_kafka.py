"""Topics become commits: every message once, whatever its partition, and whatever else happens to the topic."""

import json
import time

import pytest
import streams
from datasets import call
from kafka import MockBroker, TopicPlace
from prepare_jobs import load, read_whole
from streams import record, values

from pipeline.errors import NothingNew, TryAgain, UserError
from pipeline.streaming import kafka, kafka_client, rounds, take_messages
from pipeline.streaming.kafka_client import KafkaClient
from pipeline.streaming.positions import Positions
from pipeline.streaming.prepare_parts import prepare_parts
from pipeline.writing.compact import compact


@pytest.fixture
def broker():
    with MockBroker() as broker:
        yield broker


@pytest.fixture
def place(tmp_path, broker):
    broker.make_topic("clicks", 2)
    return TopicPlace(tmp_path, broker.servers, "clicks")


def ends(place):
    """Returns up to where each partition was read."""
    positions = Positions(str(place.dataset))
    positions.update(load(place.dataset).summaries)
    return {path.removeprefix("kafka://"): positions.newest(path).end for path in positions.by_path}


def rejects(place):
    return [
        json.loads(line) for path in sorted(place.dataset.glob("rejected/*")) for line in path.read_text().splitlines()
    ]


def commits(errors):
    return [line for line in errors.splitlines() if "commit" in line]


def test_messages_of_several_partitions_and_topics_become_commits(place, broker, ids, capsys):
    broker.make_topic("views", 1)
    place.topics = ("clicks", "views")
    for partition in (0, 1):
        broker.send("clicks", values(range(partition, 20, 2)), partition=partition)
    broker.send("views", values(range(20, 30)))
    manifest = place.follow(
        lambda: broker.send("clicks", values(range(30, 35)), partition=1),
        lambda: None,
        lambda: (broker.send("views", values(range(35, 40))), broker.send("clicks", values([40]))),
    )
    assert manifest.commit == 3
    assert ids(place) == [*range(41)]
    assert ends(place) == {"clicks/0": 11, "clicks/1": 15, "views/0": 15}
    sizes = [sum(map(len, values(numbers))) for numbers in (range(30), range(30, 35), range(35, 41))]
    assert commits(capsys.readouterr().err) == [
        f"prepare: commit 1: 30 records, 0 rejected, {sizes[0]:,} bytes of 3 partitions",
        f"prepare: commit 2: 5 records, 0 rejected, {sizes[1]:,} bytes of 1 partition",
        f"prepare: commit 3: 6 records, 0 rejected, {sizes[2]:,} bytes of 2 partitions",
    ]
    assert read_whole(place.dataset) == manifest


def test_rejects_name_the_partition_and_the_offset_and_tombstones_are_skipped(place, broker, ids):
    pretty = json.dumps(record(1), indent=1)
    broker.send("clicks", [*values([0]), None, pretty, "{}", "", "[1]\n", *values([2, 0])])
    place.once(keep_raw=True)
    assert ids(place) == [0, 1, 2]
    assert [(row["file"], row["byte_offset"], row["reason"], row["raw"]) for row in rejects(place)] == [
        ("kafka://clicks/0", 3, "bad_id", "{}"),
        ("kafka://clicks/0", 4, "not_json", ""),
        ("kafka://clicks/0", 5, "not_a_record", "[1]\n"),
        ("kafka://clicks/0", 7, "duplicate_id", values([0])[0]),
    ]
    broker.send("clicks", ["{}"])
    assert place.once().commit == 2
    assert max(row["byte_offset"] for row in rejects(place)) == 8
    broker.send("clicks", ["{}"] * 2000)
    with pytest.raises(UserError, match="The first one is offset 9 of kafka://clicks/0, bad_id"):
        place.once(max_rejected=0.5)
    read_whole(place.dataset)


def test_a_stream_that_ends_is_continued_by_the_next_one(place, broker, ids):
    broker.send("clicks", values(range(10)))
    assert place.once().commit == 1
    with pytest.raises(NothingNew, match=r"dataset: nothing new\.$"):
        place.once()
    broker.send("clicks", values(range(10, 20)), partition=1)
    broker.send("clicks", values([5]))
    assert place.once().commit == 2
    assert ids(place) == [*range(20)]
    assert read_whole(place.dataset).rejected.by_reason == {"duplicate_id": 1}


def test_a_round_takes_equal_shares_of_the_partitions(place, broker, ids, capsys):
    broker.send("clicks", values(range(4)))
    broker.send("clicks", values(range(4, 30)), partition=1)
    place.once(max_records=6)
    assert ends(place) == {"clicks/0": 3, "clicks/1": 3}
    place.once(max_records=6)
    assert ends(place) == {"clicks/0": 4, "clicks/1": 8}
    # A limit of bytes is shared as well.
    broker.send("clicks", values(range(100, 110)))
    place.once(max_bytes=2 * len("".join(values(range(100, 105)))))
    assert ends(place)["clicks/0"] == 9
    # A round that leaves some is followed at once.
    place.follow(max_records=6)
    assert ids(place) == [*range(30), *range(100, 110)]
    read_whole(place.dataset)


@pytest.mark.parametrize("held_bytes", [0, 3000, 2**30])
def test_messages_that_wait_for_the_next_round_are_kept_or_fetched_again(place, broker, ids, monkeypatch, held_bytes):
    """The client gets messages in small lots, and nothing of a partition of which too many wait."""
    monkeypatch.setattr(take_messages, "_HELD_BYTES", held_bytes)
    monkeypatch.setattr(kafka_client, "_BATCH", 25)
    paused, pause = [], KafkaClient.pause
    monkeypatch.setattr(KafkaClient, "pause", lambda client, places: (paused.extend(places), pause(client, places)))
    broker.send("clicks", values(range(0, 700, 2)))
    broker.send("clicks", [*values(range(1, 99, 2)), None, "{}"], partition=1)
    more = lambda: broker.send("clicks", values(range(99, 700, 2)), partition=1)  # noqa: E731
    assert place.follow(more, max_records=130).commit >= 6
    assert ids(place) == [*range(700)]
    assert read_whole(place.dataset).rejected.by_reason == {"bad_id": 1}
    assert paused if not held_bytes else held_bytes < 2**30 or not paused


def test_a_partition_that_sends_nothing_does_not_hold_up_the_others(place, broker, ids, monkeypatch):
    monkeypatch.setattr(take_messages, "_QUIET_SECONDS", 0.3)
    for partition in (0, 1):
        broker.send("clicks", values(range(5 * partition, 5 + 5 * partition)), partition=partition)
    numbers, read = iter(range(100, 1000)), KafkaClient.read

    def read_first(client, seconds):
        broker.send("clicks", values([next(numbers)]))  # another one comes all the time
        return [message for message in read(client, seconds) if message.partition() == 0]

    with monkeypatch.context() as patch:
        patch.setattr(KafkaClient, "read", read_first)
        place.once()
    assert ids(place) == [*range(5)]
    assert ends(place) == {"clicks/0": 5, "clicks/1": 0}
    place.once()
    assert ids(place) == [*range(10), *range(100, next(numbers))]


def test_a_first_round_without_a_record_is_not_read_again_until_there_is_more(place, broker, ids, capsys, monkeypatch):
    broker.send("clicks", ["{}"] * 5 + [None])
    taken = []
    take = kafka.take_messages
    monkeypatch.setattr(kafka, "take_messages", lambda *a, **o: taken.append(1) or take(*a, **o))
    place.follow(lambda: None, lambda: None)
    assert len(taken) == 1
    assert not (place.dataset / "manifest.json").exists()
    assert not list(place.dataset.glob("data/*"))
    place.follow(lambda: broker.send("clicks", ["{}", *values([0])]), lambda: None)
    (line,) = commits(capsys.readouterr().err)
    assert "commit 1: 1 record, 6 rejected (6 bad_id)" in line
    assert (ids(place), ends(place)) == ([0], {"clicks/0": 8, "clicks/1": 0})
    with pytest.raises(NothingNew):
        place.once()


def test_a_limit_that_a_first_round_without_a_record_reaches_is_doubled(place, broker, ids):
    broker.send("clicks", ["{}"] * 7 + values([0]))
    assert place.once(max_records=2).commit == 1
    assert ids(place) == [0]
    assert read_whole(place.dataset).rejected.total == 7


def test_of_two_streams_over_the_same_topic_one_begins_its_round_again(place, broker, ids, monkeypatch, capsys):
    broker.send("clicks", values([0]))
    place.once()
    others = []

    def publish(*arguments, **options):
        if others:
            others.pop()()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)

    def other_takes_more():
        broker.send("clicks", ["{}"])
        place.once()

    broker.send("clicks", ["{}"])
    others.append(other_takes_more)
    with pytest.raises(NothingNew):  # the other one took all of it
        place.once()
    assert "another job added the raw file kafka://clicks/0 meanwhile" in capsys.readouterr().err
    broker.send("clicks", values([3]))
    others.append(place.once)
    assert place.follow(lambda: broker.send("clicks", values([4]), partition=1)).commit == 4
    assert ids(place) == [0, 3, 4]
    assert read_whole(place.dataset).rejected.total == 2


def test_without_ids_equal_messages_are_kept_and_numbered(tmp_path, broker, read_records):
    broker.make_topic("clicks", 2)
    place = TopicPlace(tmp_path, broker.servers, "clicks", schema=streams.WITHOUT_ID)
    broker.send("clicks", values([0, 1, 1]))
    place.follow(lambda: broker.send("clicks", values([1]), partition=1))
    assert len({bytes(example["id"][0]) for example in read_records(place.dataset)}) == 4
    read_whole(place.dataset)


def test_a_compaction_of_the_dataset_keeps_the_offsets(place, broker, ids):
    broker.send("clicks", values([0]))
    place.follow(lambda: broker.send("clicks", values([1])), lambda: broker.send("clicks", values([2]), partition=1))
    compact(str(place.dataset))
    broker.send("clicks", values([3]))
    place.once()
    assert (ids(place), ends(place)) == ([0, 1, 2, 3], {"clicks/0": 3, "clicks/1": 1})
    assert read_whole(place.dataset).rejected.total == 0


def test_a_round_with_beam_gives_the_same_dataset(tmp_path, broker):
    found = []
    for name in ("plain", "beam"):
        (tmp_path / name).mkdir()
        broker.make_topic(name, 2)
        place = TopicPlace(tmp_path / name, broker.servers, name)
        for partition in (0, 1):
            broker.send(name, [*values(range(15 * partition, 15 + 20 * partition)), "{}"], partition=partition)
        rounds.stream(place.options(streaming={"once": True}), {"runner": "DirectRunner"} if name == "beam" else {})
        manifest = read_whole(place.dataset)
        found.append((manifest.fingerprint, manifest.rejected.by_reason, ends(place)))
    assert found[0][:2] == found[1][:2]
    assert [*found[0][2].values()] == [*found[1][2].values()] == [16, 21]


def test_ids_come_from_keys_or_headers(tmp_path, broker, ids):
    broker.make_topic("clicks", 1)
    for name, record_id, sent in (
        ("key", "key", {"keys": [b"id-0", b"id-1", None, b"id-\xff", b"id-0", b"id-7"]}),
        ("header", "header:row", {"headers": [("row", b"id-9"), ("other", b"x"), ("row", b"id-0")]}),
    ):
        (tmp_path / name).mkdir()
        broker.make_topic(name, 1)
        place = TopicPlace(tmp_path / name, broker.servers, name)
        whole = [record(number) for number in range(5)]
        for each in whole:
            del each["id"]
        broker.send(name, [*map(json.dumps, whole), json.dumps(record(7))], **sent)
        place.once(kafka={"record_id": record_id}, keep_raw=True)
        reasons = [(row["byte_offset"], row["reason"]) for row in rejects(place)]
        if name == "key":
            assert ids(place) == [0, 1]
            assert reasons == [(2, "bad_id"), (3, "not_json"), (4, "duplicate_id"), (5, "duplicate_key")]
            assert rejects(place)[2]["raw"].startswith('{"id": "id-0", "x": [')
        else:
            assert ids(place) == [0]
            assert reasons == [*((number, "duplicate_id") for number in range(1, 5)), (5, "duplicate_key")]


def test_a_new_partition_is_read_from_its_start(place, broker, ids, monkeypatch):
    broker.send("clicks", values([0]))
    ask = KafkaClient.ask

    def hide(client):
        topics, found = ask(client)
        del found["clicks", 1]
        return topics, found

    with monkeypatch.context() as patch:
        patch.setattr(KafkaClient, "ask", hide)
        place.once(kafka={"start": "earliest"})
    assert ends(place) == {"clicks/0": 1}
    broker.send("clicks", values([1, 2]), partition=1)
    place.once(kafka={"start": "latest"})
    assert ids(place) == [0, 1, 2]


def test_latest_begins_with_what_comes_after_the_start(place, broker, ids):
    broker.send("clicks", values([0]))
    with pytest.raises(UserError, match="--start latest: there is no dataset yet"):
        place.once(kafka={"start": "latest"})
    latest = {"start": "latest"}
    place.follow(lambda: broker.send("clicks", values([1]), partition=1), lambda: None, kafka=latest)
    assert (ids(place), ends(place)) == ([1], {"clicks/0": 1, "clicks/1": 1})
    # Where another topic ended is in a commit before anything comes of it.
    broker.make_topic("views", 1)
    broker.send("views", values([2]))
    place.topics = ("clicks", "views")
    assert place.once(kafka=latest).commit == 2
    assert ends(place) == {"clicks/0": 1, "clicks/1": 1, "views/0": 1}
    broker.send("views", values([3]))
    place.once()
    assert ids(place) == [1, 3]
    read_whole(place.dataset)


def test_messages_that_expired_before_they_were_read_stop_the_stream(place, broker, ids, capsys):
    broker.send("clicks", values(range(10)))
    place.once()
    broker.send("clicks", values(range(10, 20)))
    broker.delete_records("clicks", 0, 10)
    place.once()  # what was deleted had been read
    broker.send("clicks", values(range(20, 30)))
    broker.delete_records("clicks", 0, 25)
    with pytest.raises(
        UserError,
        match=r"^kafka://clicks/0: was read up to offset 20, but the oldest offset that is there is 25: 5 offsets "
        r"expired before they were read\. Raise retention\.ms .* go on at offset 25 with --on_rewrite reread\.",
    ):
        place.once()
    place.once(on_rewrite="reread")
    assert "warning: kafka://clicks/0: was read up to offset 20" in capsys.readouterr().err
    assert ids(place) == [*range(20), *range(25, 30)]
    broker.send("clicks", values([30]))
    place.once()
    assert (ends(place)["clicks/0"], read_whole(place.dataset).rejected.total) == (31, 0)


def test_messages_that_expire_while_they_are_read_are_noticed(place, broker, monkeypatch):
    broker.send("clicks", values(range(10)))
    assign = KafkaClient.assign
    monkeypatch.setattr(KafkaClient, "assign", lambda *a: (broker.delete_records("clicks", 0, 5), assign(*a)))
    with pytest.raises(UserError, match="was read up to offset 0, but the oldest offset that is there is 5"):
        place.once()


def test_a_topic_that_was_made_anew_is_another_one(place, broker, ids):
    broker.send("clicks", values(range(3)))
    place.once()
    broker.delete_topic("clicks")
    with pytest.raises(UserError, match=r"--topic clicks: there is no such topic at 127"):
        place.once()
    broker.make_topic("clicks", 2)
    broker.send("clicks", values(range(2, 20)))
    with pytest.raises(UserError, match="kafka://clicks/0: was read up to offset 3, but this topic is another one"):
        place.once()
    place.once(on_rewrite="reread")
    place.follow(lambda: broker.send("clicks", values([20])), on_rewrite="reread")
    assert ids(place) == [*range(21)]
    assert read_whole(place.dataset).rejected.by_reason == {"duplicate_id": 1}


def test_a_topic_that_is_made_anew_while_it_is_read_is_noticed(place, broker, ids, monkeypatch):
    broker.send("clicks", values(range(3)))
    place.once()
    broker.send("clicks", values(range(3, 6)))
    identify, others = KafkaClient.identify, []

    def make_anew(client):
        while others:
            others.pop()()
        return identify(client)

    def anew():
        broker.delete_topic("clicks")
        broker.make_topic("clicks", 2)
        broker.send("clicks", values(range(10, 20)))

    monkeypatch.setattr(KafkaClient, "identify", make_anew)
    others.append(anew)
    with pytest.raises(UserError, match="was read up to offset 3, but this topic is another one"):
        place.once()
    assert ids(place) == [0, 1, 2]


def test_a_topic_that_was_made_anew_with_fewer_partitions_is_read_on(place, broker, ids):
    broker.send("clicks", values([0]), partition=1)

    def anew():
        broker.send("clicks", values([1]), partition=1)
        broker.delete_topic("clicks")
        broker.make_topic("clicks", 1)
        broker.send("clicks", values([2]))

    place.follow(anew, lambda: broker.send("clicks", values([3])), on_rewrite="reread")
    assert (ids(place), ends(place)) == ([0, 2, 3], {"clicks/0": 2, "clicks/1": 1})


def test_lost_messages_at_the_end_of_a_partition_stop_the_stream(place, broker, ids, monkeypatch):
    broker.send("clicks", values(range(3)))
    place.once()
    ask = KafkaClient.ask

    def shorten(client):
        topics, found = ask(client)
        return topics, found | {("clicks", 0): found["clicks", 0]._replace(high=2)}

    with monkeypatch.context() as patch:
        patch.setattr(KafkaClient, "ask", shorten)
        with pytest.raises(UserError, match="was read up to offset 3, but now it ends at offset 2: the brokers lost"):
            place.once()
        # A broker that has just started may not know the end yet.
        place.follow(lambda: None)
    broker.send("clicks", values([3]))
    place.once()
    assert ids(place) == [0, 1, 2, 3]


def test_a_spool_that_is_removed_meanwhile_is_written_again(place, broker, ids, monkeypatch, capsys):
    broker.send("clicks", values(range(3)))
    others = [lambda: [path.unlink() for path in place.dataset.glob("data/*/*.messages")]]

    def publish(*arguments, **options):
        if others:
            others.pop()()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)
    place.once()
    assert "was removed while it was read. Nothing was published. The round begins again." in capsys.readouterr().err
    assert ids(place) == [0, 1, 2]


def test_a_failed_round_is_read_again_from_the_last_commit(place, broker, ids, monkeypatch):
    broker.send("clicks", values(range(3)))
    failures = [TryAgain("not now.")] * 3

    def publish(*arguments, **options):
        if failures:
            raise failures.pop()
        return prepare_parts(*arguments, **options)

    monkeypatch.setattr(rounds, "prepare_parts", publish)

    def fail_again():
        failures.append(TryAgain("not now."))
        broker.send("clicks", values([3]))

    assert place.follow(fail_again, lambda: None).commit == 2
    assert ids(place) == [0, 1, 2, 3]
    assert read_whole(place.dataset).rejected.total == 0


def test_messages_that_come_during_a_failed_round_are_read_once(place, broker, ids, monkeypatch):
    broker.send("clicks", values(range(3)))
    failures, came = [TryAgain("not now.")], []

    def publish(*arguments, **options):
        if failures:
            raise failures.pop()
        return prepare_parts(*arguments, **options)

    assign, read = KafkaClient.assign, KafkaClient.read

    def assign_and_send(client, offsets):
        assign(client, offsets)
        if failures:  # after the round has asked up to where to read
            broker.send("clicks", values(range(3, 6)), partition=1)

    def read_both(client, seconds):
        found = []
        while True:  # they may come before those of the other partition, and then in another call
            more = read(client, seconds)
            came.extend(message for message in more if message.partition() == 1 and not message.error())
            found += more
            if came or not failures:
                return found

    monkeypatch.setattr(rounds, "prepare_parts", publish)
    monkeypatch.setattr(KafkaClient, "assign", assign_and_send)
    monkeypatch.setattr(KafkaClient, "read", read_both)
    place.follow(lambda: None)
    assert ids(place) == [*range(6)]
    assert read_whole(place.dataset).rejected.total == 0


def test_an_empty_round_only_asks_for_offsets(place, broker, monkeypatch):
    broker.send("clicks", values(range(3)))
    done = []

    def forbid():
        for owner, name in ((KafkaClient, "read"), (KafkaClient, "assign"), (rounds, "prepare_parts")):
            monkeypatch.setattr(owner, name, None)
        done.append(time.process_time())

    place.follow(forbid, lambda: done.append(time.process_time()), monkeypatch.undo)
    print(f"\nan empty round over 2 partitions: {1e3 * (done[1] - done[0]):.1f} ms of processor time")
    assert load(place.dataset).commit == 1


def test_a_group_that_cannot_be_told_is_a_warning(place, broker, ids, capsys):
    broker.fail_requests(8, [30] * 4)  # OffsetCommit, not authorized
    broker.send("clicks", values([0]))
    place.follow(lambda: broker.send("clicks", values([1])), kafka={"group": "readers"})
    assert ids(place) == [0, 1]
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "prepare: warning: the group readers could not be told what was read: " in warnings[0]


def test_a_topic_that_must_not_be_read_is_an_error(place, broker):
    broker.fail_topic("clicks", 29)  # not authorized
    with pytest.raises(UserError, match=r"refuses to read clicks: .*uthoriz.* needs the rights Describe and Read"):
        place.once()


def test_rejects_of_a_topic_are_replayed_with_the_id_of_the_key(place, broker, ids, run_prepare):
    both = [record(0, y="c"), record(1)]
    for each in both:
        del each["id"]
    broker.send("clicks", map(json.dumps, both), keys=[b"id-0", b"id-1"])
    place.once(kafka={"record_id": "key"}, keep_raw=True)
    assert ids(place) == [1]
    schema = streams.SCHEMA.replace("[a, b]", "[a, b, c]")
    run_prepare(schema=schema, append=True, replay=(f"{place.dataset}/rejected",))
    assert ids(place) == [0, 1]
    read_whole(place.dataset)


def test_metrics_have_the_lags_in_offsets(place, broker):
    path = place.folder / "stream.prom"
    broker.send("clicks", [*values(range(5)), None, None])
    found = []
    place.follow(lambda: found.append(path.read_text()), metrics_file=str(path), max_records=3)
    broker.send("clicks", values(range(5, 9)), partition=1)
    place.once(metrics_file=str(path), max_records=1)
    found.append(path.read_text())
    metrics = [dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")) for text in found]
    prefix = "lengthwise_stream_"
    assert [metrics[0][prefix + name] for name in ("nulls_total", "lag_offsets_total")] == ["2", "0"]
    assert metrics[1][prefix + "nulls_total"] == "0"
    assert metrics[1][prefix + 'lag_offsets{source="kafka://clicks/1"}'] == "3"


@pytest.fixture
def prepare(place, capsys):
    def run(*flags):
        schema = place.folder / "schema.yaml"
        return call(capsys, "prepare", "--schema", schema, "--output", place.dataset, *flags)

    return run


def test_the_command_follows_topics(place, broker, prepare):
    broker.send("clicks", values(range(9)))
    flags = ("--streaming", "--kafka", broker.servers, "--topic", "clicks", "--once")
    status, out, errors = prepare(*flags)
    assert (status, out.splitlines()[0]) == (0, f"{place.dataset}: 9 records")
    assert "commit 1: 9 records, 0 rejected" in errors[0]
    assert prepare(*flags)[0] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kafka", "x", "--topic", "t"], "argument --kafka: only with --streaming"),
        (["--streaming", "--topic", "t"], "argument --topic: only with --kafka"),
        (["--streaming", "--kafka", "x"], "argument --kafka: expected --topic, too"),
        (["--streaming", "--kafka", "x", "--topic", "t", "logs"], "argument --kafka: not allowed with RAW (logs)"),
        (["--streaming", "--kafka", "x", "--topic", "t", "--settle", "1s"], "argument --settle: not allowed with"),
        (["--streaming"], "expected RAW, the folders to follow, or --kafka"),
    ],
)
def test_wrong_flags_are_refused(prepare, flags, message):
    status, _, errors = prepare(*flags)
    assert status == 2
    assert message in errors[0]
