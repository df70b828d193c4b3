"""Deals each global batch of an epoch to the replicas, so that their steps are as even as can be."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.format.manifest import TRAIN
from pipeline.schema.record import Array
from trainer.batching.plan import Plan
from trainer.batching.window import WindowPlan, reader_of
from trainer.data.dataset import Dataset
from trainer.data.padding import add_filler_rows
from trainer.devices.replicas import Replicas
from trainer.reading.batches import READY, numbered_batches
from trainer.reading.window_reader import WindowReader


@dataclasses.dataclass(frozen=True)
class Batch:
    """A global batch.

    Attributes:
        parts: (features, label, weight) of each replica of this process.
        records, steps, padded_steps: Of all replicas together; rows that only fill up are no records.
        rows: Gives int64[records], the place of each record in `Dataset.index("train")`.
    """

    parts: tuple[Any, ...]
    records: int
    steps: int
    padded_steps: int
    rows: Callable[[], Array]


class Feed:
    """The batches of the train split by plans for one reader, dealt to a team.

    Attributes:
        element_spec: Of a part, whatever the way of batching.
    """

    def __init__(self, dataset: Dataset, team: Replicas, *, seed: int) -> None:
        self._dataset, self._team, self._seed = dataset, team, seed
        # Each replica reads its own records only; for ways other than `window` they only tell what a part is.
        options: dict[str, Any] = {"num_readers": team.num_replicas, "with_rows": False}
        self._readers = [
            WindowReader(dataset, TRAIN, reader_index=replica, vocabularies=dataset.vocabularies(), **options)
            for replica in range(team.first_replica, team.first_replica + team.num_local_replicas)
        ]
        self.element_spec = self._readers[0].dataset.element_spec
        self._parts = tf.data.Dataset.zip(tuple(reader.dataset.prefetch(READY) for reader in self._readers))

    def batches(self, plan: Plan, *, epoch: int, first_batch: int = 0) -> Iterator[Batch]:
        """The batches of an epoch by its plan, from `first_batch` on; one epoch at a time."""
        if isinstance(plan, WindowPlan):
            return self._window_batches(plan.deal(self._team.num_replicas), first_batch)
        whole = numbered_batches(self._dataset, TRAIN, plan, seed=self._seed, epoch=epoch, first_batch=first_batch)
        return self._dealt(whole)

    def _window_batches(self, plan: WindowPlan, first_batch: int) -> Iterator[Batch]:
        for reader in self._readers:
            reader.follow(plan, first_batch=first_batch)
        each = [plan.batch_shapes(reader) for reader in range(plan.num_readers)]
        steps = np.sum([part.steps for part in each], axis=0)
        padded = np.sum([part.rows * part.pad_length for part in each], axis=0)
        for number, parts in enumerate(self._parts, first_batch):
            records, rows = int(plan.count[number]), functools.partial(plan.all_rows, number)
            yield Batch(parts, records, int(steps[number]), int(padded[number]), rows)

    def _dealt(self, whole: tf.data.Dataset) -> Iterator[Batch]:
        team, some_feature = self._team, next(iter(self._dataset.schema.steps))

        @tf.autograph.experimental.do_not_convert
        def deal(features: Any, label: Any, weight: Any, row: Any) -> Any:
            shape = tf.shape(features[some_feature])
            rows = -(-shape[0] // team.num_replicas) * team.num_replicas
            parts = tuple(part[:3] for part in _deal((features, label, weight, row), team))
            return parts, tf.reduce_sum(features["length"]), rows * shape[1], row

        for parts, steps, padded, row in whole.map(deal):
            yield Batch(parts, len(row), int(steps), int(padded), row.numpy)


def _deal(batch: Any, team: Replicas) -> tuple[Any, ...]:
    """(features, label, weight, row) of all replicas -> that of each replica of this process."""
    if team.num_replicas == 1:
        return (batch,)
    length = batch[0]["length"]
    order = tf.argsort(length, direction="DESCENDING", stable=True)
    reader = reader_of(tf.range(tf.size(length)), team.num_replicas)
    rows = -(-tf.size(length) // team.num_replicas)

    def part(replica: int) -> Any:
        mine = tf.boolean_mask(order, reader == replica)
        return add_filler_rows(tf.nest.map_structure(lambda value: tf.gather(value, mine), batch), rows)

    return tuple(part(team.first_replica + number) for number in range(team.num_local_replicas))
