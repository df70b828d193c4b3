"""Finds the replicas that train together: the devices of this process, and the other workers in TF_CONFIG."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.errors import UserError
from trainer.config import Strategy
from trainer.devices.tensorflow_errors import first_line
from trainer.devices.tensorflow_setup import grow_gpu_memory

TF_CONFIG = "TF_CONFIG"


@dataclasses.dataclass(frozen=True)
class Replicas:
    """The replicas of a model that are trained together, as seen from one worker process.

    Attributes:
        strategy: TensorFlow's strategy, which runs a function on each replica.
        num_workers: Number of worker processes.
        worker: Number of this process, from 0. Worker 0 is the chief, the only one that writes files.
    """

    strategy: tf.distribute.Strategy
    num_workers: int = 1
    worker: int = 0

    @property
    def is_chief(self) -> bool:
        return self.worker == 0

    @property
    def num_replicas(self) -> int:
        """Number of replicas of all workers."""
        return self.strategy.num_replicas_in_sync

    @property
    def num_local_replicas(self) -> int:
        """Number of replicas of this worker."""
        return self.num_replicas // self.num_workers

    @property
    def first_replica(self) -> int:
        """Number of this worker's first replica; its other replicas have the numbers that follow."""
        return self.worker * self.num_local_replicas

    def broadcast(self, value: Any = None) -> Any:
        """Returns the value that the chief passes, which must be serializable as JSON, on every worker.

        Every worker must call this; each waits for all others.
        """
        if self.num_workers == 1:
            return value
        data = np.frombuffer(json.dumps(value).encode() if self.is_chief else b"", np.uint8).astype(np.int32)
        size = int(self._sum(np.array([len(data)], np.int32))[0])
        return json.loads(self._sum(data if self.is_chief else np.zeros(size, np.int32)).astype(np.uint8).tobytes())

    def from_chief(self, function: Callable[[], Any]) -> Any:
        """Returns on every worker what a function returns on the chief, which must be serializable as JSON.

        Every worker must call this; each waits for all others.

        Raises:
            UserError: The function raised it on the chief; all workers raise it.
        """
        value, error = None, None
        if self.is_chief:
            try:
                value = function()
            except UserError as raised:
                error = raised
        value, message = self.broadcast([value, error and str(error)])
        if message is not None:
            raise error or UserError(f"The chief stopped: {message}")
        return value

    def any_worker(self, value: bool) -> bool:
        """Returns whether the value is true on at least one worker.

        Every worker must call this; each waits for all others.
        """
        return value if self.num_workers == 1 else bool(self._sum(np.array([value], np.int32))[0])

    def combine(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Returns on every worker an array of 32-bit values, of which each is zero on all workers but one.

        Every worker must call this, with the same shape; each waits for all others.
        """
        if self.num_workers == 1:
            return values
        bits = np.ascontiguousarray(values).view(np.int32).reshape(-1)
        return self._sum(bits).view(values.dtype).reshape(values.shape)

    def _sum(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Returns the sum of int32[n] over the workers."""
        return self._all_reduce(tf.constant(values)).numpy()

    @functools.cached_property
    def _all_reduce(self) -> Any:
        def reduce_on_replica(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = tf.get_static_value(context.replica_id_in_sync_group) == self.first_replica
            own = tf.identity(values) if is_first else tf.zeros_like(values)  # each worker's values count once
            return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False, jit_compile=False)
        def all_reduce(values: tf.Tensor) -> tf.Tensor:
            return self.strategy.experimental_local_results(self.strategy.run(reduce_on_replica, (values,)))[0]

        return all_reduce


def find_replicas(strategy: Strategy) -> Replicas:
    """Returns the replicas that `--strategy` selects.

    Call this before any other use of TensorFlow: its collective operations require that.

    Args:
        strategy: "auto" selects every worker in TF_CONFIG if it is set, else every GPU of this machine, else its CPU.
            "one" selects one device, "mirrored" every GPU of this machine, "multi_worker" every worker in TF_CONFIG.

    Raises:
        UserError: TF_CONFIG or the devices do not match the strategy.
    """
    grow_gpu_memory()
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
            f"--strategy {strategy} trains in one process, but {TF_CONFIG} lists {cluster[0]} workers, and each of "
            f"them would write into the run. Use --strategy auto, or unset {TF_CONFIG}."
        )
    if strategy == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return Replicas(_mirrored_strategy(tuple(device.name for device in devices)))
    return Replicas(tf.distribute.get_strategy())


# A process makes each strategy once. A second one would number its collective operations from the start again, so that
# they would meet those of the first.
@functools.cache
def _mirrored_strategy(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _multi_worker_strategy() -> tf.distribute.Strategy:
    return tf.distribute.MultiWorkerMirroredStrategy()


def _multi_worker(cluster: tuple[int, int] | None) -> Replicas:
    if cluster is None:
        raise UserError(
            f"--strategy multi_worker needs {TF_CONFIG}, which is not set. A cluster sets it on each host; on a single "
            "machine, --local_workers N does."
        )
    try:
        strategy = _multi_worker_strategy()
    except tf.errors.UnknownError as error:
        raise UserError(
            f"The workers cannot connect: {first_line(error)}. The port of this worker in {TF_CONFIG} may be in use: "
            "wait until the process that uses it has ended, or choose another port."
        ) from None
    except RuntimeError as error:
        raise UserError(
            f"The workers cannot connect: {first_line(error)}. In Python, call train before any other use of "
            "TensorFlow."
        ) from None
    return Replicas(strategy, *cluster)


def _read_cluster() -> tuple[int, int] | None:
    """Returns (number of workers, number of this worker) from TF_CONFIG, or None if it is not set.

    The chief has the number 0.
    """
    text = os.environ.get(TF_CONFIG)
    if not text:
        return None
    try:
        config = json.loads(text)
        if not all(isinstance(addresses, list) for addresses in config["cluster"].values()):
            raise ValueError
        cluster = {name: len(addresses) for name, addresses in config["cluster"].items()}
        kind, index = config["task"]["type"], int(config["task"]["index"])
        first = {"chief": 0, "worker": cluster.get("chief", 0)}[kind]
        if not 0 <= index < cluster[kind] or cluster.get("chief", 0) > 1 or set(cluster) - {"chief", "worker"}:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{TF_CONFIG} is {text!r}, expected a cluster of workers (with at most one chief) and the task of this "
            'process, for example {"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", '
            '"index": 0}}'
        ) from None
    return sum(cluster.values()), first + index
