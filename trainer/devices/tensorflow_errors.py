"""Explains TensorFlow's errors, and every lack of memory, as errors of one line that a user can fix."""

import contextlib
import re
from collections.abc import Callable, Iterator

from pipeline.errors import UserError

# What errors of other classes than MemoryError and ResourceExhaustedError say when memory runs out. cuDNN's recurrent
# kernels say only that they could not be launched; that their workspace could not be allocated is in the log at most.
# "Dst tensor is not initialized" comes from a copy to a GPU that has no memory left for it. A library that is "not
# initialized" found no memory for its own data.
_MEMORY = re.compile(
    r"out[ _]of[ _]memory|\bOOM\b|(?:failed|unable) to allocate|cannot allocate memory|bad_alloc|\bMemoryError\b"
    r"|_STATUS_ALLOC_FAILED|CU(?:DNN|BLAS)_STATUS_NOT_INITIALIZED"
    r"|failed to call \w*rnn(?:forward|backward)|dst tensor is not initialized",
    re.IGNORECASE,
)
# A ResourceExhaustedError may also be one of these.
_OTHER_RESOURCES = re.compile(r"no space left on device|disk quota exceeded|too many open files", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that the memory of the host or of a GPU ran out.

    It is true of a MemoryError (NumPy's too), of TensorFlow's ResourceExhaustedError unless it speaks of a disk, and of
    any other error of TensorFlow or RuntimeError whose message is known to come from it. A recurrent kernel of cuDNN
    that could not be launched counts too, although another cause is possible.
    """
    import tensorflow as tf

    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError | tf.errors.OpError) or _OTHER_RESOURCES.search(str(error)):
        return False
    return isinstance(error, tf.errors.ResourceExhaustedError) or _MEMORY.search(str(error)) is not None


@contextlib.contextmanager
def explain_out_of_memory(explain: Callable[[], str]) -> Iterator[None]:
    """Raises a UserError if memory runs out inside the block.

    Args:
        explain: Returns what needs the memory, and the way out.
    """
    try:
        yield
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reported = first_line(error)
    # The error is not alive any more, and so it does not hold the memory that the block had allocated.
    raise UserError(f"Out of memory: {explain()} (Reported as: {reported}.)")


def describe_exhausted(error: BaseException) -> str | None:
    """Returns a sentence that says what ran out, memory or disk space, or None for another error."""
    import tensorflow as tf

    if is_out_of_memory(error):
        return f"Out of memory: {first_line(error)}."
    if isinstance(error, tf.errors.ResourceExhaustedError):
        return f"A file cannot be written: {first_line(error)}."
    return None


@contextlib.contextmanager
def explain_tensorflow_errors(path: str, *, memory_advice: str = "Try a smaller --batch_steps.") -> Iterator[None]:
    """Raises a UserError with one line for each of TensorFlow's errors inside the block that a user can fix.

    Args:
        path: Dataset or run that the block reads, for the message about damaged files.
        memory_advice: The way out if memory runs out.
    """
    import tensorflow as tf

    try:
        yield
    except (MemoryError, RuntimeError, tf.errors.OpError) as error:
        explained = _explain(error, path, memory_advice)
        if explained is None:
            raise
        raise explained from None


def _explain(error: Exception, path: str, memory_advice: str) -> UserError | None:
    """Returns the error of one line for one of TensorFlow's errors, or None if a user cannot fix it."""
    import tensorflow as tf

    exhausted = describe_exhausted(error)
    if exhausted is not None:
        return UserError(f"{exhausted} {memory_advice}" if is_out_of_memory(error) else exhausted)
    match error:
        case tf.errors.DataLossError():
            return UserError(f"{path}: damaged: {first_line(error)}. `lengthwise verify` shows where.")
        case tf.errors.UnavailableError() | tf.errors.AbortedError() | tf.errors.DeadlineExceededError():
            return _worker_lost(error)
        case tf.errors.UnknownError():
            # A UserError of our reader, raised in the Python function that tf.data calls.
            found = re.search(r"\bUserError: (.+)", str(error))
            return found and UserError(found[1])
        case tf.errors.NotFoundError() | tf.errors.PermissionDeniedError() | tf.errors.FailedPreconditionError():
            if "incarnation" in str(error):  # another worker was restarted; this one is connected to its predecessor
                return _worker_lost(error)
            return UserError(f"A file cannot be read or written: {first_line(error)}.")
    return None


def _worker_lost(error: Exception) -> UserError:
    return UserError(
        f"Another worker was lost: {first_line(error)}. Run the same command again on every worker to resume from the "
        "last checkpoint."
    )


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, without a final period and the names of the node and operation."""
    lines = str(getattr(error, "message", error)).splitlines() or [type(error).__name__]
    line = next((line for line in lines if line and not line.startswith(("Graph execution", "Detected at"))), lines[0])
    return re.sub(r"^\{\{[^}]*\}\} ?| \[Op:.*$", "", line).rstrip(".")
