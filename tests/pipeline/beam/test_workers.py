"""Worker processes: what they return, raise and count, and that none is left behind."""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from pipeline import progress
from pipeline.beam import prepare_files
from pipeline.beam.prepare import PrepareOptions, _count_workers, prepare
from pipeline.beam.workers import WorkerPool
from pipeline.errors import UserError
from pipeline.raw import json_lines
from pipeline.raw.find_files import find_files

SCHEMA = "id: id\nsteps: {x: {dtype: float32, shape: [2]}}\nlabel: {name: y, kind: class, classes: [a, b]}\n"


@pytest.fixture(scope="module")
def pool():
    made = WorkerPool(2, "pipeline.build.stages")
    yield made
    made.close()


def test_a_function_gives_what_it_gives_here_and_raises_what_it_raises(pool):
    futures = [pool.submit(divmod, n, 7) for n in range(50)]
    assert [future.result() for future in futures] == [divmod(n, 7) for n in range(50)]
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 1, 0).result()
    assert pool.submit(os.getpid).result() != os.getpid()
    # Without a copy of this process in it: what it loads is what it needs.
    loaded = pool.submit(eval, "set(__import__('sys').modules)").result()
    assert "pyarrow" in loaded and not {"apache_beam", "tensorflow", "pytest"} & loaded


def test_what_a_worker_counts_is_counted_here(pool):
    before = dict(progress._counts)
    pool.submit(progress.add_rejects, 3).result()
    assert progress._counts["rejects"] == before.get("rejects", 0) + 3


def test_a_worker_that_is_killed_is_told_in_one_line():
    pool = WorkerPool(1, "pipeline.build.stages")
    try:
        with pytest.raises(UserError, match=r"was ended by SIGKILL \(the system does so where memory is short"):
            pool.submit(eval, "__import__('os').kill(__import__('os').getpid(), 9)").result()
    finally:
        pool.close()
    pool = WorkerPool(1, "pipeline.build.stages")
    try:
        with pytest.raises(UserError, match="ended with status 3"):
            pool.submit(os._exit, 3).result()
    finally:
        pool.close()


def is_there(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not pathlib.Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_end_with_the_process_that_started_them_even_in_the_middle_of_a_call():
    program = (
        "import os, signal, time; from pipeline.beam.workers import WorkerPool; "
        "pool = WorkerPool(2, 'pipeline.build.stages'); "
        "print(*[pool.submit(os.getpid).result() for _ in range(9)], flush=True); "
        "[pool.submit(time.sleep, 60) for _ in range(2)]; time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pids = set(map(int, done.stdout.split()))
    end = time.monotonic() + 5
    while any(map(is_there, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_there, pids))


def contents(folder):
    """All that does not differ from one run to the next."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (generation,) = manifest["generations"]
    files = {
        str(path.relative_to(folder)).replace(generation, ""): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    return files, {name: manifest[name] for name in ("splits", "statistics", "rejected", "sources", "fingerprint")}


@pytest.mark.parametrize("compressed", [False, True])
def test_worker_processes_make_the_same_dataset(tmp_path, monkeypatch, compressed):
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", 20_000)
    monkeypatch.setattr(prepare_files, "GZIP_BATCH_BYTES", 10_000)
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
        files, told = contents(output)
        generation = json.loads((output / "manifest.json").read_text())["generations"][0]
        found.append((files, json.loads(json.dumps(told).replace(generation, ""))))
    assert found[0] == found[1]
    assert {"not_json", "missing_field", "duplicate_id"} == set(found[0][1]["rejected"]["by_reason"])


def test_the_number_of_workers_is_that_of_the_cores_where_it_is_worth_it(monkeypatch):
    monkeypatch.setattr("pipeline.beam.prepare.count_cores", lambda: 2)
    assert _count_workers(2**30, {}) == _count_workers(2**30, {"runner": "DirectRunner"}) == 2
    assert _count_workers(2**20, {}) == 0
    assert _count_workers(2**30, {"direct_num_workers": 2}) == _count_workers(2**30, {"runner": "FlinkRunner"}) == 0
    monkeypatch.setattr("pipeline.beam.prepare.count_cores", lambda: 64)
    assert _count_workers(2**30, {}) == 2


def test_a_worker_that_still_writes_leaves_nothing_of_a_job_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", 200_000)
    rows = [json.dumps({"id": n, "x": [[n, 0.5]] * 9, "y": "ab"[n % 2]}) for n in range(30_000)]
    (tmp_path / "raw").write_text("\n".join(rows))
    (tmp_path / "gone.jsonl").write_text(rows[0])
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    found = find_files([f"{tmp_path}/gone.jsonl", f"{tmp_path}/raw"])
    monkeypatch.setattr("pipeline.beam.prepare.find_files", lambda _: found)
    monkeypatch.setattr("pipeline.beam.prepare.check_free_space", lambda *_: (tmp_path / "gone.jsonl").unlink())
    with pytest.raises(UserError, match="gone.jsonl"):
        prepare(PrepareOptions(("raw",), f"{tmp_path}/schema.yaml", f"{tmp_path}/out", processes=2))
    time.sleep(0.5)
    assert not list((tmp_path / "out").rglob("*.*"))
