"""Several processes train as one process does, also if they are killed, stopped and started again."""

import contextlib
import functools
import json
import os
import signal
import socket
import sys
import threading
import time

import cluster
import datasets
import numpy as np
import pytest

from pipeline.errors import UserError
from trainer.batching.plan_epoch import plan_epoch
from trainer.config import TrainConfig, make_config
from trainer.data.dataset import open_dataset
from trainer.devices import local_workers, replicas
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.runs.lock import lock_run
from trainer.training.train import train

# Long enough to kill a worker before the end.
SHORT = cluster.UNEVEN | {"epochs": 16, "checkpoint_updates": 5}
LONG = SHORT | {"epochs": 30}
LOST = "Run the same command again on every worker to resume from the last checkpoint."


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    start_tensorflow()


@functools.cache
def alone(**config):
    """Returns the folder of an uninterrupted run of one process."""
    folder = datasets.new_folder() / "run"
    train(cluster.uneven(), folder, TrainConfig(**config))
    return folder


def wait_for_update(process, run, update):
    """Waits for a checkpoint of that update or a later one, while the process runs."""

    def come():
        assert process.is_running(), process.wait().err
        return cluster.checkpoint_update(run) >= update

    cluster.wait_until(come, what=f"update {update}")


@contextlib.contextmanager
def launched_until(run, config, update):
    """Starts the launcher with two workers and waits until a checkpoint of this update or a later one is saved."""
    with cluster.launched(cluster.uneven(), run, config) as process:
        wait_for_update(process, run, update)
        yield process


def lines_of_chief(ended):
    """Returns the chief's lines of stderr; each other worker may write one line, that it did not start either."""
    lines = ended.err.splitlines()
    others = [line for line in lines if line.startswith("[worker ")]
    assert len(others) == len({line.split("]")[0] for line in others}), ended.err
    return [line for line in lines if line not in others]


def test_batches_are_as_uneven_as_these_tests_need():
    """In some batches one worker has ten times the steps of the other, or no record at all."""
    dataset = open_dataset(cluster.uneven())
    limits = {"batch_size": cluster.UNEVEN["batch_size"]}
    ratios, updates = [], 0
    for epoch in range(1, cluster.UNEVEN["epochs"] + 1):
        plan = plan_epoch(dataset, "train", epoch=epoch, **limits)
        updates += plan.num_batches
        first, second = (plan.deal(2).batch_shapes(reader).steps for reader in (0, 1))
        ratios += [max(pair) / min(pair) if min(pair) else np.inf for pair in zip(first, second, strict=True)]
    assert updates >= 50
    assert np.inf in ratios and any(10 <= ratio < np.inf for ratio in ratios)


@pytest.mark.proof
@pytest.mark.parametrize("resumed_by", datasets.some(["two workers", "one process"], ["one process"]))
def test_a_killed_worker_ends_the_others_and_the_resumed_run_equals_that_of_one_process(tmp_path, resumed_by):
    """With two workers of the launcher, each update's loss before and after the kill equals that of one process."""
    run = tmp_path / "run"
    with launched_until(run, SHORT, 10) as process:
        workers = process.workers()
        assert len(workers) == 2
        os.kill(workers[1], signal.SIGKILL)
        begin = time.monotonic()
        ended = process.wait()
        print(f"\nended {time.monotonic() - begin:.1f} s after the kill")
    assert ended.status == 128 + signal.SIGKILL
    assert ended.err.splitlines()[-1] == (
        "lengthwise train: worker 1 of 2 was killed by SIGKILL, and the others were stopped. Run the same command to "
        "resume from the last checkpoint."
    )
    assert "Traceback" not in ended.err and ended.out == ""
    assert not any(map(cluster.is_alive, workers))
    assert 10 <= cluster.checkpoint_update(run) < len(cluster.updates_of(alone(**SHORT)))

    if resumed_by == "one process":
        train(cluster.uneven(), run, TrainConfig(**SHORT))
        cluster.check_same(run, alone(**SHORT))
        return
    ended = cluster.launch(cluster.uneven(), run, SHORT, "--json")
    assert (ended.status, "Resuming after update" in ended.err) == (0, True), ended.err
    assert json.loads(ended.out) == json.loads((run / "result.json").read_text())
    cluster.check_same(run, alone(**SHORT))


