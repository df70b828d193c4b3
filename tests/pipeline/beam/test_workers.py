"""Worker processes return, raise and count what a call in this process does, and none is left behind."""

import concurrent.futures
import dataclasses
import gzip
import json
import multiprocessing
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import traceback

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

import pipeline.main
from pipeline import progress
from pipeline.beam import call_on_chunks, early_workers, parse_ahead, workers
from pipeline.beam import prepare as prepare_module
from pipeline.beam.early_workers import start_early_workers
from pipeline.beam.prepare import PrepareOptions, _count_workers, _start_workers, prepare
from pipeline.beam.workers import PendingCalls, WorkerPool, WorkerTraceback
from pipeline.errors import UserError
from pipeline.files import read_bytes
from pipeline.raw import json_lines, line_splitter
from pipeline.raw.find_files import RawFile, find_all_files
from pipeline.streaming.kept_workers import KeptWorkers

SCHEMA = "id: id\nsteps: {x: {dtype: float32, shape: [2]}}\nlabel: {name: y, kind: class, classes: [a, b]}\n"


@pytest.fixture(scope="module")
def pool():
    pool = WorkerPool(2, "pipeline.writing.stages")
    yield pool
    pool.close()


def test_a_worker_returns_and_raises_what_a_function_returns_and_raises(pool):
    futures = [pool.submit(divmod, n, 7) for n in range(50)]
    assert [future.result() for future in futures] == [divmod(n, 7) for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()
    assert pool.submit(os.getpid).result() != os.getpid()
    # A worker is no copy of this process: it loads only the modules that it needs.
    loaded = pool.submit(eval, "set(__import__('sys').modules)").result()
    assert "pyarrow" in loaded and not {"apache_beam", "tensorflow", "pytest"} & loaded


def test_an_error_of_a_worker_has_its_traceback_there_as_cause(pool):
    with pytest.raises(UserError, match="^nowhere/summary.json: cannot be read") as error:
        pool.submit(read_bytes, "nowhere/summary.json").result()
    assert isinstance(error.value.__cause__, WorkerTraceback)
    text = "".join(traceback.format_exception(error.value))
    assert re.search(
        r'(?s)File ".*pipeline/files.py", line \d+, in read_bytes\n.*The above exception was the direct', text
    )


def test_an_error_or_a_result_that_cannot_be_pickled_does_not_end_a_worker(pool):
    with pytest.raises(RuntimeError, match=r"^Unknown: text$"):
        pool.submit(exec, "class Unknown(Exception): pass\nraise Unknown('text')").result()
    with pytest.raises(TypeError, match="cannot pickle"):
        pool.submit(eval, "__import__('threading').Lock()").result()


def test_an_error_of_a_worker_keeps_its_traceback_in_a_beam_job(pool):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    _ = pipeline | beam.Create(["no number"]) | beam.Map(lambda text, pool: pool.submit(int, text).result(), pool)
    with pytest.raises(ValueError, match="no number") as error:
        pipeline.run()
    assert "in _call" in "".join(traceback.format_exception(error.value)).partition("The above exception")[0]


def test_a_pool_maps_values_in_order_and_takes_few_of_them_ahead(pool):
    taken = []
    results = pool.map(abs, (taken.append(n) or -n for n in range(30)))
    assert next(results) == 0
    assert len(taken) <= 5
    assert list(results) == list(range(1, 30))


def test_the_counts_of_a_worker_are_added_to_those_of_this_process(pool):
    before = dict(progress._counts)
    pool.submit(progress.add_rejects, 3).result()
    assert progress._counts["rejects"] == before.get("rejects", 0) + 3


def test_the_end_of_a_worker_process_is_a_user_error():
    pool = WorkerPool(1, "pipeline.writing.stages")
    try:
        with pytest.raises(UserError, match=r"was ended by SIGKILL \(the system does so where memory is short"):
            pool.submit(eval, "__import__('os').kill(__import__('os').getpid(), 9)").result()
    finally:
        pool.close()
    pool = WorkerPool(1, "pipeline.writing.stages")
    try:
        with pytest.raises(UserError, match="ended with status 3"):
            pool.submit(os._exit, 3).result()
    finally:
        pool.close()


def is_running(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_when_the_process_that_started_them_is_killed_during_a_call():
    program = (
        "import os, signal, time; from pipeline.beam.workers import WorkerPool; "
        "pool = WorkerPool(2, 'pipeline.writing.stages'); "
        "print(*[pool.submit(os.getpid).result() for _ in range(9)], flush=True); "
        "[pool.submit(time.sleep, 60) for _ in range(2)]; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pids = set(map(int, done.stdout.split()))
    end = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def contents(folder):
    """Returns the files and the parts of the manifest that two equal runs share."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (generation,) = manifest["generations"]
    files = {
        str(path.relative_to(folder)).replace(generation, ""): path.read_bytes().replace(generation.encode(), b"")
        for path in folder.rglob("*")
        # Commits have times.
        if path.is_file() and path.name != "manifest.json" and path.parent.name != "commits"
    }
    return files, {name: manifest[name] for name in ("splits", "statistics", "rejected", "inputs", "fingerprint")}


@pytest.mark.parametrize("compressed", [pytest.param(False, marks=pytest.mark.proof), True])
def test_worker_processes_make_the_same_dataset(tmp_path, monkeypatch, compressed):
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(call_on_chunks, "COMPRESSED_BATCH_BYTES", 10_000)
    # Some lines are large: longer than a block, sent as they are, and held one at a time.
    for module, name, value in (
        (json_lines, "BLOCK_BYTES", 64),
        (line_splitter, "BLOCK_BYTES", 64),
        (workers, "_LARGE_BYTES", 64),
        (workers, "_HELD_BYTES", 15_000),
    ):
        monkeypatch.setattr(module, name, value)
    rows = [json.dumps({"id": n % 1900, "x": [[n, 0.5]] * (n % 5 + 1), "y": "ab"[n % 2]}) for n in range(2000)]
    rows[::97] = ["no json", "", '{"id": 1}'] * 7
    raw = "\n".join(rows).encode()
    (tmp_path / "raw").write_bytes(gzip.compress(raw) if compressed else raw)
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    found = []
    for processes in (0, 2):
        output = tmp_path / str(processes)
        options = {"num_shards": 3, "max_rejected": 0.5, "keep_raw": True, "processes": processes}
        prepare(PrepareOptions((str(tmp_path / "raw"),), str(tmp_path / "schema.yaml"), str(output), **options))
        files, manifest = contents(output)
        generation = json.loads((output / "manifest.json").read_text())["generations"][0]
        found.append((files, json.loads(json.dumps(manifest).replace(generation, ""))))
    assert found[0] == found[1]
    assert {"not_json", "missing_field", "duplicate_id"} == set(found[0][1]["rejected"]["by_reason"])


def test_chunks_are_parsed_before_the_pipeline_runs_and_none_is_parsed_again(tmp_path, monkeypatch):
    for module in (json_lines, call_on_chunks, parse_ahead):
        monkeypatch.setattr(module, "CHUNK_BYTES", 3000)
    rows = [json.dumps({"id": n, "x": [[n, 0.5]] * (n % 5 + 1), "y": "ab"[n % 2]}) for n in range(500)]
    rows[10::97] = ["no json", '{"id": 1}'] * 3
    for name, lines in (("a", rows[:400]), ("b", rows[400:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "c.jsonl").write_bytes(gzip.compress("\n".join(rows).replace('"id": ', '"id": 5').encode()))
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    raw = tuple(f"{tmp_path}/{name}.jsonl" for name in "abc")
    calls, pools = [], []

    def submit(pool, function, *arguments):
        calls.append(function.func.__name__)
        return real_submit(pool, function, *arguments)

    def start(pool, *arguments, **options):
        pools.append(pool)
        real_start(pool, *arguments, **options)

    real_submit, real_start = WorkerPool.submit, WorkerPool.start
    monkeypatch.setattr(WorkerPool, "submit", submit)
    monkeypatch.setattr(WorkerPool, "start", start)
    found = []
    for processes in (0, 2):
        output = tmp_path / str(processes)
        prepare(PrepareOptions(raw, f"{tmp_path}/schema.yaml", str(output), max_rejected=0.5, processes=processes))
        files, _ = contents(output)
        found.append({name: data for name, data in files.items() if name.endswith(("tfrecord", "parquet"))})
    assert found[0] == found[1] and len(found[0]) > 3
    sizes = [(tmp_path / f"{name}.jsonl").stat().st_size for name in "ab"]
    parsed = calls.count("parse_into_runs")
    # The last chunks of both plain files share a call, and so do some batches of lines of the compressed one.
    assert len(pools) == 6 < sum(size // 3000 for size in sizes) < parsed
    assert sum(size // 3000 for size in sizes) + 1 + -(-sum(map(len, rows)) // 3000) >= parsed
    assert pools[0]._started == []


def test_a_job_that_fails_before_its_pipeline_runs_leaves_no_file_of_a_worker(tmp_path, monkeypatch):
    for module in (json_lines, call_on_chunks, parse_ahead):
        monkeypatch.setattr(module, "CHUNK_BYTES", 200_000)
    rows = [json.dumps({"id": n, "x": [[n, 0.5]] * 9, "y": "ab"[n % 2]}) for n in range(9000)]
    (tmp_path / "raw").write_text("\n".join(rows))
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    data = tmp_path / "out/data"

    def fail(*arguments, **options):
        end = time.monotonic() + 60
        while not list(data.rglob("*.rows")) and time.monotonic() < end:
            time.sleep(0.01)
        assert list(data.rglob("*.rows"))
        raise UserError("on purpose")

    monkeypatch.setattr("pipeline.beam.runners.make_pipeline", fail)
    with pytest.raises(UserError, match="on purpose"):
        prepare(PrepareOptions((f"{tmp_path}/raw",), f"{tmp_path}/schema.yaml", f"{tmp_path}/out", processes=2))
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_large_job_in_this_process_has_a_worker_for_each_core_if_it_has_work_for_them(monkeypatch):
    monkeypatch.setattr("pipeline.beam.memory_budget.count_cores", lambda: 64)
    options = PrepareOptions(("raw",), "schema.yaml", "out", memory=1500 * 10**6)
    large = [RawFile("none", 2**29)] * 2
    assert _count_workers(options, large, {}) == _count_workers(options, large, {"runner": "DirectRunner"}) == 8
    for megabytes, expected in ((1, 0), (16, 2), (40, 2), (64, 4), (1000, 8)):
        assert _count_workers(options, [RawFile("none", megabytes * 2**20)], {}) == expected
    for of_beam in ({"direct_num_workers": 2}, {"runner": "FlinkRunner"}):
        assert _count_workers(options, large, of_beam) == 0
        assert _count_workers(dataclasses.replace(options, processes=3), [], of_beam) == 3


def test_workers_that_were_started_early_are_those_of_the_next_pool(tmp_path, monkeypatch):
    (tmp_path / "raw").write_bytes(bytes(1000))
    monkeypatch.setattr("pipeline.beam.memory_budget.count_cores", lambda: 2)
    started, module = [], early_workers.STAGES
    monkeypatch.setattr(early_workers, "start_early", lambda number, module: started.append(number))
    raw = [str(tmp_path / "raw"), str(tmp_path), str(tmp_path / "none")]
    for small, processes in ((1001, None), (1000, None), (10**9, 1), (0, 0)):
        monkeypatch.setattr("pipeline.beam.memory_budget._SMALL_BYTES", small)
        start_early_workers(raw, processes=processes, memory=None)
    assert started == [0, 2, 1, 0]
    workers.start_early(2, module)
    early = list(workers._early[module])
    pools = [WorkerPool(1, module), WorkerPool(1, module)]
    assert pools[0]._workers == early[1:] and pools[1]._workers[0] not in early
    assert early[0]._process.returncode == -signal.SIGKILL and not workers._early
    assert [pool.submit(abs, -1).result() for pool in pools] == [1, 1]
    for pool in pools:
        pool.close()


def test_workers_of_a_command_that_fails_at_once_end_without_a_word(tmp_path):
    command = ["prepare", "none", "--schema", "none", "--output", str(tmp_path)]
    for delay in ("pass", "time.sleep(1)"):  # before and after the workers are ready
        program = (
            "import sys, time, lengthwise; from pipeline.beam import early_workers as e; e.start_early(2, e.STAGES); "
            f"{delay}; sys.exit(lengthwise.main(sys.argv[1:]))"
        )
        done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (
            1,
            "lengthwise prepare: none: cannot be read: No such file or directory.\n",
        )


@pytest.mark.parametrize("flags", [(), ("--append",), ("--direct_num_workers", "2"), ("--streaming", "--once")])
def test_the_command_starts_workers_early_for_a_new_dataset_in_this_process(tmp_path, monkeypatch, flags):
    def stop(*arguments, **options):
        raise UserError(f"started {arguments}")

    monkeypatch.setattr(early_workers, "start_early", stop)
    command = ["prepare", str(tmp_path / "none"), "--schema", "none", "--output", str(tmp_path / "out"), *flags]
    with pytest.raises(UserError, match="started" if not flags else "none"):
        pipeline.main.prepare([*command[1:], "--processes", "2"])


def test_a_small_compressed_file_of_many_records_is_done_by_workers(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.beam.memory_budget.count_cores", lambda: 2)
    rows = b"".join(b'{"id":%d,"x":[[1,2]],"y":"a"}\n' % n for n in range(80_000))
    (tmp_path / "raw").write_bytes(gzip.compress(rows, 1))
    (tmp_path / "plain").write_bytes(rows[: len(rows) // 2])
    raw, plain = ([RawFile(f"{tmp_path}/{name}", (tmp_path / name).stat().st_size)] for name in ("raw", "plain"))
    assert raw[0].num_bytes < plain[0].num_bytes
    options = PrepareOptions(("raw",), "schema.yaml", "out")
    assert (_count_workers(options, raw, {}), _count_workers(options, plain, {})) == (2, 0)
    started = []
    monkeypatch.setattr(prepare_module, "start_workers", lambda number, _: started.append(number))
    _start_workers(options, raw, {})
    assert started == [2]
    assert KeptWorkers(None, 300 * 10**6).get(raw) is None
    pool = KeptWorkers(None)
    assert pool.get(plain) is None
    assert pool.get(raw).num_workers == 2
    pool.close()


def test_a_failed_job_leaves_no_file_that_a_worker_was_still_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", 200_000)
    rows = [json.dumps({"id": n, "x": [[n, 0.5]] * 9, "y": "ab"[n % 2]}) for n in range(30_000)]
    (tmp_path / "raw").write_text("\n".join(rows))
    (tmp_path / "gone.jsonl").write_text(rows[0])
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    found = find_all_files([f"{tmp_path}/gone.jsonl", f"{tmp_path}/raw"])
    monkeypatch.setattr("pipeline.beam.prepare.find_all_files", lambda _: found)
    monkeypatch.setattr("pipeline.beam.prepare.check_free_space", lambda *_: (tmp_path / "gone.jsonl").unlink())
    with pytest.raises(UserError, match="gone.jsonl"):
        prepare(PrepareOptions(("raw",), f"{tmp_path}/schema.yaml", f"{tmp_path}/out", processes=2))
    time.sleep(0.5)
    assert not list((tmp_path / "out").rglob("*.*"))


def test_a_pool_is_pickled_as_itself_in_its_process_and_as_none_elsewhere(pool):
    assert pickle.loads(pickle.dumps(pool)) is pool
    assert pool.submit(type, pool).result() is type(None)


def test_calls_without_a_pool_run_immediately_and_in_order():
    calls = PendingCalls(None)
    results = [result for n in range(9) for result in calls.call(divmod, n, 7)]
    assert results == [divmod(n, 7) for n in range(9)]
    assert list(calls.finish()) == []


def test_calls_in_a_pool_give_all_results_in_order(pool):
    calls = PendingCalls(pool)
    results = [result for n in range(9) for result in calls.call(int, f"{n}", base=16)]
    assert results == list(range(9 - pool.num_workers - 1))
    assert results + list(calls.finish()) == list(range(9))


def test_calls_wait_until_the_input_of_those_that_have_not_ended_is_small_enough(pool, monkeypatch):
    monkeypatch.setattr(workers, "_HELD_BYTES", 100)
    calls = PendingCalls(pool)

    def call(number, num_bytes):
        found = list(calls.make_room(num_bytes))
        assert list(calls.call_with(num_bytes, abs, number)) == []
        return found

    assert call(0, 60) == [] and call(1, 40) == []
    assert call(2, 10) == [0]  # 40 + 10 bytes
    assert call(3, 900) == [1, 2]  # one call may have more
    assert call(4, 1) == [3]
    assert list(calls.finish()) == [4]


def test_large_lines_reach_a_worker_with_all_other_values(monkeypatch):
    monkeypatch.setattr(workers, "_LARGE_BYTES", 1000)
    lines = [bytearray(b"a" * 1000), b"b" * 1000, bytearray(b"c"), bytearray(b"d" * 2000)]
    batch = json_lines.LineBatch("raw", 0, [1, 2, 3, 4], [0, 1, 2, 3], lines, [b""] * 4, 9)
    pickled = pickle.dumps([batch, np.arange(1000)], 5)
    for sent in (
        [batch, np.arange(1000)],
        pickle.loads(pickled),
        pickle.loads(pickle.dumps([batch, np.arange(1000)], 4)),
    ):
        one, other = multiprocessing.Pipe()
        with one, other, concurrent.futures.ThreadPoolExecutor(1) as thread:
            copied = thread.submit(workers._receive, other)
            workers._send(one, sent)
            found, numbers = copied.result()
        assert type(found) is json_lines.LineBatch and found == batch
        numbers += 1  # an array can still be changed
        assert numbers.tolist() == list(range(1, 1001))


@pytest.mark.proof
def test_a_job_that_ends_keeps_the_workers_of_another_job_in_the_same_process(tmp_path, monkeypatch):
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    rows = [json.dumps({"id": n, "x": [[n, 0.5]], "y": "ab"[n % 2]}) for n in range(20)]
    (tmp_path / "raw.jsonl").write_text("\n".join(rows))
    first, second = (
        PrepareOptions((f"{tmp_path}/raw.jsonl",), f"{tmp_path}/schema.yaml", f"{tmp_path}/{name}", processes=1)
        for name in ("first", "second")
    )
    second_has_workers, first_is_done = threading.Event(), threading.Event()
    run_job = prepare_module._run_job

    def run_in_turn(options, *arguments):
        if options is first:
            futures.append(thread.submit(prepare, second))
            assert second_has_workers.wait(600)
        else:
            second_has_workers.set()
            assert first_is_done.wait(600)
        return run_job(options, *arguments)

    monkeypatch.setattr(prepare_module, "_run_job", run_in_turn)
    futures = []
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            manifest = prepare(first)
        finally:
            first_is_done.set()
        assert futures[0].result().fingerprint == manifest.fingerprint
