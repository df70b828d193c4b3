"""Tries the largest batch of an epoch before the first, so that memory runs out in the first seconds or not at all."""

from typing import Any

import tensorflow as tf

from pipeline.errors import UserError
from trainer.batching.plan import Plan
from trainer.training.update import Part, Update


def probe_largest(update: Update, plan: Plan, *, num_replicas: int, num_local_replicas: int) -> None:
    """Computes, without an update, a batch of the shape of the largest.

    Args:
        plan: Of global batches.

    Raises:
        UserError: memory runs out; names the budget with which it does not.
    """
    rows, steps = plan.largest_batch

    def fits(rows: int) -> bool:
        part = blank_part(update.element_spec, -(-rows // num_replicas), steps)
        try:
            float(update.measure((part,) * num_local_replicas).norm)
        except tf.errors.ResourceExhaustedError:
            return False
        return True

    if fits(rows):
        return
    if num_local_replicas < num_replicas:
        # It may have fitted on the other workers, who wait now for sums that never come: no second try.
        raise UserError(
            f"Out of memory on this worker: its part of the largest batch, {rows:,} records of {steps:,} steps among "
            f"{num_replicas} replicas, does not fit. Choose a --batch_steps smaller than {rows * steps}."
        )
    most, too_many = 0, rows
    while too_many - most > max(1, too_many // 16):
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle) else (most, middle)
    what = f"Out of memory: the largest batch, {rows:,} records of {steps:,} steps, does not fit"
    if not most:
        raise UserError(f"{what}, nor does one record of it. Choose fewer --units, or leave such records out.")
    raise UserError(f"{what}. It would with --batch_steps {most * steps} (now {rows * steps} in that batch).")


def blank_part(element_spec: Any, rows: int, steps: int) -> Part:
    """A part of zeros that is all real steps, of weight 1."""
    (features, label, weight) = element_spec

    def blank(spec: tf.TensorSpec, value: Any = 0) -> tf.Tensor:
        # Every first dimension that is open is rows, the second steps.
        shape = [size if size is not None else (rows, steps)[axis] for axis, size in enumerate(spec.shape.as_list())]
        return tf.fill(shape, tf.constant("" if spec.dtype == tf.string else value, spec.dtype))

    blanks = {name: blank(spec, steps if name == "length" else 0) for name, spec in features.items()}
    return blanks, blank(label), blank(weight, 1)
