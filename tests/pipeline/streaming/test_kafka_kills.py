"""A stream over a topic that is killed, or told to end, or whose broker is away, loses and repeats no message."""

import contextlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time

import pytest
from file_faults import Kill, KillAt, watch_file_system
from kafka import MockBroker, TopicPlace, kill_again_and_again
from prepare_jobs import age_marks, load, read_whole
from streams import values

from pipeline.errors import NothingNew
from pipeline.streaming import kafka_client, rounds
from pipeline.streaming.kafka_client import KafkaClient
from pipeline.streaming.kafka_errors import BrokerAway
from pipeline.writing.clean import clean


@pytest.fixture
def broker():
    with MockBroker() as broker:
        yield broker


@pytest.fixture
def place(tmp_path, broker):
    broker.make_topic("clicks", 2)
    return TopicPlace(tmp_path, broker.servers, "clicks")


@pytest.fixture
def begun(place, broker):
    broker.send("clicks", values(range(10)))
    place.once()
    os.rename(place.dataset, place.folder / "before")
    broker.send("clicks", [*values(range(10, 20)), "{}"])
    broker.send("clicks", values(range(20, 30)), partition=1)
    return place


def run_with(place, fault):
    """Runs a round on a copy of the dataset, with a fault."""
    shutil.rmtree(place.dataset, ignore_errors=True)
    shutil.copytree(place.folder / "before", place.dataset)
    with watch_file_system(fault.before_call), contextlib.suppress(Exception):
        place.once()


def check(place, ids):
    """Lets another stream go on, and checks that it has every message once."""
    age_marks(place.dataset)
    place.follow(lambda: None, retain=0.0)
    assert ids(place) == [*range(30)]
    assert read_whole(place.dataset).rejected.by_reason == {"bad_id": 1}
    clean(str(place.dataset), retain=0, lock_timeout=0)
    read_whole(place.dataset)
    assert not list(place.dataset.glob("data/*/*.messages"))


@pytest.mark.parametrize(
    ("name", "part"), [("open xb", ".messages"), ("open rb", ".messages"), ("link", "00000002.json")]
)
def test_three_kills_of_a_round_lose_and_repeat_nothing(begun, ids, name, part):
    kill = KillAt(name, part)
    run_with(begun, kill)
    assert kill.failed[0] == name
    assert load(begun.dataset).commit == 1
    check(begun, ids)


@pytest.mark.proof
def test_a_kill_at_every_call_of_a_round_loses_and_repeats_nothing(begun, ids):
    for number in itertools.count(1):
        kill = Kill(first=number)
        run_with(begun, kill)
        if not kill.failed:  # the round has fewer calls
            break
        check(begun, ids)
    print(f"\n{number - 1} calls")
    assert number > 20


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["pipeline.streaming.rounds", "pipeline.streaming.kafka"])


def _follow(options, begun):
    describe = KafkaClient._describe

    def describe_and_tell(client):
        begun.touch()
        return describe(client)

    KafkaClient._describe = describe_and_tell
    rounds.stream(options)


@pytest.mark.parametrize("is_there", [True, False], ids=["reads", "waits"])
def test_sigterm_ends_a_stream_with_status_0(place, broker, ids, is_there):
    if is_there:
        broker.send("clicks", values(range(10)))
    else:
        broker.set_down()
    metrics, begun = place.folder / "metrics", place.folder / "begun"
    options = place.options(streaming={"commit_interval": 0.1, "metrics_file": str(metrics)})
    process = _CONTEXT.Process(target=_follow, args=(options, begun))
    process.start()
    while not (metrics if is_there else begun).exists():
        time.sleep(0.05)
        assert process.exitcode is None
    begin = time.monotonic()
    process.terminate()
    process.join(60)
    assert process.exitcode == 0
    print(f"\nended after {time.monotonic() - begin:.2f} s")
    if is_there:
        assert ids(place) == [*range(10)]


