"""Says how a run came to numbers that are none: after which update, by which records, and what to do."""

import math

from pipeline.errors import UserError
from pipeline.format.manifest import TRAIN
from trainer.data.dataset import Dataset
from trainer.runs.run import FAILED_UPDATE, Run
from trainer.training.journal import NotFinite

# Ids that are told of a batch; all of them are in a file.
_MOST_IDS = 10


def spoiled(update: int, *, saved: int | None) -> UserError:
    """A weight is no number after an update; the last checkpoint is of update number `saved`, if this worker knows."""
    return UserError(f"A weight is not finite after update {update}. {_way_out(saved)}")


def unmeasurable(epoch: int, loss: float, *, saved: int | None) -> UserError:
    """The loss on the validation split is no number."""
    return UserError(f"The validation loss of epoch {epoch} is {loss}. {_way_out(saved)}")


def diverged(error: NotFinite, dataset: Dataset, run: Run, *, saved: int | None) -> UserError:
    """An update gave no number: names its records; who knows of checkpoints writes RUN/failed-update.json, too."""
    line = error.line
    ids = dataset.index(TRAIN)["id"].take(error.rows).to_pylist()
    where = ""
    if saved is not None:
        where = f"; all are in {run.file(FAILED_UPDATE)}"
        told = {name: value if math.isfinite(value) else str(value) for name, value in line.items()}
        run.write_json(FAILED_UPDATE, told | {"ids": ids})
    what = "loss" if not math.isfinite(line["loss"]) else "gradient's norm"
    shown = ", ".join(map(repr, ids[:_MOST_IDS])) + (f", … ({len(ids)})" if len(ids) > _MOST_IDS else "")
    return UserError(
        f"The {what} of update {line['update']} (epoch {line['epoch']}) is "
        f"{line['loss'] if what == 'loss' else line['gradient_norm']}, and no weight was changed by it. The ids in "
        f"its batch: {shown}{where}. {_way_out(saved)}"
    )


def _way_out(saved: int | None) -> str:
    last = "" if saved is None else f"The last checkpoint is of update {saved}. "
    return f"{last}Begin anew with a smaller --learning_rate, or --clip_norm 1."
