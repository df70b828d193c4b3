"""Numbers strings by a vocabulary: the position of each, and one number more for all that are not in it."""

import functools
from collections.abc import Callable

import tensorflow as tf

# strings -> int64 of the same shape
Lookup = Callable[[tf.Tensor], tf.Tensor]


@functools.lru_cache(maxsize=16)
def make_lookup(terms: tuple[bytes, ...]) -> Lookup:
    """The position of a string in `terms`, or len(terms); kept, since a table that no one holds is gone."""
    return make_table(terms).lookup


def make_table(terms: tuple[bytes, ...]) -> tf.lookup.StaticHashTable:
    """A table of the positions in `terms`; the default is len(terms).

    Not keras.layers.StringLookup: that one reserves words (a record may well hold "[UNK]"), and numbers the unknown
    first, where class i should be line i of the vocabulary's file.
    """
    keys = tf.constant(list(terms), tf.string, shape=[len(terms)])
    values = tf.range(len(terms), dtype=tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), len(terms))
