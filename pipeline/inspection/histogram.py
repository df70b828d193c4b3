"""Describes the lengths of records: their range, and a histogram with bars of text."""

from collections.abc import Iterator, Mapping

# Characters of the longest bar.
_BAR_CELLS = 40
_MAX_BANDS = 16
_EIGHTHS = " ▏▎▍▌▋▊▉"


def length_range(counts: Mapping[int, int]) -> dict[str, float] | None:
    """Returns the shortest, the median and the longest length in steps, or None if there are no records.

    >>> length_range({2: 3, 9: 1})
    {'min': 2, 'median': 2, 'max': 9}

    Args:
        counts: Number of records of each length.
    """
    lengths = sorted(length for length, count in counts.items() if count)
    if not lengths:
        return None
    total = sum(counts.values())
    middle = {(total - 1) // 2: 0, total // 2: 0}
    seen = 0
    for length in lengths:
        middle.update({rank: length for rank in middle if seen <= rank < seen + counts[length]})
        seen += counts[length]
    median = sum(middle.values()) / len(middle)
    return {"min": lengths[0], "median": int(median) if median.is_integer() else median, "max": lengths[-1]}


def length_bands(counts: Mapping[int, int]) -> list[tuple[int, int, int]]:
    """Returns the bands of a histogram as (first length, last length, number of records), without gaps.

    All bands have the same width. If a few records are much longer than most, each band has twice the width of the
    band before it.

    >>> length_bands({1: 5, 2: 1, 4: 1})
    [(1, 1, 5), (2, 2, 1), (3, 3, 0), (4, 4, 1)]

    Args:
        counts: Number of records of each length.
    """
    ends = length_range(counts)
    if ends is None:
        return []
    shortest, longest = int(ends["min"]), int(ends["max"])
    if longest > 8 * ends["median"] and longest > _MAX_BANDS:
        starts = [2**power for power in range(max(shortest.bit_length(), 1) - 1, longest.bit_length() + 1)]
    else:
        width = next(w for w in _round_widths() if longest // w - shortest // w < _MAX_BANDS)
        starts = list(range(shortest // width * width, longest + width + 1, width))
    edges = zip(starts, starts[1:], strict=False)
    bands = [(max(first, shortest), min(after - 1, longest)) for first, after in edges if first <= longest]
    return [(first, last, sum(n for length, n in counts.items() if first <= length <= last)) for first, last in bands]


def _round_widths() -> Iterator[int]:
    """Yields 1, 2, 5, 10, 20, 50 and so on."""
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def bar(share: float, *, blocks: bool) -> str:
    """Returns a bar of up to 40 characters for a share from 0 to 1. Any share above 0 is visible.

    Args:
        blocks: Draws with block characters, in eighths of a character. Otherwise draws with number signs.
    """
    if not blocks:
        return "#" * max(round(share * _BAR_CELLS), int(share > 0))
    eighths = max(round(share * _BAR_CELLS * 8), int(share > 0))
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
