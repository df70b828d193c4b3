"""Sets up TensorFlow for a command: few log messages, exact and deterministic operations, GPU memory as needed."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

LOG_LEVEL, QUIET = "TF_CPP_MIN_LOG_LEVEL", "2"


def start_tensorflow(*, deterministic: bool | None = None) -> None:
    """Imports TensorFlow without its log messages, lets GPU memory grow, and makes it deterministic, without TF32."""
    if LOG_LEVEL not in os.environ:  # a user who has set it wants to see the messages
        os.environ[LOG_LEVEL] = QUIET
        with buffer_stderr():
            import tensorflow  # noqa: F401

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    grow_gpu_memory()
    allow_tf32(False)
    make_deterministic(deterministic)


def grow_gpu_memory() -> None:
    """Lets TensorFlow take the memory of each GPU as it needs it, so that several processes can share a GPU.

    By default, the first process takes all of it. A GPU that this process already uses keeps its settings.
    """
    import tensorflow as tf

    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)


def allow_tf32(allowed: bool) -> None:
    """Sets whether GPUs may round the factors of float32 products to TF32, in this process and for all of its models.

    TensorFlow's own default is that they may. It changes nothing on a CPU.
    """
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(allowed)


def make_deterministic(deterministic: bool | None = None) -> bool:
    """Selects TensorFlow's deterministic operations, and returns whether it did.

    On a CPU, every run then gives the same bits. On a GPU, cuDNN's recurrent kernels have no deterministic form, and
    TensorFlow neither replaces nor refuses them (https://github.com/tensorflow/tensorflow/issues/59281). This cannot be
    undone in the same process.

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
def buffer_stderr() -> Iterator[None]:
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
