"""Deals the GPUs of this machine to its workers. NCCL, which sums over the workers, refuses a GPU that two share."""

import os
import pathlib
import re
import subprocess
from collections.abc import Sequence

from pipeline.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_COMMAND = ("nvidia-smi", "-L")
_COMMAND_SECONDS = 60.0
_DEVICE_FILES = pathlib.Path("/dev")


def deal_gpus(gpus: Sequence[str], *, num_workers: int) -> list[tuple[str, ...]]:
    """Returns the GPUs of each worker: all have the same number, and those that are left over have no worker.

    >>> deal_gpus(["0", "1", "2", "3", "4"], num_workers=2)
    [('0', '1'), ('2', '3')]

    Raises:
        UserError: There are GPUs, but fewer than workers.
    """
    share = len(gpus) // num_workers
    if gpus and not share:
        raise UserError(
            f"local_workers is {num_workers}, but there {'is 1 GPU' if len(gpus) == 1 else f'are {len(gpus)} GPUs'} "
            f"({', '.join(gpus)}), and workers cannot share one. Use --local_workers {len(gpus)}; without the flag, "
            f"one process trains on all GPUs. To train on the CPU, set {VISIBLE} to an empty value."
        )
    return [tuple(gpus[share * number : share * (number + 1)]) for number in range(num_workers)]


def find_gpus() -> list[str]:
    """Returns the GPUs that TensorFlow would use in this process, each as an entry of CUDA_VISIBLE_DEVICES.

    It does not start CUDA, which would take memory of every GPU.
    """
    visible = os.environ.get(VISIBLE)
    if visible is not None and not visible.strip():
        return []
    found = _list_gpus()
    if not found or not _has_gpu_support():
        return []
    return found if visible is None else _select(visible, found)


def _list_gpus() -> list[str]:
    """Returns the GPUs of this machine: their numbers, or the UUIDs of the parts of a GPU that is divided (MIG)."""
    try:
        done = subprocess.run(_COMMAND, capture_output=True, text=True, timeout=_COMMAND_SECONDS, errors="replace")
    except FileNotFoundError:
        # A container may lack the program.
        return [str(number) for number, _ in enumerate(_DEVICE_FILES.glob("nvidia[0-9]*"))]
    except (OSError, subprocess.TimeoutExpired):
        return []
    return parse_list(done.stdout) if done.returncode == 0 else []


def parse_list(text: str) -> list[str]:
    """Returns the GPUs in the output of `nvidia-smi -L`.

    >>> parse_list("GPU 0: NVIDIA H200 (UUID: GPU-1a)\\nGPU 1: NVIDIA H200 (UUID: GPU-2b)")
    ['0', '1']
    >>> parse_list("GPU 0: NVIDIA A100 (UUID: GPU-1a)\\n  MIG 1g.5gb Device 0: (UUID: MIG-7)")
    ['MIG-7']
    """
    found: list[str] = []
    for line in text.splitlines():
        if match := re.match(r"GPU (\d+):", line):
            found.append(match[1])
        elif match := re.match(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)", line):
            if found and found[-1].isdecimal():
                found.pop()  # a divided GPU is used by its parts only
            found.append(match[1])
    return found


def _select(visible: str, found: Sequence[str]) -> list[str]:
    """Returns the entries of CUDA_VISIBLE_DEVICES up to the first one that names no GPU, as CUDA does."""
    selected: list[str] = []
    for entry in map(str.strip, visible.split(",")):
        names_gpu = entry in found if entry.isdecimal() else entry.startswith(("GPU-", "MIG-"))
        if not names_gpu or entry in selected:
            break
        selected.append(entry)
    return selected


def _has_gpu_support() -> bool:
    """Returns whether this TensorFlow can use GPUs at all."""
    import tensorflow as tf

    return bool(tf.test.is_built_with_gpu_support())
