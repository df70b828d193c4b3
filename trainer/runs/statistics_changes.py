"""Describes by how much the statistics and vocabularies of a run differ from those of the run it starts from."""

import math
from collections.abc import Mapping, Sequence

from pipeline.format.scaling import ScaledStatistics
from trainer.data.target import Vocabularies

# Number of features that are listed: those that change most.
MAX_LISTED = 10


def describe_changes(
    before: Mapping[str, ScaledStatistics],
    after: Mapping[str, ScaledStatistics],
    before_terms: Vocabularies,
    after_terms: Vocabularies,
) -> list[str]:
    """Returns a line for each feature that changes, at most `MAX_LISTED`, and one that counts the others.

    The largest change comes first. These are equally large: a mean that moves by one standard deviation, a standard
    deviation that doubles or halves, and a vocabulary with another string at every position.

    Args:
        before, after: Statistics by name. A name that is in only one of them has no line.
        before_terms, after_terms: The strings of each vocabulary by name, likewise.
    """
    changes = [_compare_statistics(name, before[name], after[name]) for name in after if name in before]
    changes += [_compare_terms(n, before_terms[n], after_terms[n]) for n in after_terms if n in before_terms]
    changed = sorted((change for change in changes if change[0] > 0), key=lambda change: -change[0])
    lines = [text for _, text in changed[:MAX_LISTED]]
    if len(changed) > MAX_LISTED:
        lines.append(f"and {len(changed) - MAX_LISTED:,} more with smaller changes")
    return lines


def _compare_statistics(name: str, before: ScaledStatistics, after: ScaledStatistics) -> tuple[float, str]:
    """Returns the size of the change in the column that changes most, and its description."""
    sizes = [
        max(abs(new_mean - mean) / scale, abs(math.log2(new_scale) - math.log2(scale)))
        for mean, scale, new_mean, new_scale in zip(
            before.mean, before.divisors(), after.mean, after.divisors(), strict=True
        )
    ]
    worst = max(range(len(sizes)), key=sizes.__getitem__)
    mean, variance, new_mean, new_variance = (
        column[worst] for column in (before.mean, before.variance, after.mean, after.variance)
    )
    column = f" (column {worst})" if len(sizes) > 1 else ""
    shift = factor = ""
    if variance > 0:
        shift = f" ({(new_mean - mean) / variance**0.5:+.2f} standard deviations)"
        factor = f" (x {(new_variance / variance) ** 0.5:.3g})"
    # What a value is divided by may change although its statistics do not, if an older version trained the other run.
    scale, new_scale = before.divisors()[worst], after.divisors()[worst]
    divisor = f", divisor {scale:.4g} -> {new_scale:.4g}" if new_variance == variance and new_scale != scale else ""
    return sizes[worst], (
        f"{name}{column}: mean {mean:.4g} -> {new_mean:.4g}{shift}, "
        f"standard deviation {variance**0.5:.4g} -> {new_variance**0.5:.4g}{factor}{divisor}"
    )


def _compare_terms(name: str, before: Sequence[bytes], after: Sequence[bytes]) -> tuple[float, str]:
    """Returns the share of positions in a vocabulary that have another string, and the description of the change."""
    num_other = sum(a != b for a, b in zip(before, after, strict=False)) + abs(len(before) - len(after))
    positions = {term: position for position, term in enumerate(before)}
    num_kept = sum(term in positions for term in after)
    num_moved = sum(positions.get(term, position) != position for position, term in enumerate(after))
    return num_other / max(len(before), len(after), 1), (
        f"{name}: {len(after) - num_kept:,} of {len(after):,} strings new, {len(before) - num_kept:,} of "
        f"{len(before):,} gone, {num_moved:,} at another position"
    )
