"""Computes the largest batch before the first update: it may not fit into memory, or take long."""

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from pipeline.errors import UserError, counted
from trainer.batching.plan import Plan
from trainer.batching.stateful import StatefulPlan
from trainer.devices.replicas import Replicas
from trainer.devices.tensorflow_errors import explain_out_of_memory, is_out_of_memory
from trainer.training.update import Part, Update

# An update that takes longer is announced.
SLOW_SECONDS = 5.0
# The time of the largest batch is estimated from one that is so many times smaller. The second one is computed only if
# the batch is slow by the first one, which a busy machine may have delayed.
_TIMES_SMALLER = (16, 4)


def probe_largest(
    update: Update,
    plan: Plan,
    replicas: Replicas,
    explain_model: Callable[[], str],
    announce: Callable[[float], None] = lambda seconds: None,
) -> float:
    """Computes the gradients of a batch with the shape of the largest one, and changes no weight.

    Args:
        plan: Plan of global batches.
        explain_model: See `explain_out_of_memory`; called if not even one record of one step fits.
        announce: Called before the largest batch if it is slow, with an estimate of the seconds that it takes.

    Returns:
        The seconds that the batch takes, without the time to trace and to load kernels.

    Raises:
        UserError: The batch does not fit into memory; the message names a budget that does, or the cause if none does.
    """
    rows, steps = plan.largest_batch

    def compute(rows: int, steps: int) -> float:
        begin = time.monotonic()
        part = blank_part(update.element_spec, -(-rows // replicas.num_replicas), steps)
        sums, _ = update.gradients((part,) * replicas.num_local_replicas)
        float(sums.norm)
        return time.monotonic() - begin

    def fits(rows: int) -> bool:
        try:
            compute(rows, steps)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return False
        return True

    try:
        compute(1, 1)  # the first call also traces, and loads the kernels of a GPU
        for times in _TIMES_SMALLER:
            few_rows, few_steps = (rows, steps // times) if steps >= times else (rows // times, steps)
            estimate = compute(few_rows, few_steps) * rows * steps / (few_rows * few_steps) if few_rows else 0.0
            if estimate < SLOW_SECONDS:
                break
        else:
            announce(estimate)
        return compute(rows, steps)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    batch = f"{counted(rows, 'record')} of {counted(steps, 'step')}"
    if replicas.num_local_replicas < replicas.num_replicas:
        # The batch may fit on the other workers. They wait for this one's sums now, so there is no second try.
        raise UserError(
            f"Out of memory on this worker: its part of the largest batch, {batch} among "
            f"{replicas.num_replicas} replicas, does not fit. Choose {plan.describe_smaller(rows * steps)}."
        )
    if isinstance(plan, StatefulPlan):
        raise UserError(
            f"Out of memory: the largest batch, {batch}, does not fit. Choose {plan.describe_smaller(rows * steps)}."
        )
    largest, too_large = 0, rows
    while too_large - largest > max(1, too_large // 16):
        middle = (largest + too_large) // 2
        largest, too_large = (middle, too_large) if fits(middle) else (largest, middle)
    problem = f"Out of memory: the largest batch, {batch}, does not fit"
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
