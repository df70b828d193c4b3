"""`prepare` on a Flink cluster: the bytes of this process, whatever is killed, and nothing after an interruption.

Each job takes about 25 s, most of which are the start of Flink's job and of its workers.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from flink_cluster import JAR, Command, process_environment, run, skip_without, wait_until, write_worker
from prepare_jobs import SCHEMA, contents, snapshot, unlisted, write_parts

from pipeline.beam.prepare import PrepareOptions, prepare
from trainer.devices.local_workers import free_ports

pytestmark = pytest.mark.cluster

FLAGS = ["--schema", "schema.yaml", "--max_rejected", "0.1", "--num_shards", "4"]


@pytest.fixture(autouse=True)
def idle(flink):
    flink.wait_idle()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Returns a folder with raw files, a schema, and the datasets that this process makes of them."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "schema.yaml").write_text(SCHEMA)
    write_parts(folder / "parts", 2**23)
    lines = [line for path in sorted((folder / "parts").iterdir()) for line in path.read_bytes().splitlines(True)]
    assert len(lines) > 6000
    for name, num_files in (("few", 6), ("many", 500)):
        (folder / name).mkdir()
        for number in range(num_files):
            (folder / name / f"{number:03}.jsonl").write_bytes(b"".join(lines[:6000][number::num_files]))
        prepare_here(folder, name, f"{name}-here")
    # Five files, and then the sixth. The rejects of an append name the generation that has a record already.
    (folder / "first").mkdir()
    for path in sorted((folder / "few").iterdir())[:5]:
        shutil.copy(path, folder / "first")
    prepare_here(folder, "first", "first-here")
    shutil.copytree(folder / "first-here", folder / "appended-here")
    prepare_here(folder, "few/005.jsonl", "appended-here", append=True)
    return folder


def prepare_here(folder, raw, output, **more):
    options = {"max_rejected": 0.1, "num_shards": 4, "processes": 0} | more
    prepare(PrepareOptions((str(folder / raw),), str(folder / "schema.yaml"), str(folder / output), **options))


def on(flink, *, environment=None):
    """Returns the flags of a job on the cluster."""
    return [*FLAGS, *flink.flags, *(environment or flink.process)]


def check_equal(folder, output, expected):
    """Checks that a dataset has the bytes of another one, and no other file."""
    assert contents(folder / output) == contents(folder / expected)
    # An append keeps the vocabulary of the commit before.
    others = [[path.relative_to(folder / name) for path in unlisted(folder / name)] for name in (output, expected)]
    assert others[0] == others[1]


def shards_of(output):
    return list(output.glob("data/*/*.tfrecord*"))


def test_the_dataset_of_six_files_has_the_bytes_of_this_process(flink, place):
    err = run(place, "prepare", "few", "--output", "few-flink", *on(flink))
    check_equal(place, "few-flink", "few-here")
    lines = err.splitlines()
    assert lines[0].startswith("prepare: warning: local paths on PortableRunner: RAW few, --output few-flink. ")
    (named,) = [line for line in lines if line.startswith("prepare: job ")]
    assert "(Flink " in named
    assert any(line.startswith("prepare: 6,000 records, ") for line in lines)


def test_the_dataset_of_500_files_has_the_bytes_of_this_process(flink, place):
    run(place, "prepare", "many", "--output", "many-flink", *on(flink))
    check_equal(place, "many-flink", "many-here")


def test_an_append_has_the_bytes_of_this_process(flink, place):
    shutil.copytree(place / "first-here", place / "appended-flink")
    run(place, "prepare", "few", "--output", "appended-flink", "--append", *on(flink))
    check_equal(place, "appended-flink", "appended-here")


def test_workers_of_a_worker_pool_write_the_bytes_of_this_process(flink, place):
    """The environment EXTERNAL: a worker pool starts the workers. Two task managers must not share a pool."""
    (port,) = free_ports(1)
    pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    external = ["--environment_type=EXTERNAL", f"--environment_config=localhost:{port}", "--parallelism=1"]
    with flink.without("task_manager_1"):
        with subprocess.Popen([*pool, f"--container_executable={flink.worker}"], stderr=subprocess.DEVNULL) as process:
            try:
                run(place, "prepare", "few", "--output", "pool", *on(flink, environment=external))
            finally:
                process.terminate()
    check_equal(place, "pool", "few-here")


def test_an_embedded_flink_writes_the_bytes_of_this_process(place, tmp_path):
    """FlinkRunner with the jar of the job server alone."""
    skip_without("java")
    environment = process_environment(write_worker(tmp_path))
    flags = ["--runner=FlinkRunner", f"--flink_job_server_jar={JAR}", "--flink_version=1.19", "--parallelism=2"]
    run(place, "prepare", "few", "--output", "embedded", *FLAGS, *flags, *environment)
    check_equal(place, "embedded", "few-here")


# --- Task managers that are killed ---


@pytest.mark.parametrize("moment", ["blocks are shuffled", "shards are written", "the commit appears"])
def test_a_killed_task_manager_changes_no_byte(flink, place, moment):
    name = moment.replace(" ", "-")
    output = place / name
    reached = {
        "blocks are shuffled": lambda: flink.records() > 0,
        "shards are written": lambda: shards_of(output),
        "the commit appears": lambda: list(output.glob("data/*/summary.json*")) or list(output.glob("commits/*.json*")),
    }[moment]
    with Command(place, "prepare", "few", "--output", name, *on(flink)) as command:
        command.wait_for(reached)
        # The step that publishes runs on one of the two, and it is not known on which.
        for manager in ("task_manager_0", "task_manager_1")[: 2 if moment == "the commit appears" else 1]:
            flink.kill(manager)
        assert command.finish() == (0, []), command.err
    check_equal(place, name, "few-here")


# --- Jobs that end early ---


@pytest.mark.parametrize("moment", ["starting", "parsing", "writing"])
@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "cancelled"])
def test_an_interrupted_job_publishes_nothing_and_leaves_nothing(flink, place, how, moment):
    name = f"{how}-{moment}"
    output = place / name
    reached = {
        "starting": lambda: flink.running(),
        "parsing": lambda: flink.records() > 0,
        "writing": lambda: shards_of(output),
    }[moment]
    with Command(place, "prepare", "few", "--output", name, *on(flink)) as command:
        command.wait_for(reached)
        if how == "cancelled":
            flink.cancel()
        else:
            command.send(signal.SIGINT if how == "Ctrl-C" else signal.SIGTERM)
        status, lines = command.finish()
    expected = {
        "Ctrl-C": (130, ["lengthwise prepare: interrupted."]),
        "SIGTERM": (143, ["lengthwise prepare: terminated."]),
        "cancelled": (
            1,
            [f"lengthwise prepare: {output}: the job was cancelled on the engine. Nothing was published."],
        ),
    }[how]
    assert (status, lines) == expected
    flink.wait_idle()
    assert snapshot(output) == {}


def test_an_interrupted_replacement_keeps_the_dataset(flink, place):
    shutil.copytree(place / "first-here", place / "kept")
    before = contents(place / "kept")
    with Command(place, "prepare", "few", "--output", "kept", "--overwrite", *on(flink)) as command:
        command.wait_for(lambda: flink.records() > 0)
        command.send(signal.SIGINT)
        assert command.finish() == (130, ["lengthwise prepare: interrupted."])
    flink.wait_idle()
    assert contents(place / "kept") == before
    assert unlisted(place / "kept") == []


def test_too_many_rejects_are_a_line_after_one_attempt(flink, place):
    rows = [
        json.dumps({"id": str(number), "x": [[1, 2, 3, 4]], "word": ["a"], "y": "no class"}) for number in range(500)
    ]
    (place / "bad.jsonl").write_text("\n".join(rows))
    begin = time.monotonic()
    with Command(place, "prepare", "bad.jsonl", "--output", "bad", *on(flink)) as command:
        status, lines = command.finish()
    seconds = time.monotonic() - begin
    assert (status, len(lines)) == (1, 1), command.err
    assert "500 of 500 records" in lines[0]
    assert seconds < 40
    flink.wait_idle()
    assert not os.path.exists(place / "bad" / "manifest.json")


def test_every_process_of_the_workers_ends_with_its_job(flink, place):
    """It comes last: the workers of all jobs before have ended, too."""
    wait_until(lambda: "lengthwise-worker" not in subprocess.check_output(["ps", "-eo", "args"], text=True))
