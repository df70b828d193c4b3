"""The workers of a machine get GPUs of their own, without CUDA being started."""

import itertools

import pytest

from pipeline.errors import UserError
from trainer.devices import local_gpus
from trainer.devices.local_gpus import deal_gpus, find_gpus, parse_list

FOUR = "".join(f"GPU {n}: NVIDIA H200 (UUID: GPU-{n}{n}-ab)\n" for n in range(4))
DIVIDED = (
    "GPU 0: NVIDIA A100 (UUID: GPU-0)\n  MIG 1g.5gb     Device  0: (UUID: MIG-a)\n  MIG 2g.10gb    Device  1: "
    "(UUID: MIG-b)\nGPU 1: NVIDIA A100 (UUID: GPU-1)\n"
)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns a function that puts a nvidia-smi with this output and status in place of the machine's."""
    monkeypatch.delenv(local_gpus.VISIBLE, raising=False)
    monkeypatch.setattr(local_gpus, "_has_gpu_support", lambda: True)
    monkeypatch.setattr(local_gpus, "_DEVICE_FILES", tmp_path)
    monkeypatch.setattr(local_gpus, "_COMMAND", (str(tmp_path / "nvidia-smi"),))

    def put(text, status=0):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ncat <<'END'\n{text}END\nexit {status}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)

    return put


@pytest.mark.parametrize("num_gpus", range(9))
@pytest.mark.parametrize("num_workers", range(1, 5))
def test_gpus_are_dealt_evenly_and_to_one_worker_each(num_gpus, num_workers):
    gpus = [str(number) for number in range(num_gpus)]
    if 0 < num_gpus < num_workers:
        with pytest.raises(
            UserError, match=f"local_workers is {num_workers}, but there .* Use --local_workers {num_gpus};"
        ):
            deal_gpus(gpus, num_workers=num_workers)
        return
    dealt = deal_gpus(gpus, num_workers=num_workers)
    assert [len(own) for own in dealt] == [num_gpus // num_workers] * num_workers
    used = list(itertools.chain(*dealt))
    assert used == gpus[: len(used)]


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1", "2", "3"]),
        ("2,0", ["2", "0"]),
        (" 3 , 1", ["3", "1"]),
        ("GPU-22,GPU-00", ["GPU-22", "GPU-00"]),
        ("1,-1,2", ["1"]),  # CUDA ignores what follows an entry that names no GPU
        ("1,7,2", ["1"]),
        ("1,1", ["1"]),
        ("NoDevFiles", []),
        ("", []),
        (" ", []),
    ],
)
def test_the_gpus_are_those_that_cuda_would_use(machine, monkeypatch, visible, expected):
    machine(FOUR)
    if visible is not None:
        monkeypatch.setenv(local_gpus.VISIBLE, visible)
    assert find_gpus() == expected


def test_a_machine_without_a_driver_or_without_a_tensorflow_for_gpus_has_none(machine, monkeypatch, tmp_path):
    assert find_gpus() == []
    for name in ("nvidia0", "nvidia1", "nvidiactl"):  # a container without the program
        (tmp_path / name).touch()
    assert find_gpus() == ["0", "1"]
    machine("No devices were found\n", status=6)
    assert find_gpus() == []
    machine(FOUR)
    monkeypatch.setattr(local_gpus, "_has_gpu_support", lambda: False)
    assert find_gpus() == []


def test_a_divided_gpu_is_used_by_its_parts():
    assert parse_list(DIVIDED) == ["MIG-a", "MIG-b", "1"]
