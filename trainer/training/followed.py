"""Pins a commit of a growing dataset for each epoch of a run with `follow`."""

import time
from collections.abc import Callable
from typing import Any

from pipeline.errors import UserError
from pipeline.files import is_local
from pipeline.format.manifest import FILE_NAME
from trainer.config import TrainConfig
from trainer.data.dataset import Dataset, forget_indexes, open_dataset
from trainer.data.dataset_files import file_exists
from trainer.data.newer_commits import PinnedCommit, Replaced, check_is_logged, find_newer
from trainer.devices.replicas import Replicas
from trainer.evaluation.evaluate import check_schemas
from trainer.runs.run import Run
from trainer.runs.state import State

# How often a run that waits looks for a commit, in a folder and on an object store, where each look is paid for.
_POLL_SECONDS, _REMOTE_POLL_SECONDS = 0.5, 5.0
# How long a worker tries to open a commit that the chief has opened.
_LAG_SECONDS = 60.0
# A run that waits longer says so.
_SILENT_SECONDS = 2.0


def wait_for_dataset(path: str, *, idle: float | None, note: Callable[[str], None]) -> None:
    """Waits until a dataset has its first commit, for example from a stream that was started at the same time.

    Args:
        idle: Longest time to wait, in seconds. None waits for any time.
        note: Writes a line for the user.

    Raises:
        UserError: There was no dataset for this time.
    """
    started_at, is_announced = time.monotonic(), False
    while not file_exists(f"{path}/{FILE_NAME}"):
        if idle is not None and time.monotonic() - started_at >= idle:
            raise UserError(
                f"{path}: there is no dataset, and none came for {idle:,.0f} s (idle). Make it with `lengthwise "
                "prepare`, or wait longer."
            )
        if not is_announced:
            is_announced = True
            note(f"train: waiting for the first commit of {path}, which is no dataset yet")
        time.sleep(_POLL_SECONDS if is_local(path) else _REMOTE_POLL_SECONDS)


class FollowedDataset:
    """The dataset of a run with `follow`.

    The chief looks for commits and decides; all workers open the same commit. Every worker calls the same methods.

    Args:
        path: Folder of the dataset.
        note: Writes a line for the user.
    """

    def __init__(
        self, path: str, run: Run, config: TrainConfig, replicas: Replicas, note: Callable[[str], None]
    ) -> None:
        self._path, self._run, self._config, self._replicas, self._note = path, run, config, replicas, note
        manifest = run.manifest()
        self._schema = manifest.record_schema
        # The newest commit that was looked at, and whether it has records that no epoch has read.
        self._seen = PinnedCommit.of(manifest, origin=run.path)
        self._has_news = True
        self._opened: Dataset | None = None
        self._generations: set[str] = set()
        self._state = State()
        self._noticed_at = time.monotonic()

    def start(self, state: State) -> Dataset:
        """Returns the commit that the epoch under way reads; before an epoch, the newest one.

        If the files of the former were removed, the epoch starts again, with the weights of the checkpoint.

        Raises:
            UserError: The dataset was replaced, or is another one.
        """
        self._state, pinned = state, state.pinned
        if pinned is not None:
            self._seen, self._has_news = pinned, False
        if pinned is not None and state.batch:
            reason = self._from_chief(lambda: self._find_removed(pinned))
            if reason is None:
                dataset = self._open(pinned.number)
                self._generations = set(dataset.manifest.generations)
                return dataset
            self._note(
                f"train: epoch {state.epoch + 1} starts again on the newest commit, after {state.batch:,} updates that "
                f"stay: {reason}"
            )
            state.batch, self._has_news = 0, True
        return self._look()[0]

    def next(self, check_stop: Callable[[], None]) -> Dataset | None:
        """Returns the commit that the next epoch reads, the newest one; None if the run ends because of `idle`.

        With a number of epochs, it returns at once. Otherwise it waits until a commit has changed the records.

        Args:
            check_stop: Called while waiting; raises an exception to stop.

        Raises:
            UserError: The dataset was replaced, or its features or its label changed.
        """
        started_at, is_announced = time.monotonic(), False
        while True:
            dataset, is_idle = self._look()
            if self._has_news:
                self._has_news = False
                return dataset
            if is_idle:
                self._note(
                    f"train: {self._path} has had no new records for {self._config.idle:,.0f} s (idle), so the run "
                    f"ends; its newest commit is {self._seen.number}"
                )
                return None
            if self._config.epochs is not None:
                return dataset
            if not is_announced and time.monotonic() - started_at > _SILENT_SECONDS:
                is_announced = True
                self._note(f"train: waiting for a commit after {self._seen.number} of {self._path}")
            check_stop()
            time.sleep(_POLL_SECONDS if is_local(self._path) else _REMOTE_POLL_SECONDS)

    def _look(self) -> tuple[Dataset, bool]:
        """Returns the newest commit, and whether the run has been idle for too long."""
        seen = self._seen.number
        number, self._has_news, is_idle = self._from_chief(self._look_on_chief)
        dataset = self._open(number)
        if number != seen:
            check_schemas(self._schema.canonical(), dataset.schema.canonical(), self._run.path, self._path)
        if self._generations - set(dataset.manifest.generations):  # `compact` has merged some
            forget_indexes()
        self._generations = set(dataset.manifest.generations)
        self._seen = PinnedCommit.of(dataset.manifest, origin=self._path)
        return dataset, is_idle

    def _look_on_chief(self) -> tuple[int, bool, bool]:
        found = find_newer(self._path, self._seen)
        if found is not None:
            self._opened = found.dataset
            if found.has_other_records:
                self._has_news, self._noticed_at = True, time.monotonic()
        number = self._seen.number if found is None else found.dataset.manifest.commit
        assert number is not None
        idle = self._config.idle
        return number, self._has_news, idle is not None and time.monotonic() - self._noticed_at >= idle

    def _from_chief(self, function: Callable[[], object]) -> Any:
        """Returns `Replicas.from_chief`, with the way out in the message of a UserError."""

        def explained() -> object:
            try:
                return function()
            except Replaced as error:
                raise Replaced(
                    f"{error} Train another run on it (--output OTHER --warm_start {self._run.path}), or start over "
                    f"with --overwrite. --epochs {self._state.epoch} finishes {self._run.path} as it is."
                ) from None

        return self._replicas.from_chief(explained)

    def _find_removed(self, pinned: PinnedCommit) -> str | None:
        """Opens a commit on the chief; returns the reason if its files were removed."""
        check_is_logged(self._path, pinned)
        try:
            open_dataset(self._path, commit=pinned.number)
        except UserError as error:
            return str(error)
        return None

    def _open(self, number: int) -> Dataset:
        """Opens a commit. A shared file system may show it to the other workers a little later than to the chief."""
        deadline = time.monotonic() + (0.0 if self._replicas.is_chief else _LAG_SECONDS)
        while self._opened is None or self._opened.manifest.commit != number:
            try:
                self._opened = open_dataset(self._path, commit=number)
            except UserError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(_POLL_SECONDS)
        return self._opened
