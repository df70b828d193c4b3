"""Deals each global batch of an epoch to the replicas, so that their steps are as even as can be."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.manifest import TRAIN
from trainer.dataset import Dataset
from trainer.parsing import fill_rows
from trainer.plan import Plan
from trainer.reader import numbered_batches
from trainer.team import Team
from trainer.windows import WindowPlan, dealt_to

Array = np.ndarray[Any, Any]


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
    """The batches of an epoch of the train split by a plan for one reader, dealt to a team."""

    def __init__(
        self, dataset: Dataset, plan: Plan, team: Team, *, seed: int, epoch: int, first_batch: int = 0
    ) -> None:
        self._first_batch = first_batch
        place: dict[str, Any] = {"seed": seed, "epoch": epoch, "first_batch": first_batch}
        first, count = team.first_replica, team.num_local
        self._dealt = plan.deal(team.num_replicas) if isinstance(plan, WindowPlan) else None
        if self._dealt is not None:
            # Each replica reads its own records only.
            each = [
                numbered_batches(
                    dataset, TRAIN, self._dealt, reader_index=i, num_readers=team.num_replicas, with_rows=False, **place
                )
                for i in range(first, first + count)
            ]
            self._batches = tf.data.Dataset.zip(tuple(each))
            self.element_spec = each[0].element_spec
            return
        whole = numbered_batches(dataset, TRAIN, plan, **place)
        self.element_spec = whole.element_spec[:3]
        some_feature = next(iter(dataset.schema.steps))

        def deal(features: Any, label: Any, weight: Any, row: Any) -> Any:
            shape = tf.shape(features[some_feature])
            rows = -(-shape[0] // team.num_replicas) * team.num_replicas
            parts = tuple(part[:3] for part in _deal((features, label, weight, row), team))
            return parts, tf.reduce_sum(features["length"]), rows * shape[1], row

        self._batches = whole.map(deal)

    def __iter__(self) -> Iterator[Batch]:
        if self._dealt is None:
            for parts, steps, padded, row in self._batches:
                yield Batch(parts, len(row), int(steps), int(padded), row.numpy)
            return
        plan = self._dealt
        each = [plan.batches(reader) for reader in range(plan.num_readers)]
        steps = np.sum([part.steps for part in each], axis=0)
        padded = np.sum([part.rows * part.pad_length for part in each], axis=0)
        for number, parts in enumerate(self._batches, self._first_batch):
            records, rows = int(plan.count[number]), functools.partial(plan.all_rows, number)
            yield Batch(parts, records, int(steps[number]), int(padded[number]), rows)


def _deal(batch: Any, team: Team) -> tuple[Any, ...]:
    """(features, label, weight, row) of all replicas -> that of each replica of this process."""
    if team.num_replicas == 1:
        return (batch,)
    length = batch[0]["length"]
    order = tf.argsort(length, direction="DESCENDING", stable=True)
    reader = dealt_to(tf.range(tf.size(length)), team.num_replicas)
    rows = -(-tf.size(length) // team.num_replicas)

    def part(replica: int) -> Any:
        mine = tf.boolean_mask(order, reader == replica)
        return fill_rows(tf.nest.map_structure(lambda value: tf.gather(value, mine), batch), rows)

    return tuple(part(team.first_replica + number) for number in range(team.num_local))
