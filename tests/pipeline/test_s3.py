"""Objects on S3 are read, listed, created once and removed as local files are; every error is one line."""

import errno
import io
import random
import re
import sys

import pytest
import s3 as support
from apache_beam.io.filesystem import FileSystem
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

import lengthwise
from pipeline import files, s3, s3_client
from pipeline.beam.options import parse_with_beam
from pipeline.beam_files import set_store_options
from pipeline.create_once import create_once, supports_create_once
from pipeline.errors import UserError
from pipeline.flags import FlagParser

FOLDER = f"s3://{support.BUCKET}/folder"


@pytest.fixture(scope="module")
def store():
    with support.with_environment() as made:
        yield made


@pytest.fixture
def client(store):
    yield store
    s3.remove(files.list_files(f"s3://{support.BUCKET}"))
    s3._supports_create_once.cache_clear()


def put(client, **contents):
    for name, data in contents.items():
        client.put_object(Bucket=support.BUCKET, Key=f"folder/{name}", Body=data)


def test_an_object_is_created_once_with_its_content(client):
    create_once(f"{FOLDER}/commit", b"first")
    with pytest.raises(FileExistsError, match="exists already: 's3://bucket/folder/commit'"):
        create_once(f"{FOLDER}/commit", b"second")
    assert files.read_bytes(f"{FOLDER}/commit") == b"first"
    assert supports_create_once(f"{FOLDER}/commit")
    assert files.list_files(FOLDER) == [f"{FOLDER}/commit"]


def test_a_request_whose_answer_was_lost_counts_as_created(client, monkeypatch):
    request, sent = s3.request, []

    def send_twice(path, operation, **arguments):
        if operation == "put_object":
            sent.append(path)
            request(path, operation, **arguments)
        return request(path, operation, **arguments)

    monkeypatch.setattr(s3, "request", send_twice)
    create_once(f"{FOLDER}/commit", b"first")
    monkeypatch.undo()
    assert (sent, files.read_bytes(f"{FOLDER}/commit")) == ([f"{FOLDER}/commit"], b"first")


def test_a_conflict_with_another_request_is_tried_again(client, monkeypatch):
    request, left = s3.request, [2]

    def conflict(path, operation, **arguments):
        if operation == "put_object" and left[0]:
            left[0] -= 1
            raise s3_client.explain(path, "ConditionalRequestConflict", "", "PutObject")
        return request(path, operation, **arguments)

    monkeypatch.setattr(s3, "request", conflict)
    create_once(f"{FOLDER}/commit", b"first")
    left[0] = 100
    with pytest.raises(OSError, match="is changed by another request"):
        create_once(f"{FOLDER}/other", b"first")


def test_a_store_that_ignores_the_condition_is_found_out(client, monkeypatch):
    request = s3.request

    def ignore(path, operation, **arguments):
        arguments.pop("IfNoneMatch", None)
        return request(path, operation, **arguments)

    monkeypatch.setattr(s3, "request", ignore)
    assert not supports_create_once(f"{FOLDER}/commit")
    assert files.list_files(FOLDER) == []


def test_an_object_is_read_as_a_local_file_is(client):
    data = random.Random(0).randbytes(3_000_000)
    put(client, object=data, empty=b"")
    choose, local = random.Random(1), io.BytesIO(data)
    with files.open_read(f"{FOLDER}/object") as file:
        assert file.read() == data
        for _ in range(50):
            whence = choose.choice([0, 0, 1, 2])
            offset = choose.randrange(3_100_000) if whence == 0 else choose.randrange(-1000, 1000)
            if whence == 1:
                offset = max(offset, -file.tell())
            assert file.seek(offset, whence) == local.seek(offset, whence)
            size = choose.choice([0, 1, 10, 5_000, 300_000, 600_000])
            assert file.read(size) == local.read(size)
    with files.open_read(f"{FOLDER}/empty") as file:
        assert (file.read(), file.read(5), file.seek(0, 2)) == (b"", b"", 0)
    assert s3.read_range(f"{FOLDER}/object", 2_999_999, 3_000_009) == data[-1:]
    assert s3.read_range(f"{FOLDER}/object", 3_000_000, 3_000_009) == s3.read_range(f"{FOLDER}/object", 5, 5) == b""


