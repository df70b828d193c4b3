"""The vocabulary of a string feature: the most frequent strings of the train split, each with a number of its own."""

import collections
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

# Strings may hold line breaks; the file has a string a line.
_ESCAPES = {b"\\": rb"\\", b"\n": rb"\n", b"\r": rb"\r"}
_UNESCAPES = {escaped: raw for raw, escaped in _ESCAPES.items()}
# What may name a file anywhere.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def choose_terms(counts: Mapping[bytes, int], size: int) -> list[bytes]:
    """The `size` most frequent strings, the most frequent first; those that are as frequent, in the order of bytes.

    >>> choose_terms({b"b": 2, b"a": 2, b"c": 7, b"d": 1}, 3)
    [b'c', b'a', b'b']
    """
    return sorted(counts, key=lambda term: (-counts[term], term))[:size]


def serialize_terms(terms: Sequence[bytes]) -> bytes:
    r"""The bytes of a vocabulary's file: a string a line, in which \\, \n and \r are written with a backslash."""
    escaped = (re.sub(rb"[\\\n\r]", lambda found: _ESCAPES[found[0]], term) for term in terms)
    return b"".join(term + b"\n" for term in escaped)


def parse_terms(data: bytes) -> list[bytes]:
    """The strings in the bytes of a vocabulary's file; the number of a string is its position."""
    lines = data.split(b"\n")[:-1]
    return [re.sub(rb"\\[\\nr]", lambda found: _UNESCAPES[found[0]], line) for line in lines]


def count_unknown(counts: Mapping[bytes, int], terms: Iterable[bytes]) -> int:
    """How many of the strings that were counted are not in the vocabulary.

    >>> count_unknown({b"a": 2, b"c": 7}, [b"c", b"d"])
    2
    """
    return sum(counts.values()) - sum(counts.get(term, 0) for term in terms)


def vocabulary_file_names(features: Iterable[str]) -> dict[str, str]:
    """The name of the file for the vocabulary of each feature.

    A name that a file system might not take, or take for that of another feature, becomes a hash. A point in it keeps
    it apart from a feature that is called like the hash.

    >>> vocabulary_file_names(["page", "../x"])
    {'page': 'page.txt', '../x': 'sha256.d6b96a97d147daaae49eb87a5ca7bfbc.txt'}
    """
    features = list(features)
    alike = collections.Counter(name.lower() for name in features)
    return {
        name: f"{name}.txt"
        if _PLAIN.fullmatch(name) and alike[name.lower()] == 1
        else f"sha256.{hashlib.sha256(name.encode()).hexdigest()[:32]}.txt"
        for name in features
    }
