"""Finds who computes a run: the devices of this process, and the other workers that TF_CONFIG tells of."""

import contextlib
import dataclasses
import functools
import json
import os
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from trainer.config import Strategy

TF_CONFIG = "TF_CONFIG"


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The replicas of a model that are trained together, seen from one process.

    Attributes:
        num_workers: Processes; this one is number `worker`, and number 0 is the chief, who alone writes.
        num_replicas: Of all workers together; those of this one are `first_replica` and the next ones.
    """

    strategy: tf.distribute.Strategy
    num_workers: int = 1
    worker: int = 0

    @property
    def is_chief(self) -> bool:
        return self.worker == 0

    @property
    def num_replicas(self) -> int:
        return self.strategy.num_replicas_in_sync

    @property
    def num_local_replicas(self) -> int:
        return self.num_replicas // self.num_workers

    @property
    def first_replica(self) -> int:
        return self.worker * self.num_local_replicas

    def broadcast(self, value: Any = None) -> Any:
        """What the chief passes, on all workers: anything that JSON can say. Waits until all of them are here."""
        if self.num_workers == 1:
            return value
        data = np.frombuffer(json.dumps(value).encode() if self.is_chief else b"", np.uint8).astype(np.int32)
        size = int(self._sum(np.array([len(data)], np.int32))[0])
        return json.loads(self._sum(data if self.is_chief else np.zeros(size, np.int32)).astype(np.uint8).tobytes())

    def any_worker(self, value: bool) -> bool:
        """Whether it is true on one of the workers at least. Waits until all of them are here."""
        return value if self.num_workers == 1 else bool(self._sum(np.array([value], np.int32))[0])

    def _sum(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """int32[n] of each worker, added up."""
        return self._add(tf.constant(values)).numpy()

    @functools.cached_property
    def _add(self) -> Any:
        def one(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = tf.get_static_value(context.replica_id_in_sync_group) == self.first_replica
            mine = tf.identity(values) if is_first else tf.zeros_like(values)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, mine)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False, jit_compile=False)
        def add(values: tf.Tensor) -> tf.Tensor:
            return self.strategy.experimental_local_results(self.strategy.run(one, (values,)))[0]

        return add


def find_replicas(strategy: Strategy) -> Replicas:
    """The team by `--strategy`. Call it before anything else of TensorFlow, as its collectives demand.

    auto: every worker that TF_CONFIG tells of; or with none, every GPU of this machine; or its one device.

    Raises:
        UserError: TF_CONFIG or the devices are not what the strategy needs.
    """
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # it is in use already, as it was set up
            tf.config.experimental.set_memory_growth(gpu, True)
    cluster = _read_cluster()
    if strategy == "auto":
        if cluster is not None and cluster[0] > 1:
            strategy = "multi_worker"
        else:
            strategy = "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "one"
    if strategy == "multi_worker":
        return _multi_worker(cluster)
    if cluster is not None and cluster[0] > 1:
        raise UserError(
            f"--strategy {strategy} trains in one process, but {TF_CONFIG} tells of {cluster[0]} workers, which would "
            "all write. Choose --strategy auto, or unset it."
        )
    if strategy == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return Replicas(_mirrored(tuple(device.name for device in devices)))
    return Replicas(tf.distribute.get_strategy())


# One of each a process: a new one numbers its collectives from the start again, and they meet those of the old one.
@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _of_all_workers() -> tf.distribute.Strategy:
    return tf.distribute.MultiWorkerMirroredStrategy()


def _multi_worker(cluster: tuple[int, int] | None) -> Replicas:
    if cluster is None:
        raise UserError(
            f"--strategy multi_worker needs {TF_CONFIG}, which is not set. A cluster sets it on each host; on this "
            "machine alone, --local_workers N does."
        )
    try:
        strategy = _of_all_workers()
    except tf.errors.UnknownError as error:
        raise UserError(
            f"The workers cannot be joined: {error.message.splitlines()[0]}. The port of this worker in {TF_CONFIG} "
            "may be in use: wait until what was there before has ended, or name another."
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"The workers cannot be joined: {str(error).splitlines()[0]} In Python, call train before anything else "
            "of TensorFlow."
        ) from None
    return Replicas(strategy, *cluster)


def _read_cluster() -> tuple[int, int] | None:
    """(workers, number of this one) by TF_CONFIG, the chief being number 0; None where it is not set."""
    text = os.environ.get(TF_CONFIG)
    if not text:
        return None
    try:
        config = json.loads(text)
        if not all(isinstance(addresses, list) for addresses in config["cluster"].values()):
            raise ValueError
        cluster = {name: len(addresses) for name, addresses in config["cluster"].items()}
        kind, index = config["task"]["type"], int(config["task"]["index"])
        before = {"chief": 0, "worker": cluster.get("chief", 0)}[kind]
        if not 0 <= index < cluster[kind] or cluster.get("chief", 0) > 1 or set(cluster) - {"chief", "worker"}:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{TF_CONFIG} is {text!r}, expected a cluster of workers (and at most one chief) and this task, as in "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", "index": 0}}'
        ) from None
    return sum(cluster.values()), before + index
