"""The vocabulary of a string feature: the most frequent strings of the train split, numbered by their position."""

import collections
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence

# A vocabulary file has one string on each line, so line breaks inside strings are escaped.
_ESCAPES = {b"\\": rb"\\", b"\n": rb"\n", b"\r": rb"\r"}
_UNESCAPES = {escaped: raw for raw, escaped in _ESCAPES.items()}
# Names that every file system allows.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def choose_terms(counts: Mapping[bytes, int], size: int, *, min_count: int = 1) -> list[bytes]:
    """Returns the `size` most frequent strings, the most frequent first. Equally frequent strings are sorted by bytes.

    Args:
        min_count: Strings with fewer occurrences are left out.

    >>> choose_terms({b"b": 2, b"a": 2, b"c": 7, b"d": 1}, 3)
    [b'c', b'a', b'b']
    """
    frequent = [term for term, count in counts.items() if count >= min_count]
    return sorted(frequent, key=lambda term: (-counts[term], term))[:size]


def serialize_terms(terms: Sequence[bytes]) -> bytes:
    r"""Returns the bytes of a vocabulary file: one string on each line. \\, \n and \r are escaped with a backslash."""
    escaped = (re.sub(rb"[\\\n\r]", lambda found: _ESCAPES[found[0]], term) for term in terms)
    return b"".join(term + b"\n" for term in escaped)


def parse_terms(data: bytes) -> list[bytes]:
    """Returns the strings in the bytes of a vocabulary file."""
    lines = data.split(b"\n")[:-1]
    return [re.sub(rb"\\[\\nr]", lambda found: _UNESCAPES[found[0]], line) for line in lines]


def count_unknown(counts: Mapping[bytes, int], terms: Iterable[bytes]) -> int:
    """Returns the number of occurrences of strings that are not in the vocabulary.

    Args:
        counts: Number of occurrences of each string.
        terms: The vocabulary.

    >>> count_unknown({b"a": 2, b"c": 7}, [b"c", b"d"])
    2
    """
    return sum(counts.values()) - sum(counts.get(term, 0) for term in terms)


def vocabulary_file_names(features: Iterable[str]) -> dict[str, str]:
    """Returns the name of the vocabulary file of each feature.

    A feature's name becomes a hash if a file system might refuse it, or confuse it with another feature's name. The dot
    after `sha256` distinguishes a hash from the plain name of a feature.

    >>> vocabulary_file_names(["page", "../x"])
    {'page': 'page.txt', '../x': 'sha256.d6b96a97d147daaae49eb87a5ca7bfbc.txt'}
    """
    features = list(features)
    same_names = collections.Counter(name.lower() for name in features)
    return {
        name: f"{name}.txt"
        if _PLAIN.fullmatch(name) and same_names[name.lower()] == 1
        else f"sha256.{hashlib.sha256(name.encode()).hexdigest()[:32]}.txt"
        for name in features
    }