@pytest.mark.proof
@pytest.mark.parametrize("workers", [2, 4])
def test_the_launcher_trains_as_one_process(tmp_path, workers):
    ended = cluster.launch(cluster.uneven(), tmp_path / "run", cluster.UNEVEN, "--json", workers=workers)
    assert ended.status == 0, ended.err
    assert json.loads(ended.out)["updates"] == len(cluster.updates_of(tmp_path / "run")) >= 50
    assert "Traceback" not in ended.err
    cluster.check_same(tmp_path / "run", alone(**cluster.UNEVEN))


@pytest.mark.proof
@pytest.mark.parametrize(("workers", "chief"), [(2, False), (2, True), (4, False)])
def test_a_cluster_trains_as_one_process(tmp_path, workers, chief):
    """All workers print the same result, which the chief sends to the others."""
    with cluster.joined(
        cluster.uneven(), tmp_path / "run", cluster.UNEVEN, "--json", workers=workers, chief=chief
    ) as processes:
        ended = [process.wait() for process in processes]
    assert [one.status for one in ended] == [0] * workers, [one.err for one in ended]
    assert [json.loads(one.out) for one in ended] == [json.loads(ended[0].out)] * workers
    assert [one.err for one in ended[1:]] == [""] * (workers - 1)
    cluster.check_same(tmp_path / "run", alone(**cluster.UNEVEN))


@pytest.mark.proof
def test_a_port_in_use_is_reported_in_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        cluster_of = {"worker": [f"localhost:{taken.getsockname()[1]}", "localhost:1"]}
        config = json.dumps({"cluster": cluster_of, "task": {"type": "worker", "index": 0}})
        process = cluster.Process(
            cluster.command(cluster.uneven(), tmp_path / "run", SHORT), environment={"TF_CONFIG": config}
        )
        try:
            ended = process.wait()
        finally:
            process.end()
    assert ended.status == 1
    assert ended.err.splitlines()[-1].startswith("lengthwise train: The workers cannot connect: Could not start gRPC")
    assert "may be in use" in ended.err.splitlines()[-1] and "Traceback" not in ended.err


@pytest.mark.proof
@pytest.mark.parametrize("way", ["bucket", "pad", "exact"])
def test_other_batching_methods_train_as_one_process(tmp_path, way):
    config = cluster.UNEVEN | {"batching": way, "epochs": 3, "loss_scale": "batch"}
    ended = cluster.launch(cluster.uneven(), tmp_path / "run", config)
    assert ended.status == 0, ended.err
    cluster.check_same(tmp_path / "run", alone(**config))


@pytest.mark.proof
@pytest.mark.parametrize("killed", [0, 1])
def test_in_a_cluster_the_survivors_of_a_kill_end_with_one_line_and_the_job_resumes(tmp_path, killed):
    """There is no launcher that ends them."""
    run = tmp_path / "run"
    with cluster.joined(cluster.uneven(), run, LONG) as processes:
        wait_for_update(processes[0], run, 20)
        processes[killed].send(signal.SIGKILL)
        begin = time.monotonic()
        survivor = processes[1 - killed].wait()
        print(f"\nended {time.monotonic() - begin:.1f} s after the kill, with {survivor.status}")
    assert survivor.status == 1
    assert "Another worker was lost" in survivor.err.splitlines()[-1]
    assert survivor.err.splitlines()[-1].endswith(LOST)
    assert "Traceback" not in survivor.err
    with cluster.joined(cluster.uneven(), run, LONG) as processes:
        assert [process.wait().status for process in processes] == [0, 0]
    cluster.check_same(run, alone(**LONG))


