"""Decides what each epoch of a run reads: a commit of the dataset, and the plan of its batches."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from pipeline.errors import UserError
from pipeline.format.models import TRAIN
from trainer.batching.plan import Plan
from trainer.batching.plan_epoch import plan_epoch
from trainer.batching.stateful import make_stateful_plan
from trainer.config import STATEFUL, TrainConfig
from trainer.data.dataset import Dataset
from trainer.data.newer_commits import PinnedCommit, has_files
from trainer.data.parts import choose_parts
from trainer.data.select_windows import describe_selection, select_newest
from trainer.devices.replicas import Replicas
from trainer.devices.signals import Preempted, StopSignal
from trainer.reading.batches import planned_batches
from trainer.runs.run import Run
from trainer.runs.state import State
from trainer.training.checkpoint_policy import raise_if_stopped
from trainer.training.followed import FollowedDataset


@dataclasses.dataclass(frozen=True)
class EpochData:
    """What an epoch reads.

    Attributes:
        dataset: The dataset as of one commit.
        total_weight: Σ weight over the train split.
        pinned: Its commit, to be recorded. None for a run that does not follow a dataset.
    """

    dataset: Dataset
    total_weight: float
    pinned: PinnedCommit | None = None


class EpochSource:
    """The dataset of a run. With `follow`, each epoch may read another commit of it.

    Args:
        dataset: The dataset; with `follow`, its path is what counts.
        note: Writes a line for the user.

    Attributes:
        dataset: What the current epoch reads, or between two epochs the next one. With `follow`, it is open from
            `start` on, and before it has the schema of the first commit. With `newest`, its train split has only the
            newest windows.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        config: TrainConfig,
        replicas: Replicas,
        stop: StopSignal,
        note: Callable[[str], None],
    ) -> None:
        self._run, self._config, self._replicas, self._stop, self._note = run, config, replicas, stop, note
        self._opened = Dataset(dataset.path, run.manifest()) if config.follow else dataset
        self._whole = choose_parts(self._opened, config.parts)
        self.dataset = self._whole if config.follow else select_newest(self._whole, TRAIN, config.newest)
        self._followed = FollowedDataset(dataset.path, run, config, replicas, note) if config.follow else None
        self._planned: tuple[Any, Plan] | None = None
        self._total: tuple[Dataset, float] | None = None

    @property
    def validation(self) -> Dataset:
        """The dataset whose validation split is measured after each epoch."""
        return self.dataset if self._followed is None else choose_parts(self._run.validation(), self._config.parts)

    def start(self, state: State) -> None:
        """With `follow`, opens the commit of the epoch under way; before an epoch, the newest one.

        Raises:
            UserError: The dataset was replaced, is another one, or has no record in the `newest` windows.
        """
        if self._followed is not None and self.has_epoch(state):
            self._take(self._followed.start(state))
            self._note(f"train: follows {self.dataset.path}, now at commit {self.dataset.manifest.commit}")
        if self.dataset is not self._whole:
            found, records = describe_selection(self.dataset, TRAIN), self._whole.split(TRAIN).records
            self._note(
                f"train: reads the windows from {found['start']} to {found['end']}: {found['records']:,} of "
                f"{records:,} records of the split {TRAIN}"
            )

    def next(self, state: State, check_stop: Callable[[], None]) -> bool:
        """Opens the commit that the next epoch reads, for which it may wait. Returns whether there is a next epoch.

        Args:
            check_stop: Called while waiting; raises an exception to stop.

        Raises:
            UserError: The dataset was replaced, or its features or its label changed.
        """
        if not self.has_epoch(state):
            return False
        if self._followed is None or state.batch:
            return True
        found = self._followed.next(check_stop)
        if found is None:
            return False
        if found is not self._opened:
            self._take(found)
            self._planned = None
        return True

    def _take(self, dataset: Dataset) -> None:
        """Lets the next epoch read a commit, or its newest windows."""
        self._opened, self._whole = dataset, choose_parts(dataset, self._config.parts)
        self.dataset = select_newest(self._whole, TRAIN, self._config.newest)

    def has_epoch(self, state: State) -> bool:
        """Returns whether `epochs` allows an epoch after those that are complete."""
        return self._config.has_epoch(state.epoch + 1)

    def plan(self, state: State) -> Plan:
        """Returns the plan of the epoch that the run is in or trains next; it is computed once."""
        key = (self.dataset.manifest.commit, state.epoch, state.batch and (state.batch_steps, state.batch_size))
        if self._planned is None or self._planned[0] != key:
            self._planned = key, plan_next_epoch(self.dataset, self._config, state)
        return self._planned[1]

    def known_plan(self, state: State) -> Plan | None:
        """Returns `plan`, or None if no dataset is open: with `follow`, none is if there is no epoch to train."""
        return self.plan(state) if self._followed is None or self.has_epoch(state) else None

    def data(self, state: State) -> EpochData:
        """Returns what the epoch of `plan` reads. The total weight is computed once for each commit."""
        dataset = self.dataset
        if self._total is None or self._total[0] is not dataset:
            self._total = dataset, self.total_weight(self.plan(state))
        pinned = None if self._followed is None else PinnedCommit.of(dataset.manifest, origin=dataset.path)
        return EpochData(dataset, self._total[1], pinned)

    def total_weight(self, plan: Plan) -> float:
        """Returns the number of labels of an epoch: records, or labelled steps.

        Labels per step are counted by reading an epoch if `truncate` cuts off steps and their labels.
        """
        if self._config.truncate is None or not self.dataset.schema.label.per_step:
            return max(float(self.dataset.split(TRAIN).labels), 1.0)
        total = 0.0
        for _, _, weight, _ in planned_batches(self.dataset, TRAIN, plan, vocabularies=self._run.vocabularies()):
            total += float(tf.reduce_sum(weight))
            if self._replicas.num_workers == 1:  # several workers would not all stop here
                raise_if_stopped(self._stop)
        return max(total, 1.0)

    def commits(self, state: State) -> dict[str, Any]:
        """Returns the entries of result.json about the commits, and the windows, that the run has read."""
        first = self._run.manifest()
        windows: dict[str, Any] = {}
        if self.dataset is not self._whole:
            windows = {"windows": describe_selection(self.dataset, TRAIN)}
        if self._followed is None:
            return {"commit": first.commit, **windows}
        last = state.pinned or PinnedCommit.of(first, origin=self._run.path)
        return {"commit": last.number, "fingerprint": last.fingerprint, "first_commit": first.commit, **windows}

    @contextlib.contextmanager
    def explain_removed(self) -> Iterator[None]:
        """Raises a UserError that says so if files of a commit are removed while the block reads them."""
        try:
            yield
        except (UserError, tf.errors.OpError) as error:
            if self._followed is None or isinstance(error, Preempted) or has_files(self.dataset):
                raise
            raise UserError(
                f"{self.dataset.path}: the files of commit {self.dataset.manifest.commit} were removed while an epoch "
                "read them. Let `prepare` and `compact` keep replaced files for longer than an epoch takes (--retain); "
                "the same command trains on."
            ) from None


def plan_next_epoch(dataset: Dataset, config: TrainConfig, state: State) -> Plan:
    """Returns the plan, for one reader, of the epoch that a run is in or trains next.

    Raises:
        UserError: No batches can be planned with this configuration.
    """
    if config.batching == STATEFUL:
        chunks = config.model_dump(include={"chunk_steps", "lanes", "seed"})
        return make_stateful_plan(dataset.lengths(TRAIN), epoch=state.epoch + 1, **chunks)
    keys = {"batching", "batch_steps", "batch_size", "pad_to_multiple", "pad_length", "truncate", "seed"}
    limits = config.model_dump(include=keys)
    if state.batch:  # An epoch that has started keeps its limits.
        limits |= {"batch_steps": state.batch_steps, "batch_size": state.batch_size}
    try:
        return plan_epoch(dataset, TRAIN, epoch=state.epoch + 1, **limits)
    except ValueError as error:
        raise UserError(str(error)) from None
