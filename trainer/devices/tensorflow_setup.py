"""Runs TensorFlow for a command: quietly, with the same bits every time on a CPU, its errors told in a line."""

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
    """Imports TensorFlow, and makes its operations deterministic as `make_deterministic` does."""
    if LOG_LEVEL not in os.environ:  # someone who set it wants to see what there is
        os.environ[LOG_LEVEL] = QUIET
        with _stderr_aside():
            import tensorflow  # noqa: F401

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    make_deterministic(deterministic)


def make_deterministic(chosen: bool | None = None) -> bool:
    """Makes TensorFlow's operations give the same bits every time; not where there is a GPU, which it slows down,
    unless that is chosen. Returns whether it did. What is once deterministic stays so."""
    import tensorflow as tf

    if chosen is None:
        chosen = not tf.config.list_physical_devices("GPU")
    if chosen:
        tf.config.experimental.enable_op_determinism()
    return chosen


@contextlib.contextmanager
def explain_tensorflow_errors(dataset: str) -> Iterator[None]:
    """Turns the errors of TensorFlow that a user can mend into one line."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.DataLossError as error:
        raise UserError(f"{dataset}: damaged: {_line(error)}. `lengthwise verify` says where.") from None
    except tf.errors.ResourceExhaustedError as error:
        raise UserError(f"Out of memory, or of disk: {_line(error)}. Try a smaller --batch_steps.") from None
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError) as error:
        raise _lost(error) from None
    except tf.errors.UnknownError as error:
        # What our reader says, in the function that tf.data calls.
        told = re.search(r"\bUserError: (.+)", str(error))
        if told is None:
            raise
        raise UserError(told[1]) from None
    except (tf.errors.NotFoundError, tf.errors.PermissionDeniedError, tf.errors.FailedPreconditionError) as error:
        if "incarnation" in str(error):  # another worker was started again, and this one still knows the one before
            raise _lost(error) from None
        raise UserError(f"A file cannot be read or written: {_line(error)}.") from None


def _lost(error: Exception) -> UserError:
    return UserError(
        f"Another worker was lost: {_line(error)}. Run the same command on all of them again: the run goes on from its "
        "last checkpoint."
    )


def _line(error: Exception) -> str:
    """The first line of an error, without the names of the graph's node and operation."""
    lines = str(getattr(error, "message", error)).splitlines()
    line = next((line for line in lines if line and not line.startswith(("Graph execution", "Detected at"))), lines[0])
    return re.sub(r"^\{\{[^}]*\}\} ?| \[Op:.*$", "", line).rstrip(".")


@contextlib.contextmanager
def _stderr_aside() -> Iterator[None]:
    """Holds back what C++ writes to stderr before its logging is set up, which no setting stops; told if it fails."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(before, aside.read())
            raise
        finally:
            os.dup2(before, 2)
            os.close(before)