@pytest.mark.proof
def test_a_killed_chief_ends_the_others_of_a_launcher_too(tmp_path):
    run = tmp_path / "run"
    with launched_until(run, LONG, 20) as process:
        workers = process.workers()
        os.kill(workers[0], signal.SIGKILL)
        ended = process.wait()
    assert ended.status == 128 + signal.SIGKILL
    assert "worker 0 of 2 was killed by SIGKILL" in ended.err.splitlines()[-1]
    assert not any(map(cluster.is_alive, workers))
    assert cluster.launch(cluster.uneven(), run, LONG).status == 0
    cluster.check_same(run, alone(**LONG))


@pytest.mark.proof
def test_sigterm_to_the_launcher_saves_a_run_that_resumes_with_other_numbers_of_workers(tmp_path):
    """Two workers, then one, then two."""
    run = tmp_path / "run"
    with launched_until(run, LONG, 20) as process:
        process.send(signal.SIGTERM)
        begin = time.monotonic()
        ended = process.wait()
        seconds = time.monotonic() - begin
    print(f"\nended {seconds:.1f} s after SIGTERM")
    assert (ended.status, seconds < 10) == (75, True), ended.err
    assert sum("SIGTERM: saved after update" in line for line in ended.err.splitlines()) >= 1
    assert "Traceback" not in ended.err
    first = cluster.checkpoint_update(run)
    assert first == len(cluster.updates_of(run)) >= 20

    one = cluster.Process(cluster.command(cluster.uneven(), run, LONG))
    try:
        wait_for_update(one, run, first + 30)
        one.send(signal.SIGTERM)
        assert one.wait().status == 75
    finally:
        one.end()
    assert first < cluster.checkpoint_update(run) < len(cluster.updates_of(alone(**LONG)))
    ended = cluster.launch(cluster.uneven(), run, LONG)
    assert (ended.status, "The environment of this run has changed" in ended.err) == (0, True), ended.err
    cluster.check_same(run, alone(**LONG))


@pytest.mark.proof
def test_workers_end_with_a_launcher_that_is_killed(tmp_path):
    run = tmp_path / "run"
    with launched_until(run, LONG, 5) as process:
        workers = process.workers()
        assert len(workers) == 2
        process.send(signal.SIGKILL)
        process.wait()
        seconds = cluster.wait_until(lambda: not any(map(cluster.is_alive, workers)), what="the workers' end")
        print(f"\nended {seconds:.1f} s after the launcher")


