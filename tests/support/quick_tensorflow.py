"""Lets TensorFlow start functions faster: the tests compile hundreds of small ones, and call most of them a few times.

TensorFlow rewrites the graph of each function before its first call, so that later calls are faster. For one small run
that takes half a second of processor time, a fifth of the run. `make proof` tests with rewritten graphs, as users run
them. The numbers may differ in the last bits, so all processes of a test must call this, or none.
"""

import tensorflow as tf

# Whether `install` was called in this process.
installed = False


def install() -> None:
    """Lets TensorFlow run the graph of each function as it is, in this process."""
    global installed
    installed = True
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