def test_a_broker_that_is_away_is_waited_for(place, broker, ids, capsys, monkeypatch):
    monkeypatch.setattr(kafka_client, "_REQUEST_SECONDS", 0.5)
    broker.send("clicks", values(range(5)))
    waits = []
    pause = KafkaClient._pause

    def wait(client, seconds):
        waits.append(seconds)
        if len(waits) == 1:
            broker.set_up()
            broker.send("clicks", values(range(5, 8)))
        pause(client, seconds)

    monkeypatch.setattr(KafkaClient, "_pause", wait)
    place.follow(broker.set_down, lambda: None)
    assert ids(place) == [*range(8)]
    lines = [line for line in capsys.readouterr().err.splitlines() if "broker" in line]
    assert lines[0].startswith(f"prepare: no broker answers at {broker.servers}: ")
    assert lines[0].endswith("Waiting, at most 10 minutes.")
    assert lines[1] == "prepare: a broker answers again."


def test_a_broker_that_goes_away_while_messages_are_read_is_waited_for(place, broker, ids, monkeypatch):
    monkeypatch.setattr(kafka_client, "_REQUEST_SECONDS", 0.5)
    monkeypatch.setattr("pipeline.streaming.take_messages._QUIET_SECONDS", 0.5)
    broker.send("clicks", values(range(5)))
    assign = KafkaClient.assign

    def assign_late(*arguments):
        broker.set_down()
        threading.Timer(1.5, broker.set_up).start()
        assign(*arguments)

    monkeypatch.setattr(KafkaClient, "assign", assign_late)
    place.once()
    assert ids(place) == [*range(5)]


@pytest.mark.parametrize("once", [False, True])
def test_a_signal_while_a_round_waits_for_a_broker_ends_it_without_a_commit(place, broker, ids, monkeypatch, once):
    monkeypatch.setattr(kafka_client, "_REQUEST_SECONDS", 0.3)
    monkeypatch.setattr("pipeline.streaming.take_messages._QUIET_SECONDS", 0.2)
    monkeypatch.setattr("pipeline.streaming.stop._PATIENCE", 600.0)  # the signal comes in the process of the tests
    broker.send("clicks", values(range(5)))
    assign, pause = KafkaClient.assign, KafkaClient._pause

    def assign_and_lose(*arguments):
        broker.set_down()
        assign(*arguments)

    def stop(client, seconds):
        os.kill(os.getpid(), signal.SIGTERM)
        pause(client, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(KafkaClient, "assign", assign_and_lose)
        patch.setattr(KafkaClient, "_pause", stop)
        assert rounds.stream(place.options(streaming={"once": once})) is None
    assert not list(place.dataset.glob("data/*"))
    broker.set_up()
    place.once()
    assert ids(place) == [*range(5)]


def test_a_broker_that_stays_away_ends_the_stream_with_status_75(place, broker, monkeypatch):
    monkeypatch.setattr(kafka_client, "_REQUEST_SECONDS", 0.1)
    broker.set_down()
    with pytest.raises(BrokerAway, match=r"no broker answered for \d+ seconds?: .*--broker_timeout") as raised:
        place.once(kafka={"broker_timeout": 0.3})
    assert raised.value.status == 75


@pytest.mark.proof
def test_thirty_kills_of_a_process_lose_and_repeat_nothing(place, broker, ids):
    """Messages arrive in two partitions while the process is killed and started again."""
    chance, is_over, sent = random.Random(0), threading.Event(), [0]

    def send_all():
        while not is_over.wait(0.1):
            broker.send("clicks", values(range(sent[0], sent[0] + 40)), partition=chance.randrange(2))
            sent[0] += 40

    sender = threading.Thread(target=send_all)
    sender.start()
    commits = kill_again_and_again(place, 30, random.Random(1))
    is_over.set()
    sender.join()
    with contextlib.suppress(NothingNew):
        place.follow(lambda: None)
    assert ids(place) == [*range(sent[0])]
    assert read_whole(place.dataset).rejected.total == 0
    print(f"\n{sent[0]:,} records; after a kill, the newest commit was {sorted(commits)}")
    assert len(commits) >= 10