@pytest.mark.proof
def test_a_folder_that_another_process_trains_into_has_its_own_status(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with lock_run(str(run)):
        ended = cluster.launch(cluster.uneven(), run, cluster.UNEVEN)
    assert ended.status == 69, ended.err
    (line,) = lines_of_chief(ended)
    assert "another process trains into it" in line


@pytest.mark.proof
def test_a_missing_dataset_is_reported_once(tmp_path):
    ended = cluster.launch(tmp_path / "missing", tmp_path / "run", cluster.UNEVEN)
    assert (ended.status, ended.out) == (1, "")
    (line,) = lines_of_chief(ended)
    assert f"{tmp_path / 'missing'}: not a dataset" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.proof
def test_validation_early_stopping_and_overwrite_with_two_workers(tmp_path):
    """Nothing is learnt with this learning rate: the first epoch is the best. A finished run only prints its result."""
    path = datasets.of_kind("class").path
    config = {"epochs": 9, "units": (4,), "batch_size": 8, "early_stopping": 2, "learning_rate": 1e-30}
    one = train(path, tmp_path / "one", TrainConfig(**config))
    run = tmp_path / "run"
    ended = cluster.launch(path, run, config | {"seed": 1, "epochs": 1}, "--json")
    assert (ended.status, json.loads(ended.out)["epochs"]) == (0, 1), ended.err
    ended = cluster.launch(path, run, config, "--json", "--overwrite")
    result = json.loads(ended.out)
    assert (ended.status, result["stopped_early"], result["best_epoch"]) == (0, True, 1), ended.err
    assert (result["epochs"], result["updates"]) == (one["epochs"], one["updates"])
    assert result["validation"]["loss"] == pytest.approx(one["validation"]["loss"], rel=1e-5)
    cluster.check_same(run, tmp_path / "one")
    again = cluster.launch(path, run, config, "--json")
    assert (again.status, json.loads(again.out), again.err) == (0, result, "")
    refused = cluster.launch(path, run, config | {"units": (5,)})
    (line,) = lines_of_chief(refused)
    assert (refused.status, "was started with units [4], now [5]" in line) == (1, True)


# The tests below do not start TensorFlow: each worker runs a small program instead of the command.


@pytest.fixture
def worker_program(tmp_path, monkeypatch):
    """Returns a function that makes the workers run a program, in which `number` is the worker's number."""

    def put(text):
        head = "import json, os, signal, sys, time\nnumber = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        program = tmp_path / "worker.py"
        program.write_text(f"{head}sys.path.insert(0, {str(cluster.ROOT)!r})\n{text}\n")
        monkeypatch.setattr(local_workers, "_SCRIPT", program)
        return program

    return put


def test_only_the_chief_writes_to_stdout_and_the_others_write_numbered_lines_to_stderr(worker_program, capfd):
    worker_program(
        "print('out', number, *sys.argv[1:], flush=True); print(f'{number} a\\n\\n{number} \\xff', file=sys.stderr)"
    )
    assert local_workers.run_local_workers(3, ["train", "dataset"]) == 0
    out, err = capfd.readouterr()
    assert out == "out 0 train dataset\n"
    expected = ["0 a", "", "0 \xff", *(f"[worker {n}] {text}" for n in (1, 2) for text in (f"{n} a", "", f"{n} \xff"))]
    assert sorted(err.splitlines()) == sorted(expected)


def test_each_worker_has_its_own_port_and_a_share_of_the_cores(worker_program, capfd, monkeypatch):
    monkeypatch.delenv("TF_NUM_INTRAOP_THREADS", raising=False)
    worker_program(
        "print(json.dumps([os.environ[n] for n in ('TF_CONFIG', 'TF_NUM_INTRAOP_THREADS')]), file=sys.stderr)"
    )
    assert local_workers.run_local_workers(2, ["train"]) == 0
    printed = [json.loads(line.removeprefix("[worker 1] ")) for line in capfd.readouterr().err.splitlines()]
    clusters = [json.loads(text) for text, _ in printed]
    assert clusters[0]["cluster"] == clusters[1]["cluster"]
    assert len(set(clusters[0]["cluster"]["worker"])) == 2
    assert sorted(one["task"]["index"] for one in clusters) == [0, 1]
    assert {threads for _, threads in printed} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_far_more_workers_than_cores_are_refused_before_one_starts(monkeypatch):
    monkeypatch.setattr(local_workers, "count_cores", lambda: 2)
    monkeypatch.setattr(local_workers, "free_ports", lambda count: [][count])  # fails
    with pytest.raises(
        UserError, match="local_workers is 9, but this process may use 2 cores; expected at most 4 worke"
    ):
        local_workers.run_local_workers(9, ["train"])
    with pytest.raises(IndexError):
        local_workers.run_local_workers(8, ["train"])


def test_each_worker_has_gpus_of_its_own_or_none_starts(worker_program, capfd, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3")
    monkeypatch.setattr(local_workers, "find_gpus", lambda: ["7", "5", "3"])
    worker_program("print(number, os.environ['CUDA_VISIBLE_DEVICES'], file=sys.stderr)")
    with pytest.raises(UserError, match=r"local_workers is 4, but there are 3 GPUs \(7, 5, 3\)"):
        local_workers.run_local_workers(4, ["train"])
    assert local_workers.run_local_workers(3, ["train"]) == 0
    told = [f"Worker {n}: GPU {gpu}." for n, gpu in enumerate("753")]
    assert sorted(capfd.readouterr().err.splitlines()) == ["0 7", *told, "[worker 1] 1 5", "[worker 2] 2 3"]


@pytest.mark.parametrize("first", [0, 1])
def test_the_launcher_ends_with_the_status_of_the_chief(worker_program, tmp_path, monkeypatch, first):
    """Also if another worker, to which the chief passed its error, ends first: a locked folder is 69, not 1."""
    monkeypatch.setattr(local_workers, "_GRACE_SECONDS", 300.0)
    ended = tmp_path / "ended"
    worker_program(
        f"""if number == {first}:
    open({str(ended)!r}, "w").close()
else:
    while not os.path.exists({str(ended)!r}):
        time.sleep(0.01)
    time.sleep(0.3)
sys.exit(69 if number == 0 else 1)"""
    )
    assert local_workers.run_local_workers(2, ["train"]) == 69


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_worker_is_reported_and_ends_the_others(worker_program, capfd, monkeypatch, killed):
    monkeypatch.setattr(local_workers, "_GRACE_SECONDS", 0.3)
    worker_program(f"os.kill(os.getpid(), signal.SIGKILL) if number == {killed} else time.sleep(600)")
    begin = time.monotonic()
    assert local_workers.run_local_workers(3, ["train"]) == 128 + signal.SIGKILL
    assert time.monotonic() - begin < 600  # the others did not end by themselves
    assert capfd.readouterr().err.splitlines() == [
        f"lengthwise train: worker {killed} of 3 was killed by SIGKILL, and the others were stopped. Run the same "
        "command to resume from the last checkpoint."
    ]


def test_the_launcher_passes_sigterm_to_the_workers_and_returns_their_status(worker_program, tmp_path, monkeypatch):
    """It waits for them, however long the update under way takes."""
    monkeypatch.setattr(local_workers, "_GRACE_SECONDS", 0.1)
    worker_program(
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), os._exit(75)))\n"
        f"open(os.path.join({str(tmp_path)!r}, f'ready-{{number}}'), 'w').close()\ntime.sleep(600)"
    )
    before = signal.getsignal(signal.SIGTERM)

    def send():
        cluster.wait_until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    assert local_workers.run_local_workers(2, ["train"]) == 75
    sender.join()
    assert signal.getsignal(signal.SIGTERM) == before


