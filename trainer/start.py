"""Starts TensorFlow for a command: quietly, and with the same bits every time on a CPU."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator


def start_tensorflow() -> None:
    """Imports TensorFlow, and makes its operations deterministic where there is no GPU (there it costs speed)."""
    if "TF_CPP_MIN_LOG_LEVEL" not in os.environ:  # someone who set it wants to see what there is
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
        with _stderr_aside():
            import tensorflow as tf
    import tensorflow as tf

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if not tf.config.list_physical_devices("GPU"):
        tf.config.experimental.enable_op_determinism()


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
