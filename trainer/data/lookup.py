"""Finds the index of each string in a vocabulary."""

import functools
import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# A function from strings to their indexes: int64 of the same shape.
LookupFn = Callable[[tf.Tensor], tf.Tensor]


@functools.lru_cache(maxsize=16)
def make_lookup(terms: tuple[bytes, ...]) -> LookupFn:
    """Returns a function that gives the position of each string in `terms`, or len(terms) for an unknown string.

    Two standard ways do not fit. keras.layers.StringLookup reserves words (but a record may contain "[UNK]") and gives
    index 0 to unknown strings (but class i should be line i of the vocabulary's file). A table of tf.lookup has state,
    so tf.data reads in a single thread if operations must be deterministic. Here the terms are sorted by their hashes,
    found by binary search, and compared.
    """
    if not terms:
        return lambda strings: tf.zeros(tf.shape(strings), tf.int64)
    num_buckets, hashes = _distinct_hashes(terms)
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


def _distinct_hashes(terms: tuple[bytes, ...]) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Returns a number of hash buckets for which all terms have different hashes, and the hash of each term."""
    for num_buckets in itertools.count(2**63 - 1, -1):
        with tf.init_scope():  # computes the hashes immediately, even while a function is traced
            hashes = tf.strings.to_hash_bucket_fast(tf.constant(list(terms)), num_buckets).numpy()
        if len(np.unique(hashes)) == len(terms):
            return num_buckets, hashes
    raise AssertionError("unreachable")