def test_a_file_that_is_read_from_front_to_back_takes_few_requests(client, monkeypatch):
    put(client, object=bytes(20_000_000))
    ranges, get = [], s3._get
    monkeypatch.setattr(s3, "_get", lambda *range: (ranges.append(range), get(*range))[1])
    with files.open_read(f"{FOLDER}/object") as file:
        while file.read(100_000):
            pass
    assert len(ranges) < 10
    assert sum(end - begin for _, begin, end in ranges) == 20_000_000
    assert max(end - begin for _, begin, end in ranges) <= 2**23
    with files.open_read(f"{FOLDER}/object") as file:
        assert (file.seek(15_000_000), len(file.read(10)), file.seek(-1, 1), len(file.read())) == (
            15_000_000,
            10,
            15_000_009,
            4_999_991,
        )
    ranges.clear()
    put(client, small=b"small")
    assert files.read_bytes(f"{FOLDER}/small", max_bytes=10) == b"small"
    assert ranges == [(f"{FOLDER}/small", 0, 2**18)]


def test_an_answer_that_breaks_off_is_read_again(client, monkeypatch):
    put(client, object=b"content")
    call, left = s3.call, [2]

    def fail(path, function):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "broken", path)
        return call(path, function)

    monkeypatch.setattr(s3, "call", fail)
    assert s3.read_range(f"{FOLDER}/object", 0, 7) == b"content"
    left[0] = 100
    with pytest.raises(OSError, match="broken"):
        s3.read_range(f"{FOLDER}/object", 0, 7)


def test_objects_are_written_moved_and_removed(client, monkeypatch):
    monkeypatch.setattr(s3, "_PART_BYTES", 5 * 2**20)
    for size in (0, 5, 5 * 2**20 + 1):  # the last one in two parts
        with files.replace(f"{FOLDER}/a/{size}") as file:
            file.write(bytes(size))
        assert files.size(f"{FOLDER}/a/{size}") == size
    with pytest.raises(ZeroDivisionError), files.replace(f"{FOLDER}/a/5") as file:
        file.write(b"new" + bytes(1 // 0))
    assert files.size(f"{FOLDER}/a/5") == 5
    files.move(f"{FOLDER}/a/5", f"{FOLDER}/b")
    assert not files.exists(f"{FOLDER}/a/5")
    found = files.list_details(FOLDER)
    assert [(file.path, file.num_bytes) for file in found] == [
        (f"{FOLDER}/a/0", 0),
        (f"{FOLDER}/a/5242881", 5242881),
        (f"{FOLDER}/b", 5),
    ]
    assert all(file.modified > 1.7e9 for file in found)
    files.remove([f"{FOLDER}/b", f"{FOLDER}/none"])
    files.remove_folder(f"{FOLDER}/a")
    assert files.list_files(FOLDER) == []


def test_a_listing_of_several_pages_is_complete_and_without_the_markers_of_folders(client, monkeypatch):
    request, listed = s3.request, []

    def list_few(path, operation, **arguments):
        if operation == "list_objects_v2":
            listed.append(path)
            arguments["MaxKeys"] = 3
        return request(path, operation, **arguments)

    monkeypatch.setattr(s3, "request", list_few)
    monkeypatch.setattr(s3, "_MAX_DELETED", 4)
    put(client, **{f"{number:04}": b"x" for number in range(10)}, **{"marker/": b""})
    assert files.list_files(FOLDER) == [f"{FOLDER}/{number:04}" for number in range(10)]
    assert len(listed) == 4
    files.remove(files.list_files(FOLDER))
    assert files.list_files(FOLDER) == []


NAMES = ["a.json", "b.jsonl", "c/a.json", "c/d/a.json", "[x].json", "a^b", "a-b", "a+b"]


GLOBS = ["*.json", "**.json", "**", "*", "?.json", "c/*", "c/**", "[ab].json*", "[!a]*", "a[-+]b", "a[^]b", "c"]


def test_a_glob_matches_what_it_matches_in_beam(client):
    put(client, **dict.fromkeys(NAMES, b""))
    for pattern in (f"{FOLDER}/{glob}" for glob in [*GLOBS, "a.json"]):
        expected = re.compile(FileSystem.translate_pattern(pattern)).fullmatch
        paths = [f"{FOLDER}/{name}" for name in NAMES]
        assert [file.path for file in files.list_matches(pattern)] == sorted(filter(expected, paths)), pattern


def test_a_key_with_the_characters_of_a_glob_is_found_by_its_name(client):
    put(client, **dict.fromkeys(NAMES, b""))
    assert [file.path for file in files.list_matches(f"{FOLDER}/[x].json")] == [f"{FOLDER}/[x].json"]
    assert files.list_matches(f"s3://{support.BUCKET}") == []


def fail_with(monkeypatch, error):
    """Lets each request fail."""

    def fail(self, *arguments):
        raise error

    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", fail)


def denied(code):
    return ClientError({"Error": {"Code": code, "Message": "No."}}, "HeadObject")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (denied("403"), "access denied (HeadObject: 403). Check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and"),
        (denied("SignatureDoesNotMatch"), "access denied (HeadObject: SignatureDoesNotMatch)."),
        (denied("PermanentRedirect"), "the bucket 'bucket' is in another region. Set AWS_DEFAULT_REGION to it."),
        (denied("SlowDown"), "S3 answered SlowDown to HeadObject: No."),
        (NoCredentialsError(), "no credentials for S3 (Unable to locate credentials). Set AWS_PROFILE, or"),
        (EndpointConnectionError(endpoint_url="http://x"), "cannot be reached: Could not connect to the endpoint URL"),
    ],
    ids=["denied", "signature", "region", "slow", "credentials", "endpoint"],
)
def test_an_error_of_the_store_is_one_line(client, monkeypatch, capsys, error, message):
    with monkeypatch.context() as patch:
        fail_with(patch, error)
        for command in ("inspect", "verify", "clean"):
            assert lengthwise.main([command, f"{FOLDER}/dataset"]) == 1
            out, err = capsys.readouterr()
            assert out == "" and err.count("\n") == 1
            assert err.startswith(f"lengthwise {command}: {FOLDER}/dataset/") and message in err


