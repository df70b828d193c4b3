"""Where a run stands, beside its weights: what a checkpoint keeps of it, so that it goes on from there to the bit."""

from typing import Any

import pydantic


class Totals(pydantic.BaseModel):
    """Sums over the updates of an epoch, of all replicas.

    Attributes:
        loss, weight: Σ weight × loss, and Σ weight.
        seconds: That they took.
    """

    loss: float = 0.0
    weight: float = 0.0
    records: int = 0
    steps: int = 0
    padded_steps: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Of the line of an epoch; its loss is over all records, or labelled steps."""
        return {
            "loss": self.loss / self.weight if self.weight else 0.0,
            "records": self.records,
            "steps": self.steps,
            "padded_steps": self.padded_steps,
            "seconds": round(self.seconds, 3),
        }


class State(pydantic.BaseModel):
    """A moment between two updates.

    Attributes:
        epoch: Whole epochs behind.
        batch: Batches of the next epoch behind, where its reader goes on.
        update: Updates behind, those of the epoch that was begun too.
        batch_steps, batch_size: The limits with which the epoch was begun; others hold from the next one on.
        totals: Of the epoch that was begun.
        steps, padded_steps: Of all epochs that are behind.
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
