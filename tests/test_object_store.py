"""All commands on s3://, as a user runs them: the results are those of local files, also after kills and in races."""

import collections
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import s3 as support
from paths import ROOT

pytestmark = pytest.mark.proof

BUCKET = f"s3://{support.BUCKET}"


@pytest.fixture(scope="module")
def server():
    with support.start_server() as started:
        yield started


@pytest.fixture
def folder(server, tmp_path):
    """A folder with raw files of 300 records each, which are in the bucket too."""
    lengthwise(server, tmp_path, "sample", "temporal_order", "--output", "raw.jsonl", "--num_records", "1200")
    lines = (tmp_path / "raw.jsonl").read_bytes().splitlines(keepends=True)
    client = server.client()
    for key in server.keys():
        client.delete_object(Bucket=support.BUCKET, Key=key)
    for number in range(4):
        data = b"".join(lines[300 * number : 300 * number + 300])
        (tmp_path / f"{number}.jsonl").write_bytes(data)
        client.put_object(Bucket=support.BUCKET, Key=f"raw/{number}.jsonl", Body=data)
    server.take_requests()
    return tmp_path


def command(server, folder, *arguments, **changed):
    environment = {**server.environment, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment = {name: value for name, value in (environment | changed).items() if value is not None}
    return {"args": [sys.executable, "-W", "ignore", "-m", "lengthwise", *arguments], "cwd": folder, "env": environment}


def call(server, folder, *arguments, **changed):
    """Returns the exit status, stdout and the lines of stderr of a command."""
    done = subprocess.run(**command(server, folder, *arguments, **changed), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr.splitlines()


def lengthwise(server, folder, *arguments, **changed):
    """Returns the stdout of a command that must work."""
    status, out, lines = call(server, folder, *arguments, **changed)
    assert status == 0, lines
    return out


def prepare(number, output, *flags):
    raw = f"{BUCKET}/raw/{number}.jsonl" if output.startswith("s3:") else f"{number}.jsonl"
    return ["prepare", raw, "--schema", "raw.schema.yaml", "--output", output, "--json", *flags]


def fingerprint(server, folder, dataset):
    return json.loads(lengthwise(server, folder, "inspect", dataset, "--json"))["fingerprint"]


def test_every_command_gives_on_s3_what_it_gives_on_a_disk(server, folder):
    def both(*arguments):
        """Runs a command on s3:// and on local files; returns what it prints on s3://."""
        local = [word.replace(f"{BUCKET}/", "") for word in arguments]
        local = [word.removeprefix("raw/") if word.startswith("raw/") else word for word in local]
        lengthwise(server, folder, *local)
        return lengthwise(server, folder, *arguments)

    dataset, run = f"{BUCKET}/dataset", f"{BUCKET}/run"
    for number, flags in ((0, ["--processes", "2"]), (1, ["--overwrite", "--retain", "0"]), (2, ["--append"])):
        both(*prepare(number, dataset, *flags))
        assert fingerprint(server, folder, dataset) == fingerprint(server, folder, "dataset")
    both("compact", dataset, "--num_shards", "1", "--retain", "0")
    assert fingerprint(server, folder, dataset) == fingerprint(server, folder, "dataset")
    assert "no fault in 600 records" in lengthwise(server, folder, "verify", dataset)
    assert lengthwise(server, folder, "clean", dataset, "--retain", "0") == f"{dataset}: nothing to remove\n"
    names = {str(path.relative_to(folder)) for path in folder.glob("dataset/**/*") if path.is_file()}
    generation, of_disk = (json.loads(text)["generations"][0] for text in (read(server), read_local(folder)))
    assert {key.replace(generation, of_disk) for key in server.keys("dataset/")} == names - {"dataset/commits/lock"}
    assert both("plan", dataset, "--json") == lengthwise(server, folder, "plan", "dataset", "--json")

    for batching in ("window", "bucket"):
        flags = ["--epochs", "1", "--units", "8", "--batching", batching, "--overwrite", "--json"]
        ours, of_disk = (
            json.loads(lengthwise(server, folder, "train", name, "--output", "run", *flags))
            for name in (dataset, "dataset")
        )
        assert ours["weights_sha256"] == of_disk["weights_sha256"]
    for path in (folder / "run").rglob("*"):
        if path.is_file():
            server.client().upload_file(str(path), support.BUCKET, str(path.relative_to(folder)))
    ours, of_disk = (
        json.loads(lengthwise(server, folder, "evaluate", *paths, "--json"))
        for paths in ((run, dataset), ("run", "dataset"))
    )
    for found in (ours, of_disk):
        found.pop("by_source")  # the names of the raw files
    assert ours == of_disk
    assert "run/evaluation-test.json" in server.keys("run/")
    lengthwise(server, folder, "predict", run, f"{BUCKET}/raw/*.jsonl", "--output", f"{BUCKET}/predictions")
    lengthwise(server, folder, "predict", "run", *(f"{n}.jsonl" for n in range(4)), "--output", "predictions")
    (part,) = server.keys("predictions/part-")
    lines = server.client().get_object(Bucket=support.BUCKET, Key=part)["Body"].read().splitlines()
    of_disk = [line for path in folder.glob("predictions/part-*") for line in path.read_bytes().splitlines()]
    assert len(lines) == 1200 and sorted(lines) == sorted(of_disk)
    both("export", run, "--output", f"{BUCKET}/export")
    both("export", run, "--output", f"{BUCKET}/export", "--overwrite")
    names = {str(path.relative_to(folder)) for path in folder.glob("export/**/*") if path.is_file()}
    assert set(server.keys("export/")) == names


def read(server, key="dataset/manifest.json"):
    return server.client().get_object(Bucket=support.BUCKET, Key=key)["Body"].read()


def read_local(folder):
    return (folder / "dataset" / "manifest.json").read_bytes()


def test_the_flags_of_beam_reach_the_driver_and_the_worker_processes(server, folder):
    keys = ["--s3_access_key_id=testing", "--s3_secret_access_key=testing", "--s3_region_name=us-east-1"]
    nothing = dict.fromkeys(("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"))
    job = prepare("*", f"{BUCKET}/dataset", f"--s3_endpoint_url={server.endpoint}", *keys, "--processes", "2")
    status, out, lines = call(server, folder, *job, **nothing)
    assert status == 0, lines
    assert lines[0].startswith("prepare: warning: --s3_secret_access_key can be seen in the list of processes")
    assert json.loads(out)["splits"]["train"]["records"] == json.loads(read(server))["splits"]["train"]["records"]
    for more in ([], ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]):
        lengthwise(server, folder, *job[:-2], *more, "--overwrite", **nothing)
        assert json.loads(read(server))["fingerprint"] == json.loads(out)["fingerprint"]


@pytest.mark.parametrize("ending", ["summary.json", "commits/00000002.json", "dataset/manifest.json"])
def test_a_killed_writer_loses_nothing_and_the_next_one_completes_its_work(server, folder, ending):
    dataset = f"{BUCKET}/dataset"
    for number in (0, 1):
        lengthwise(server, folder, *prepare(number, f"{number}", "--append"))
    lengthwise(server, folder, *prepare(0, dataset))
    server.hold(ending)
    append = prepare(1, dataset, "--append", "--processes", "0")
    with subprocess.Popen(**command(server, folder, *append), stderr=subprocess.DEVNULL) as killed:
        while not server.count_held():
            assert killed.poll() is None
            time.sleep(0.05)
        killed.send_signal(signal.SIGKILL)
    server.drop()
    before = server.keys("dataset/data/")
    is_committed = "dataset/commits/00000002.json" in server.keys("dataset/commits/")
    assert is_committed == (ending == "dataset/manifest.json")
    assert json.loads(lengthwise(server, folder, "inspect", dataset, "--json"))["records"] == 300
    assert "no fault in 300 records" in lengthwise(server, folder, "verify", dataset)
    status, _, lines = call(server, folder, *append)
    assert status == (3 if is_committed else 0), lines  # "has the raw file already", and its commit is shown now
    lengthwise(server, folder, *prepare(1, "0", "--append"))
    assert fingerprint(server, folder, dataset) == fingerprint(server, folder, "0")
    # The mark of the killed writer protects its files for ten minutes.
    assert set(before) <= set(server.keys("dataset/data/")) | {key for key in before if ".tmp" in key}
    (mark,) = (key for key in before if key.endswith("writer.json"))
    server.client().delete_object(Bucket=support.BUCKET, Key=mark)
    lengthwise(server, folder, "clean", dataset, "--retain", "0")
    live = json.loads(read(server))["generations"]
    assert {key.split("/")[2] for key in server.keys("dataset/data/")} == set(live)
    assert "no fault in 600 records" in lengthwise(server, folder, "verify", dataset)


def test_of_writers_at_once_each_gets_a_commit_of_its_own(server, folder):
    dataset = f"{BUCKET}/dataset"
    lengthwise(server, folder, *prepare(0, dataset))
    for number in range(4):
        lengthwise(server, folder, *prepare(number, "dataset", "--append"))
    server.hold("summary.json")  # the last object before the commit
    with contextlib.ExitStack() as stack:
        jobs = [
            stack.enter_context(
                subprocess.Popen(
                    **command(server, folder, *prepare(number, dataset, "--append", "--retain", "0")),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for number in (1, 2, 3)
        ]
        while server.count_held() < 3:
            assert [job.poll() for job in jobs] == [None] * 3
            time.sleep(0.05)
        server.drop()
        ended = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], ended
    assert sorted(json.loads(out)["commit"] for out, _ in ended) == [2, 3, 4]
    assert server.keys("dataset/commits/") == [f"dataset/commits/{number:08}.json" for number in range(1, 5)]
    created = [key for kind, key in server.take_requests() if kind == "PUT" and "commits/" in key and "tmp" not in key]
    assert len(created) >= 4
    manifest = json.loads(read(server))
    assert (manifest["commit"], len(manifest["generations"])) == (4, 4)
    assert "no fault in 1,200 records" in lengthwise(server, folder, "verify", dataset)


def test_errors_are_one_line(server, folder):
    def fails(*arguments, status=1, **changed):
        found, out, lines = call(server, folder, *arguments, **changed)
        assert (found, out) == (status, ""), lines
        assert not any("Traceback" in line for line in lines)
        return lines[-1]

    schema = ["--schema", "raw.schema.yaml"]
    no_bucket = "there is no bucket 'none'. Create it first"
    lengthwise(server, folder, *prepare(0, f"{BUCKET}/dataset"))
    for arguments in (
        ["prepare", "0.jsonl", *schema, "--output", "s3://none/dataset"],
        ["prepare", "s3://none/a.jsonl", *schema, "--output", "out"],
        ["inspect", "s3://none/dataset"],
        ["verify", "s3://none/dataset"],
        ["clean", "s3://none/dataset"],
        ["compact", "s3://none/dataset"],
        ["plan", "s3://none/dataset"],
        ["train", "s3://none/dataset", "--output", "run"],
        ["export", "s3://none/run", "--output", "export"],
        ["predict", "s3://none/run", "0.jsonl", "--output", "predictions"],
    ):
        assert no_bucket in fails(*arguments), arguments
    assert "matches no file" in fails("prepare", f"{BUCKET}/raw/*.csv", *schema, "--output", "out")
    assert "matches no file" in fails("prepare", f"{BUCKET}/raw/9.jsonl", *schema, "--output", "out")
    assert "a dataset is there already" in fails(*prepare(0, f"{BUCKET}/dataset"))
    assert "not a dataset" in fails("plan", f"{BUCKET}/none")
    assert "not a dataset: there is no such folder" in fails("inspect", f"{BUCKET}/none")
    assert "a run cannot be on s3://" in fails("train", f"{BUCKET}/dataset", "--output", f"{BUCKET}/run")
    unreachable = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    for arguments in (
        ["inspect", f"{BUCKET}/dataset"],
        ["plan", f"{BUCKET}/dataset"],
        prepare(0, f"{BUCKET}/d"),
        [*prepare(0, f"{BUCKET}/d")[:1], "0.jsonl", *prepare(0, f"{BUCKET}/d")[2:]],
    ):
        assert "the endpoint http://127.0.0.1:9 cannot be reached" in fails(*arguments, **unreachable)
    no_keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    assert "no credentials for S3" in fails("inspect", f"{BUCKET}/dataset", **no_keys)
    assert "The config profile (x) could not be found" in fails("inspect", f"{BUCKET}/dataset", AWS_PROFILE="x")
    empty = folder / "boto3"
    empty.mkdir()
    (empty / "__init__.py").write_text("raise ImportError('no boto3')")
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    assert "needs boto3, which is not installed: pip install 'lengthwise[aws]'" in fails(
        "inspect", f"{BUCKET}/dataset", PYTHONPATH=path
    )


MEASURED = """
import sys
from pipeline.beam.prepare import PrepareOptions, prepare
raw, shuffle, shards, mode = sys.argv[1:]
prepare(PrepareOptions((raw,), "raw.schema.yaml", "s3://bucket/dataset", processes=0, num_shards=int(shards),
                       shuffle=shuffle, append=mode == "append", overwrite=mode == "overwrite"))
"""


@pytest.mark.parametrize(("shuffle", "most"), [("engine", 3.1), ("files", 12)])
def test_a_shard_takes_few_requests(server, folder, shuffle, most):
    """Prints the requests of a job, by kind, for two numbers of shards: the difference is what a shard takes."""
    found = {}
    for shards in (10, 30):
        for key in server.keys("dataset/"):
            server.client().delete_object(Bucket=support.BUCKET, Key=key)
        server.take_requests()
        words = [sys.executable, "-W", "ignore", "-c", MEASURED, f"{BUCKET}/raw/", shuffle, str(shards), "create"]
        subprocess.run(words, **{k: v for k, v in command(server, folder).items() if k != "args"}, check=True)
        written = sum(key.endswith(".tfrecord") for key in server.keys("dataset/data/")) if shards else 0
        server.client()
        found[shards] = written, collections.Counter(kind for kind, key in _of_job(server.take_requests()))
    (few, before), (many, after) = found.values()
    kinds = sorted(before | after)
    per_shard = {kind: round((after[kind] - before[kind]) / (many - few), 2) for kind in kinds}
    per_job = {kind: round(before[kind] - few * per_shard[kind]) for kind in kinds}
    print(f"\n{shuffle}: {per_shard} requests per shard, and {per_job} per job")
    assert sum(per_shard.values()) <= most


def _of_job(requests):
    """Leaves out the list of the test itself, the last one."""
    *requests, (kind, _) = requests
    assert kind == "LIST"
    return requests


def test_nothing_is_left_on_the_local_disk(server, folder, tmp_path_factory):
    """The copies of runs and exports, and the parts of shards, are removed."""
    temporary = tmp_path_factory.mktemp("tmp")
    lengthwise(server, folder, *prepare("*", f"{BUCKET}/dataset", "--num_shards", "40"), TMPDIR=str(temporary))
    assert list(pathlib.Path(temporary).iterdir()) == []
