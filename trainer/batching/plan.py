"""The plan of an epoch: the number and the shapes of its batches, for every batching method."""

import abc
from typing import Any


class Plan(abc.ABC):
    """The batches of an epoch.

    Attributes:
        batching: Name of the batching method.
        batch_steps: Budget of padded steps per batch, or None.
        batch_size: Maximum number of records per batch, or None.
    """

    batching: str
    batch_steps: int | None
    batch_size: int | None

    @property
    @abc.abstractmethod
    def num_batches(self) -> int:
        """Number of batches of the epoch."""

    @property
    @abc.abstractmethod
    def records(self) -> int:
        """Number of records of the epoch."""

    @property
    @abc.abstractmethod
    def steps(self) -> int:
        """Number of real steps of the epoch, after truncation."""

    @property
    @abc.abstractmethod
    def padded_steps(self) -> int:
        """Sum of rows × padded length over all batches."""

    @property
    @abc.abstractmethod
    def shapes(self) -> set[tuple[int, int]]:
        """The distinct (rows, padded length) of all batches."""

    @property
    def useful_share(self) -> float:
        """Share of the padded steps that are real steps; 1 if there is no step."""
        return self.steps / self.padded_steps if self.padded_steps else 1.0

    @property
    def largest_batch(self) -> tuple[int, int]:
        """(rows, padded length) of the batch with the most padded steps; (0, 0) if there is no batch."""
        return max(self.shapes, key=lambda shape: (shape[0] * shape[1], shape), default=(0, 0))

    def describe_smaller(self, padded_steps: int) -> str:
        """Returns the option that gives batches of fewer than `padded_steps`, over all readers, for messages."""
        return f"a --batch_steps smaller than {padded_steps}"

    def check_first_batch(self, first_batch: int) -> None:
        """Raises a ValueError if a reader cannot begin with this batch."""
        if not 0 <= first_batch <= self.num_batches:
            raise ValueError(
                f"first_batch is {first_batch}, expected 0 to {self.num_batches}, the number of batches of the epoch."
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns the plan as `lengthwise plan --json` prints it."""
        rows, steps = self.largest_batch
        return {
            "batching": self.batching,
            "batch_steps": self.batch_steps,
            "batch_size": self.batch_size,
            "batches": self.num_batches,
            "records": self.records,
            "steps": self.steps,
            "padded_steps": self.padded_steps,
            "useful_share": self.useful_share,
            "largest_batch": {"records": rows, "steps": steps, "padded_steps": rows * steps},
            "shapes": len(self.shapes),
        }
