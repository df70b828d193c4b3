"""Errors that end a run whose loss, gradient or weights are non-finite: after which update, and what to do."""

import math
from typing import Any

from pipeline.errors import UserError
from pipeline.format.models import TRAIN
from pipeline.schema.record import Array
from trainer.data.dataset import Dataset
from trainer.runs.contents import FAILED_UPDATE
from trainer.runs.run import Run

# Number of ids in a message; RUN/failed-update.json has all ids of the batch.
_MAX_IDS = 10


class NonFiniteUpdate(Exception):
    """The loss or the gradient of an update is non-finite.

    Attributes:
        line: The update's line of metrics.jsonl, and its `gradient_norm`.
        rows: int64[records], the places of the batch's records in the index of the split.
    """

    def __init__(self, line: dict[str, Any], rows: Array) -> None:
        super().__init__(line, rows)
        self.line, self.rows = line, rows


def non_finite_update(error: NonFiniteUpdate, dataset: Dataset, run: Run, *, saved_update: int | None) -> UserError:
    """Returns the error of an update with a non-finite loss or gradient; it names the batch's records.

    The chief also writes RUN/failed-update.json.

    Args:
        saved_update: The update of the last checkpoint; None for workers other than the chief.
    """
    line = error.line
    ids = dataset.index(TRAIN)["id"].take(error.rows).to_pylist()
    all_ids = ""
    if saved_update is not None:
        all_ids = f"; all are in {run.file(FAILED_UPDATE)}"
        # JSON has no NaN and no infinity.
        values = {name: value if math.isfinite(value) else str(value) for name, value in line.items()}
        run.write_json(FAILED_UPDATE, values | {"ids": ids})
    is_loss = not math.isfinite(line["loss"])
    quantity, value = ("loss", line["loss"]) if is_loss else ("gradient's norm", line["gradient_norm"])
    shown = ", ".join(map(repr, ids[:_MAX_IDS])) + (f", … ({len(ids)})" if len(ids) > _MAX_IDS else "")
    return UserError(
        f"The {quantity} of update {line['update']} (epoch {line['epoch']}) is {value}; the update changed no weight. "
        f"The ids in its batch: {shown}{all_ids}. {_advice(saved_update)}"
    )


def non_finite_weights(update: int, *, saved_update: int | None) -> UserError:
    """Returns the error of a non-finite weight after an update."""
    return UserError(f"A weight is non-finite after update {update}. {_advice(saved_update)}")


def non_finite_validation(epoch: int, loss: float, *, saved_update: int | None) -> UserError:
    """Returns the error of a non-finite loss on the validation split."""
    return UserError(f"The validation loss of epoch {epoch} is {loss}. {_advice(saved_update)}")


def _advice(saved_update: int | None) -> str:
    checkpoint = "" if saved_update is None else f"The last checkpoint is of update {saved_update}. "
    return f"{checkpoint}Start over with a smaller --learning_rate, or with --clip_norm 1."