def test_no_worker_outlives_a_launcher_that_is_killed(worker_program, tmp_path):
    program = worker_program(
        "from trainer.devices.local_workers import exit_with_parent\nexit_with_parent()\n"
        f"open(os.path.join({str(tmp_path)!r}, f'pid-{{os.getpid()}}'), 'w').close()\ntime.sleep(600)"
    )
    text = (
        f"import pathlib, sys; sys.path.insert(0, {str(cluster.ROOT)!r}); "
        "from trainer.devices import local_workers as l; "
        f"l._SCRIPT = pathlib.Path({str(program)!r}); l.run_local_workers(2, ['train'])"
    )
    launcher = cluster.Process([sys.executable, "-c", text])
    try:
        cluster.wait_until(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
        pids = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
        launcher.send(signal.SIGKILL)
        cluster.wait_until(lambda: not any(map(cluster.is_alive, pids)))
    finally:
        launcher.end()


def test_a_wrong_flag_starts_no_worker(tmp_path):
    found = [cluster.launch("dataset", tmp_path / "run", {}, *wrong) for wrong in (["--unitz", 4], ["--epochs", -1])]
    assert [one.status for one in found] == [2, 2]
    assert [len(one.err.splitlines()) for one in found] == [1, 1]
    assert found[0].err == "lengthwise train: unknown flag --unitz; did you mean --units?\n"


WORKERS = ["host0:2222", "host1:2222"]


@pytest.mark.parametrize(
    ("hosts", "kind", "index", "expected"),
    [
        ({"worker": WORKERS}, "worker", 0, (2, 0)),
        ({"worker": WORKERS}, "worker", 1, (2, 1)),
        ({"chief": WORKERS[:1], "worker": WORKERS}, "chief", 0, (3, 0)),
        ({"chief": WORKERS[:1], "worker": WORKERS}, "worker", 0, (3, 1)),
        ({"chief": WORKERS[:1], "worker": WORKERS}, "worker", "1", (3, 2)),
        ({"chief": WORKERS[:1]}, "chief", 0, (1, 0)),
    ],
)
def test_the_chief_is_number_0(monkeypatch, hosts, kind, index, expected):
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": hosts, "task": {"type": kind, "index": index}}))
    assert replicas._read_cluster() == expected


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": -1}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": "one"}}',
        '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "evaluator", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"chief": ["a:1", "b:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_an_impossible_cluster_is_reported_in_one_line_with_the_expected_form(tmp_path, monkeypatch, capsys, text):
    monkeypatch.setenv("TF_CONFIG", text)
    status, out, err = datasets.call(capsys, "train", cluster.uneven(), "--output", tmp_path / "run", "--epochs", 0)
    assert (status, out, len(err)) == (1, "", 1)
    assert err[0].startswith(f"lengthwise train: TF_CONFIG is {text!r}, expected a cluster of workers")
    assert not (tmp_path / "run").exists()


