"""Numbers strings by a vocabulary: the position of each, and one number more for all that are not in it."""

import functools
import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from pipeline.schema.record import MISSING_STRING

# strings -> int64 of the same shape
Lookup = Callable[[tf.Tensor], tf.Tensor]


@functools.lru_cache(maxsize=16)
def make_lookup(terms: tuple[bytes, ...]) -> Lookup:
    """The position of a string in `terms`, or len(terms).

    Not keras.layers.StringLookup: that one reserves words (a record may well hold "[UNK]"), and numbers the unknown
    first, where class i should be line i of the vocabulary's file. Nor a table of tf.lookup: its state makes tf.data
    read in one thread, where operations are to be deterministic. So the terms are found by their sorted hashes, and
    compared.
    """
    if not terms:
        return lambda strings: tf.zeros(tf.shape(strings), tf.int64)
    num_buckets, hashes = _hash_apart(terms)
    order = np.argsort(hashes)
    ordered = [terms[position] for position in order]

    def lookup(strings: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(strings, [-1])
        place = tf.searchsorted(tf.constant(hashes[order]), tf.strings.to_hash_bucket_fast(flat, num_buckets))
        place = tf.minimum(place, len(terms) - 1)
        is_term = tf.gather(tf.constant(ordered), place) == flat
        found = tf.where(is_term, tf.gather(tf.constant(order, tf.int64), place), len(terms))
        return tf.reshape(found, tf.shape(strings))

    return lookup


def _hash_apart(terms: tuple[bytes, ...]) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """A number of buckets for which no two terms have the same hash, and the hash of each."""
    for num_buckets in itertools.count(2**63 - 1, -1):
        with tf.init_scope():  # numbers, also while a function is traced
            hashes = tf.strings.to_hash_bucket_fast(tf.constant(list(terms)), num_buckets).numpy()
        if len(np.unique(hashes)) == len(terms):
            return num_buckets, hashes
    raise AssertionError("unreachable")


def is_missing(values: tf.Tensor) -> tf.Tensor:
    """bool of the shape of `values`: which of them stand for a value that is missing."""
    if values.dtype == tf.string:
        return values == MISSING_STRING
    return values < 0 if values.dtype == tf.int64 else tf.math.is_nan(values)
