"""Deals each global batch of an epoch to the replicas, with nearly the same number of steps for each."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.format.models import TRAIN
from pipeline.schema.record import Array
from trainer.batching.plan import Plan
from trainer.batching.stateful import StatefulPlan
from trainer.batching.window import WindowPlan, reader_of
from trainer.data.dataset import Dataset
from trainer.data.padding import add_filler_rows
from trainer.data.target import Vocabularies
from trainer.devices.replicas import Replicas
from trainer.reading.batches import PREFETCHED_BATCHES, planned_batches
from trainer.reading.chunk_reader import ChunkReader
from trainer.reading.window_reader import WindowReader


@dataclasses.dataclass(frozen=True)
class GlobalBatch:
    """The batch of one update.

    Attributes:
        parts: (features, label, weight) of each replica of this process.
        records, steps, padded_steps: Counts over all replicas. Filler rows are not records. Of a stateful plan, the
            records that end with the batch.
        rows: Returns int64[records], the places of the records in `Dataset.index("train")`.
    """

    parts: tuple[Any, ...]
    records: int
    steps: int
    padded_steps: int
    rows: Callable[[], Array]


class BatchDealer:
    """Reads the train split by a plan for one reader and deals each batch to the replicas.

    Args:
        vocabularies: Those of the run, which give the labels that are the next string their numbers.
        label_every_chunk, reset_state: See TrainConfig. For stateful plans.

    Attributes:
        element_spec: Spec of a part; the same for every way of batching.
    """

    def __init__(
        self,
        dataset: Dataset,
        replicas: Replicas,
        *,
        seed: int,
        vocabularies: Vocabularies,
        label_every_chunk: bool = False,
        reset_state: str = "record",
    ) -> None:
        self._dataset, self._replicas, self._seed, self._vocabularies = dataset, replicas, seed, vocabularies
        self._label_every_chunk, self._reset_state = label_every_chunk, reset_state
        # With the way `window`, each replica reads its own records only. For other ways, only the spec is used.
        options: dict[str, Any] = {"num_readers": replicas.num_replicas, "with_rows": False}
        self._readers = [
            WindowReader(dataset, TRAIN, reader_index=replica, vocabularies=vocabularies, **options)
            for replica in range(replicas.first_replica, replicas.first_replica + replicas.num_local_replicas)
        ]
        self.element_spec = self._readers[0].dataset.element_spec
        self._parts = tf.data.Dataset.zip(
            tuple(reader.dataset.prefetch(PREFETCHED_BATCHES) for reader in self._readers)
        )

    def batches(
        self, plan: Plan, *, epoch: int, first_batch: int = 0, dataset: Dataset | None = None
    ) -> Iterator[GlobalBatch]:
        """Yields the batches of an epoch from `first_batch` on. Only one epoch can be read at a time.

        Args:
            dataset: Another commit of the dataset, to which the plan belongs.
        """
        dataset = dataset or self._dataset
        if isinstance(plan, WindowPlan):
            return self._window_batches(plan.deal(self._replicas.num_replicas), first_batch, dataset)
        if isinstance(plan, StatefulPlan):
            return self._chunk_batches(plan, first_batch, dataset)
        order: dict[str, Any] = {"seed": self._seed, "epoch": epoch, "first_batch": first_batch}
        return self._dealt_batches(planned_batches(dataset, TRAIN, plan, vocabularies=self._vocabularies, **order))

    def _window_batches(self, plan: WindowPlan, first_batch: int, dataset: Dataset) -> Iterator[GlobalBatch]:
        for reader in self._readers:
            reader.follow(plan, first_batch=first_batch, dataset=dataset)
        by_replica = [plan.batch_shapes(reader) for reader in range(plan.num_readers)]
        steps = np.sum([part.steps for part in by_replica], axis=0)
        padded_steps = np.sum([part.rows * part.pad_length for part in by_replica], axis=0)
        for number, parts in enumerate(self._parts, first_batch):
            records, rows = int(plan.count[number]), functools.partial(plan.all_rows, number)
            yield GlobalBatch(parts, records, int(steps[number]), int(padded_steps[number]), rows)

    def _chunk_batches(self, plan: StatefulPlan, first_batch: int, dataset: Dataset) -> Iterator[GlobalBatch]:
        """Yields the chunks of the lanes. A part has a fourth element: `fresh`, whether the record of a row begins."""
        replicas = self._replicas
        options: dict[str, Any] = {"vocabularies": self._vocabularies, "label_every_chunk": self._label_every_chunk}
        reader = ChunkReader(dataset, TRAIN, **options)
        plan, whole = dataclasses.replace(plan, num_readers=replicas.num_replicas), plan.chunks(first_batch)
        local = range(replicas.first_replica, replicas.first_replica + replicas.num_local_replicas)
        readers = [reader.batches(plan, first_batch=first_batch, reader_index=replica) for replica in local]
        padded_steps = plan.rows() * plan.times() * replicas.num_replicas
        for number, (chunks, *batches) in enumerate(zip(whole, *readers, strict=True), first_batch):
            parts = tuple((b.features, b.label, b.weight, self._choose_fresh(b.fresh)) for b in batches)
            records, steps = int(chunks.ends.sum()), int(chunks.length.sum())
            rows = functools.partial(np.copy, chunks.record)
            yield GlobalBatch(parts, records, steps, int(padded_steps[number]), rows)

    def _choose_fresh(self, fresh: tf.Tensor) -> tf.Tensor:
        return fresh if self._reset_state == "record" else tf.ones_like(fresh)

    def _dealt_batches(self, whole: tf.data.Dataset) -> Iterator[GlobalBatch]:
        replicas, some_feature = self._replicas, next(iter(self._dataset.schema.steps))

        @tf.autograph.experimental.do_not_convert
        def deal(features: Any, label: Any, weight: Any, row: Any) -> Any:
            shape = tf.shape(features[some_feature])
            rows = -(-shape[0] // replicas.num_replicas) * replicas.num_replicas
            parts = tuple(part[:3] for part in _deal((features, label, weight, row), replicas))
            return parts, tf.reduce_sum(features["length"]), rows * shape[1], row

        for parts, steps, padded_steps, row in whole.map(deal):
            yield GlobalBatch(parts, len(row), int(steps), int(padded_steps), row.numpy)


def _deal(batch: Any, replicas: Replicas) -> tuple[Any, ...]:
    """Returns the (features, label, weight, row) of each replica of this process, from those of all replicas."""
    if replicas.num_replicas == 1:
        return (batch,)
    length = batch[0]["length"]
    order = tf.argsort(length, direction="DESCENDING", stable=True)
    reader = reader_of(tf.range(tf.size(length)), replicas.num_replicas)
    rows = -(-tf.size(length) // replicas.num_replicas)

    def part(replica: int) -> Any:
        dealt = tf.boolean_mask(order, reader == replica)
        return add_filler_rows(tf.nest.map_structure(lambda value: tf.gather(value, dealt), batch), rows)

    return tuple(part(replicas.first_replica + number) for number in range(replicas.num_local_replicas))