def test_a_missing_bucket_object_or_package_is_named(client, monkeypatch):
    with pytest.raises(UserError, match="s3://none/a: there is no bucket 'none'. Create it first"):
        files.exists("s3://none/a")
    with pytest.raises(UserError, match="s3://none/a/: there is no bucket 'none'"):
        files.list_files("s3://none/a")
    with pytest.raises(UserError, match="there is no bucket 'none'"), files.replace("s3://none/a"):
        pass
    with pytest.raises(FileNotFoundError, match="no such object"), files.open_read(f"{FOLDER}/none"):
        pass
    with pytest.raises(UserError, match=f"{FOLDER}/none: cannot be read: no such object"):
        files.read_bytes(f"{FOLDER}/none")
    for path in ("s3://", "s3:///a"):
        with pytest.raises(UserError, match=f"{path}: has no bucket, expected s3://BUCKET/PATH"):
            files.exists(path)
    with pytest.raises(UserError, match="the name of a bucket cannot be a glob"):
        files.list_matches("s3://buck*/a")
    with pytest.raises(UserError, match="s3://: has no bucket or host, expected s3://BUCKET/PATH"):
        files.absolute("s3://")
    monkeypatch.setattr(s3_client, "_clients", {})
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(UserError, match=r"needs boto3, which is not installed: pip install 'lengthwise\[aws\]'"):
        files.exists(f"{FOLDER}/none")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_PROFILE", "nobody", "The config profile (nobody) could not be found. Check the AWS_ variables"),
        ("AWS_ENDPOINT_URL", "nonsense", "Invalid endpoint: nonsense. Check the AWS_ variables and the s3_ flags"),
    ],
)
def test_a_wrong_setting_is_named(client, monkeypatch, name, value, message):
    monkeypatch.setattr(s3_client, "_clients", {})
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(message)):
        files.exists(f"{FOLDER}/none")


def test_the_client_has_the_options_of_beam_here_and_in_worker_processes(client, monkeypatch):
    from apache_beam.io.filesystems import FileSystems

    monkeypatch.setattr(FileSystems, "_pipeline_options", None)
    assert s3_client.client_arguments() == {}
    set_store_options({"runner": "DirectRunner", "s3_endpoint_url": "http://x:1", "s3_disable_ssl": True})
    expected = {"endpoint_url": "http://x:1", "use_ssl": False}
    assert s3_client.client_arguments() == expected
    monkeypatch.setattr(FileSystems, "_pipeline_options", None)  # as in a worker process, which has no Beam
    assert s3_client.client_arguments() == expected
    set_store_options({"direct_num_workers": 2})
    assert s3_client.client_arguments() == {}


def test_a_secret_in_a_flag_gives_a_warning(capsys):
    parser = FlagParser("prepare", "", examples="")
    parse_with_beam(parser, ["--s3_secret_access_key=abc", "--s3_endpoint_url=http://x"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("prepare: warning: --s3_secret_access_key can be seen in the list of processes and in the")
    assert "abc" not in line
    parse_with_beam(FlagParser("prepare", "", examples=""), ["--s3_endpoint_url=http://x"])
    assert capsys.readouterr().err == ""
