"""The training state that a checkpoint stores besides the weights, so that a resumed run gives identical results."""

from typing import Any

import pydantic

from trainer.data.newer_commits import PinnedCommit

CLIP_RULE = 2  # of new runs; see State


class Totals(pydantic.BaseModel):
    """Sums over the updates of an epoch and over all replicas.

    Attributes:
        loss: Σ weight × loss.
        weight: Σ weight.
        records: Number of records.
        steps: Number of time steps, without padding.
        padded_steps: Number of time steps, with padding.
        seconds: Time that the updates took.
    """

    loss: float = 0.0
    weight: float = 0.0
    records: int = 0
    steps: int = 0
    padded_steps: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Returns the entry `train` of an epoch's line in metrics.jsonl.

        Its loss is the mean over all records, or over all steps with a label. It is 0 if the total weight is 0.
        """
        return {
            "loss": self.loss / self.weight if self.weight else 0.0,
            "records": self.records,
            "steps": self.steps,
            "padded_steps": self.padded_steps,
            "seconds": round(self.seconds, 3),
        }


class CallbackState(pydantic.BaseModel):
    """The state of one of the user's callbacks.

    Attributes:
        name: Module and name of its class.
        json_text: The state as JSON. It is text, because pydantic would write NaN and infinity as null.
    """

    name: str
    json_text: str


class State(pydantic.BaseModel):
    """The position of a run between two updates, and its results so far.

    Attributes:
        epoch: Number of complete epochs.
        batch: Number of batches of the current epoch that were trained on. A resumed run reads on from there.
        update: Number of updates since the start of the run.
        batch_steps: Limit of padded steps with which the current epoch was planned. A new limit applies from the next
            epoch on.
        batch_size: The same for the limit of records.
        totals: Sums over the current epoch.
        steps: Time steps of all complete epochs, without padding.
        padded_steps: Time steps of all complete epochs, with padding.
        best_epoch: Number of the epoch with the lowest validation loss, from 1.
        best_loss: Lowest validation loss.
        clip_rule: Version of the rule by which `clip_norm` acts. 1 is that of checkpoints without this entry: the norm
            of the gradient after it was scaled by the batch's share of the epoch. 2 is that of `Update`.
        callbacks: States of the user's callbacks that keep one.
        pinned: The commit that the current epoch reads, or between two epochs the one that the last epoch has read.
            Only with `follow`.
    """

    epoch: int = 0
    batch: int = 0
    update: int = 0
    batch_steps: int | None = None
    batch_size: int | None = None
    totals: Totals = Totals()
    steps: int = 0
    padded_steps: int = 0
    best_epoch: int | None = None
    best_loss: float | None = None
    clip_rule: int = 1
    callbacks: tuple[CallbackState, ...] = ()
    pinned: PinnedCommit | None = None
