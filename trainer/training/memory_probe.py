"""Computes the largest batch before the first update, so that a batch too large for memory fails in seconds."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from pipeline.errors import UserError
from trainer.batching.plan import Plan
from trainer.devices.replicas import Replicas
from trainer.devices.tensorflow_errors import explain_out_of_memory, is_out_of_memory
from trainer.training.update import Part, Update


def probe_largest(update: Update, plan: Plan, replicas: Replicas, explain_model: Callable[[], str]) -> None:
    """Computes the gradients of a batch with the shape of the largest one, and changes no weight.

    Args:
        plan: Plan of global batches.
        explain_model: See `explain_out_of_memory`; called if not even one record of one step fits.

    Raises:
        UserError: The batch does not fit into memory; the message names a budget that does, or the cause if none does.
    """
    rows, steps = plan.largest_batch

    def compute(rows: int, steps: int) -> None:
        part = blank_part(update.element_spec, -(-rows // replicas.num_replicas), steps)
        sums, _ = update.gradients((part,) * replicas.num_local_replicas)
        float(sums.norm)

    def fits(rows: int) -> bool:
        try:
            compute(rows, steps)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    if fits(rows):
        return
    if replicas.num_local_replicas < replicas.num_replicas:
        # The batch may fit on the other workers. They wait for this one's sums now, so there is no second try.
        raise UserError(
            f"Out of memory on this worker: its part of the largest batch, {rows:,} records of {steps:,} steps among "
            f"{replicas.num_replicas} replicas, does not fit. Choose a --batch_steps smaller than {rows * steps}."
        )
    largest, too_large = 0, rows
    while too_large - largest > max(1, too_large // 16):
        middle = (largest + too_large) // 2
        largest, too_large = (middle, too_large) if fits(middle) else (largest, middle)
    problem = f"Out of memory: the largest batch, {rows:,} records of {steps:,} steps, does not fit"
    if not largest:
        with explain_out_of_memory(
            lambda: f"not even one record of one step fits: {explain_model()} Another process may use the memory too."
        ):
            compute(1, 1)
        raise UserError(
            f"{problem}, and one of its records alone does not fit either. Choose fewer --units, or leave out records "
            "of this length."
        )
    raise UserError(
        f"{problem}. It fits with --batch_steps {largest * steps} (this batch has {rows * steps} padded steps)."
    )


def blank_part(element_spec: Any, rows: int, steps: int) -> Part:
    """Returns a part of zeros and empty strings in which every step is real and every weight is 1."""
    (features, label, weight) = element_spec

    def blank(spec: tf.TensorSpec, value: Any = 0) -> tf.Tensor:
        # An open first dimension is the rows, an open second one the steps.
        shape = [size if size is not None else (rows, steps)[axis] for axis, size in enumerate(spec.shape.as_list())]
        return tf.fill(shape, tf.constant("" if spec.dtype == tf.string else value, spec.dtype))

    blanks = {name: blank(spec, steps if name == "length" else 0) for name, spec in features.items()}
    return blanks, blank(label), blank(weight, 1)
