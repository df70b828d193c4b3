"""The index of a string is its position in the vocabulary, in any shape; all unknown strings have the same index."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

import trainer.data.lookup
from trainer.data.lookup import make_lookup


@given(st.lists(st.binary(max_size=4), unique=True, max_size=20), st.lists(st.binary(max_size=4), max_size=20))
def test_the_lookup_gives_the_same_indexes_as_a_dict(terms, strings):
    positions = {term: position for position, term in enumerate(terms)}
    queries = [*strings, *terms]
    found = make_lookup(tuple(terms))(tf.constant(queries, tf.string, [len(queries)]))
    assert found.numpy().tolist() == [positions.get(string, len(terms)) for string in queries]
    assert found.dtype == tf.int64


@pytest.mark.parametrize("terms", [(), (b"a",), (b"a", b"b", b"c")])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (1, 2, 2)])
def test_the_result_has_the_shape_of_the_strings(terms, shape):
    queries = np.full(shape, b"b", object)
    expected = terms.index(b"b") if b"b" in terms else len(terms)
    found = tf.function(make_lookup(terms))(tf.constant(queries, tf.string))
    assert found.shape == shape
    assert (found.numpy() == expected).all()


def test_terms_with_the_same_hash_have_different_indexes(monkeypatch):
    hash_of, tried = tf.strings.to_hash_bucket_fast, []

    def colliding(strings, num_buckets):
        tried.append(num_buckets)
        return hash_of(strings, num_buckets if num_buckets < 2**63 - 2 else 2)

    monkeypatch.setattr(trainer.data.lookup.tf.strings, "to_hash_bucket_fast", colliding)
    terms = (b"one", b"two", b"three", b"four")
    lookup = make_lookup(terms)
    assert min(tried) == 2**63 - 3
    assert lookup(tf.constant([*terms, b"five"])).numpy().tolist() == [0, 1, 2, 3, 4]
