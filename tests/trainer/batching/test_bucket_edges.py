"""The edges of the buckets: no other edges need fewer padded steps."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from trainer.batching.bucket_edges import choose_edges

COUNTS = st.dictionaries(st.integers(1, 40), st.integers(1, 30), min_size=1, max_size=7)


def padded_steps(counts, edges):
    return sum(count * min(edge for edge in edges if edge >= length) for length, count in counts.items())


@given(COUNTS, st.integers(1, 5))
def test_no_other_edges_need_fewer_padded_steps(counts, num_buckets):
    longest = max(counts)
    others = [length for length in counts if length != longest]
    cheapest = min(
        padded_steps(counts, [*chosen, longest])
        for size in range(min(num_buckets, len(counts)))
        for chosen in itertools.combinations(others, size)
    )
    edges = choose_edges(counts, num_buckets=num_buckets)
    assert edges == sorted(set(edges)) and len(edges) <= num_buckets
    assert padded_steps(counts, edges) == cheapest


def test_with_thousands_of_lengths_the_longest_is_an_edge_and_few_steps_are_padding():
    counts = {length: 1 + length % 3 for length in range(1, 3000)}
    edges = choose_edges(counts, num_buckets=16)
    assert len(edges) == 16 and edges[-1] == 2999
    useful = sum(length * count for length, count in counts.items())
    assert useful / padded_steps(counts, edges) > 0.94  # 16 buckets with the same number of lengths have 16.5 / 17.5


def test_a_length_without_a_record_is_no_edge():
    assert choose_edges({5: 1, 9: 0, 7: 2}, num_buckets=4) == [5, 7]