def test_a_cluster_of_one_trains_alone(tmp_path, monkeypatch):
    config = {"cluster": {"worker": WORKERS[:1]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    found = train(cluster.uneven(), tmp_path / "run", TrainConfig(epochs=0, units=(4,)))
    monkeypatch.delenv("TF_CONFIG")
    assert found["weights_sha256"] == train(
        cluster.uneven(), tmp_path / "other", TrainConfig(epochs=0, units=(4,))
    )["weights_sha256"]  # fmt: skip


def test_workers_without_a_cluster_are_refused_with_both_solutions(tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(UserError, match="needs TF_CONFIG, which is not set.*--local_workers N does"):
        train(cluster.uneven(), tmp_path / "run", TrainConfig(strategy="multi_worker"))
    assert not (tmp_path / "run").exists()


@pytest.mark.proof
def test_ctrl_c_in_a_terminal_is_one_line_and_no_traceback(tmp_path):
    """A terminal sends SIGINT to the workers too."""
    with launched_until(tmp_path / "run", LONG, 5) as process:
        os.killpg(process.pid, signal.SIGINT)
        ended = process.wait()
    assert (ended.status, "Traceback" in ended.err) == (130, False), ended.err


@pytest.mark.proof
@pytest.mark.parametrize("way", ["launcher", "cluster"])
def test_several_workers_report_a_non_finite_loss_with_its_records_too(tmp_path, way):
    """Each worker reads the losses once a second by its own clock; the chief writes the file."""
    config = {"epochs": 2000, "units": (4,), "batch_size": 3, "learning_rate": 1e38}
    run = tmp_path / "run"
    if way == "launcher":
        found = [cluster.launch(cluster.uneven(), run, config)]
    else:
        with cluster.joined(cluster.uneven(), run, config) as processes:
            found = [process.wait() for process in processes]
    assert [one.status for one in found] == [1] * len(found), [one.err for one in found]
    for one in found:
        assert "Traceback" not in one.err
        assert "non-finite" in one.err or "the update changed no weight" in one.err, one.err
    if "failed-update.json" in "".join(one.err for one in found):
        assert json.loads((run / "failed-update.json").read_text())["ids"]


@pytest.mark.proof
def test_an_output_that_the_chief_cannot_create_ends_the_other_workers(tmp_path):
    (tmp_path / "file").write_text("")
    with cluster.joined(cluster.uneven(), tmp_path / "file" / "run", cluster.UNEVEN) as processes:
        found = [process.wait() for process in processes]
    print(f"\nended after {[round(one.seconds, 1) for one in found]} s")
    assert [one.status for one in found] == [1, 1], [one.err for one in found]
    assert not any("Traceback" in one.err for one in found), [one.err for one in found]
    assert found[1].seconds - found[0].seconds < 60


def test_workers_that_would_each_train_alone_are_refused(tmp_path, monkeypatch):
    path = datasets.of_kind("class").path
    with pytest.raises(UserError, match="local_workers belongs to strategy auto or multi_worker, not to one"):
        make_config({"local_workers": 2, "strategy": "one"})
    with pytest.raises(UserError, match="local_workers is 2: only the command `lengthwise train` starts workers"):
        train(path, tmp_path / "run", TrainConfig(local_workers=2))
    task = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(task))
    with pytest.raises(UserError, match="--strategy one trains in one process, but TF_CONFIG lists 2 workers"):
        train(path, tmp_path / "run", TrainConfig(strategy="one"))
    assert not (tmp_path / "run").exists()
