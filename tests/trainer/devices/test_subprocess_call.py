"""A function is called in a process of its own, which sees no GPU."""

import json
import subprocess
import sys

import children
import pytest

from pipeline.errors import UserError
from trainer.devices import subprocess_call
from trainer.devices.subprocess_call import call_in_subprocess


@pytest.mark.proof
def test_a_process_that_dies_gives_an_error_of_one_line(capfd):
    with pytest.raises(UserError, match="that called os:abort was killed by SIGABRT. A file that it read may be dam"):
        call_in_subprocess("os:abort")
    capfd.readouterr()


def test_the_environment_of_a_subprocess_hides_the_gpus(monkeypatch):
    seen = []

    def run(command, env, **options):
        seen.append(env["CUDA_VISIBLE_DEVICES"])
        return subprocess.CompletedProcess(command, 0, stdout=b'{"result": 5}')

    monkeypatch.setattr(subprocess, "run", run)
    assert (call_in_subprocess("os:getpid"), seen) == (5, [""])


def call_in_forked_process(function, arguments):
    sys.argv = ["subprocess_call", function, arguments]
    subprocess_call._main()


@pytest.mark.parametrize(
    ("function", "expected"), [("time:monotonic_ns", "result"), ("trainer.runs.contents:refuse_foreign_files", "error")]
)
def test_the_process_prints_the_result_or_the_error_as_json(tmp_path, function, expected):
    arguments = json.dumps([str(tmp_path)] if expected == "error" else [])
    (tmp_path / "foreign").mkdir()
    child = children.Child(tmp_path / "output", call_in_forked_process, function, arguments)
    assert child.wait() == 0, child.lines
    assert list(json.loads(child.lines[-1])) == [expected]


@pytest.mark.proof
def test_a_subprocess_sees_no_gpu_and_its_output_is_not_the_result(capfd):
    assert call_in_subprocess("os:system", 'echo "GPUs: <$CUDA_VISIBLE_DEVICES>"') == 0
    assert "GPUs: <>\n" in capfd.readouterr().err
