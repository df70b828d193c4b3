"""Makes lengths something one can look at: their range, and a histogram of bands and bars."""

from collections.abc import Iterator, Mapping

_BAR_CELLS = 40
_MAX_BANDS = 16
_EIGHTHS = " ▏▎▍▌▋▊▉"


def length_range(counts: Mapping[int, int]) -> dict[str, float] | None:
    """Shortest, middle and longest length; None where there is no record.

    >>> length_range({2: 3, 9: 1})
    {'min': 2, 'median': 2, 'max': 9}
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
    """(first length, last length, records) of the bands of a histogram, none left out between the ends.

    Bands are equally wide; where a few records are far longer than most, each is twice as wide as the one before.

    >>> length_bands({1: 5, 2: 1, 4: 1})
    [(1, 1, 5), (2, 2, 1), (3, 3, 0), (4, 4, 1)]
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
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def bar(share: float, *, blocks: bool) -> str:
    """A bar of up to 40 cells; the smallest share above 0 still shows."""
    if not blocks:
        return "#" * max(round(share * _BAR_CELLS), int(share > 0))
    eighths = max(round(share * _BAR_CELLS * 8), int(share > 0))
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
