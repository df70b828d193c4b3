"""Sets up TensorFlow for a command: few log messages, deterministic operations, and errors as one line."""

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator

from pipeline.errors import UserError

LOG_LEVEL, QUIET = "TF_CPP_MIN_LOG_LEVEL", "2"


def start_tensorflow(*, deterministic: bool | None = None) -> None:
    """Imports TensorFlow without its log messages, and calls `grow_gpu_memory` and `make_deterministic`."""
    if LOG_LEVEL not in os.environ:  # a user who has set it wants to see the messages
        os.environ[LOG_LEVEL] = QUIET
        with _buffer_stderr():
            import tensorflow  # noqa: F401

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    grow_gpu_memory()
    make_deterministic(deterministic)


def grow_gpu_memory() -> None:
    """Lets TensorFlow take the memory of each GPU as it needs it, so that several processes can share a GPU.

    By default, the first process takes all of it. A GPU that this process already uses keeps its settings.
    """
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)


def make_deterministic(deterministic: bool | None = None) -> bool:
    """Makes TensorFlow's operations give the same bits in every run, and returns whether it did.

    This cannot be undone in the same process.

    Args:
        deterministic: By default, true if there is no GPU: deterministic operations are slower on a GPU.
    """
    import tensorflow as tf

    if deterministic is None:
        deterministic = not tf.config.list_physical_devices("GPU")
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    return deterministic


@contextlib.contextmanager
def explain_tensorflow_errors(path: str) -> Iterator[None]:
    """Raises a UserError with one line for each of TensorFlow's errors inside the block that a user can fix.

    Args:
        path: Dataset or run that the block reads, for the message about damaged files.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.DataLossError as error:
        raise UserError(f"{path}: damaged: {first_line(error)}. `lengthwise verify` shows where.") from None
    except tf.errors.ResourceExhaustedError as error:
        raise UserError(f"Out of memory or disk space: {first_line(error)}. Try a smaller --batch_steps.") from None
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError) as error:
        raise _worker_lost(error) from None
    except tf.errors.UnknownError as error:
        # A UserError of our reader, raised in the Python function that tf.data calls.
        found = re.search(r"\bUserError: (.+)", str(error))
        if found is None:
            raise
        raise UserError(found[1]) from None
    except (tf.errors.NotFoundError, tf.errors.PermissionDeniedError, tf.errors.FailedPreconditionError) as error:
        if "incarnation" in str(error):  # another worker was restarted, and this one is connected to its predecessor
            raise _worker_lost(error) from None
        raise UserError(f"A file cannot be read or written: {first_line(error)}.") from None


def _worker_lost(error: Exception) -> UserError:
    return UserError(
        f"Another worker was lost: {first_line(error)}. Run the same command again on every worker to resume from the "
        "last checkpoint."
    )


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, without a final period and the names of the node and operation."""
    lines = str(getattr(error, "message", error)).splitlines() or [type(error).__name__]
    line = next((line for line in lines if line and not line.startswith(("Graph execution", "Detected at"))), lines[0])
    return re.sub(r"^\{\{[^}]*\}\} ?| \[Op:.*$", "", line).rstrip(".")


@contextlib.contextmanager
def _buffer_stderr() -> Iterator[None]:
    """Holds back what is written to stderr inside the block, and writes it only if the block raises an error.

    TensorFlow's C++ code writes messages before its logging is set up, which no setting prevents.
    """
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        except BaseException:
            buffer.seek(0)
            os.write(before, buffer.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
