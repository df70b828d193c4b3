"""The properties of a connection to Kafka: which are allowed, and that no value is shown; and ids of messages."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.streaming import kafka_client
from pipeline.streaming.kafka_client import KafkaClient
from pipeline.streaming.kafka_config import hide_values, read_properties
from pipeline.streaming.message_id import choose_reader, insert_id
from pipeline.streaming.stop import StopSignals


@pytest.fixture
def write(tmp_path):
    def write(text, mode=0o600):
        path = tmp_path / "client.properties"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)
        return str(path)

    return write


def test_properties_are_read_as_java_writes_them(write, capsys):
    path = write("# a comment\n! another\n\n security.protocol = SASL_SSL \nsasl.password=a=b c\nssl.ca.location=\n")
    expected = {"security.protocol": "SASL_SSL", "sasl.password": "a=b c", "ssl.ca.location": ""}
    assert read_properties(path) == expected
    assert capsys.readouterr().err == ""


def test_a_file_with_a_secret_that_others_may_read_gets_a_warning(write, capsys):
    read_properties(write("client.rack=a\n", 0o644))
    assert capsys.readouterr().err == ""
    path = write("sasl.password=secret\n", 0o640)
    read_properties(path)
    assert (
        capsys.readouterr().err
        == f"prepare: warning: {path}: other users may read this file. `chmod 600 {path}` ends that.\n"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sasl.password secret\n", "line 1 is not `key=value`"),
        ("a b=secret\n", "line 1 is not `key=value`"),
        ("client.rack=a\nclient.rack=secret\n", "line 2: client.rack is there twice"),
        ("isolation.level=secret\n", "isolation.level cannot be set: the stream reads committed messages only"),
        ("group.id=secret\n", "group.id cannot be set: --group is the flag for it"),
        ("auto.offset.reset=secret\n", "auto.offset.reset cannot be set: --start is the flag for it"),
        ("enable.auto.commit=secret\n", "enable.auto.commit cannot be set"),
        ("sasl.jaas.config=secret\n", "is of the Java clients. Use sasl.username and sasl.password"),
        (b"sasl.password=\xff\n", "it is not UTF-8"),
    ],
)
def test_other_files_are_refused_without_their_values(write, text, message):
    with pytest.raises(UserError, match=r"^--kafka_config .*client\.properties") as raised:
        read_properties(write(text))
    assert message in str(raised.value)
    assert "secret" not in str(raised.value)


def make_client(properties):
    more = {"origin": "client.properties", "group": "g", "broker_timeout": 1.0, "stop": StopSignals()}
    return KafkaClient("127.0.0.1:1", ["t"], properties, **more)


@pytest.mark.parametrize("properties", [{"no.such.key": "secret"}, {"security.protocol": "secret"}])
def test_a_property_that_the_client_refuses_is_named_without_its_value(properties):
    with pytest.raises(UserError) as raised:
        make_client(properties).ask()
    (key,) = properties
    assert str(raised.value).startswith(f"--kafka_config client.properties: {key}: not a property of librdkafka, or a")
    assert "secret" not in str(raised.value)
    assert raised.value.__context__ is None  # whose message may have the value


def test_a_missing_package_is_an_error_with_the_way_out(monkeypatch):
    monkeypatch.setattr(kafka_client, "_missing", ImportError("No module named 'confluent_kafka'"))
    with pytest.raises(UserError, match=r"needs the package confluent-kafka .*pip install 'lengthwise\[kafka\]'"):
        make_client({})


def test_values_of_secret_properties_are_hidden_in_messages():
    properties = {"sasl.password": "hunter2", "sasl.username": "me", "sasl.mechanism": "PLAIN", "x.password": ""}
    assert hide_values("PLAIN login of me with\n hunter2", properties) == "PLAIN login of *** with ***"


@pytest.mark.parametrize(
    ("value", "record_id", "expected"),
    [
        (b'{"x": 1}', b"a", {"id": "a", "x": 1}),
        (b' \n{ "x": {"y": 1}}\n', 'ä"\\\n\0'.encode(), {"id": 'ä"\\\n\0', "x": {"y": 1}}),
        (b"{}", b"7", {"id": "7"}),
        (b"{ \n}", b"", {"id": ""}),
        (b'{"x": 1}', None, {"id": None, "x": 1}),
    ],
)
def test_an_id_becomes_the_first_field(value, record_id, expected):
    found = insert_id(value, b'"id"', record_id)
    assert json.loads(found) == expected
    assert next(iter(json.loads(found))) == "id"


@pytest.mark.parametrize("value", [b"", b"[1]", b"7", b'"{}"', b"null", b"not {json}"])
def test_a_value_that_is_no_object_stays_as_it_is(value):
    assert insert_id(value, b'"id"', b"a") == value


def test_an_id_that_is_not_utf8_is_not_json():
    with pytest.raises(UnicodeDecodeError):
        insert_id(b"{}", b'"id"', b'\xff"').decode()


@pytest.mark.parametrize(
    ("kafka_id", "id_field", "message"),
    [
        ("value", "id", "--kafka_id value: expected key, or header:NAME"),
        ("header:", "id", "--kafka_id header:: expected key, or header:NAME"),
        ("key", None, "--kafka_id key: the schema has no id"),
    ],
)
def test_another_place_for_an_id_is_refused(kafka_id, id_field, message):
    with pytest.raises(UserError, match=message):
        choose_reader(kafka_id, id_field)


def test_without_the_flag_the_value_has_the_id():
    assert choose_reader(None, None) is None
