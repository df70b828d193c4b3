"""A function is called in a process of its own, which sees no GPU."""

import subprocess

import pytest

from pipeline.errors import UserError
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


@pytest.mark.proof
def test_a_subprocess_sees_no_gpu_and_its_output_is_not_the_result(capfd):
    assert call_in_subprocess("os:system", 'echo "GPUs: <$CUDA_VISIBLE_DEVICES>"') == 0
    assert "GPUs: <>\n" in capfd.readouterr().err
