"""Exact sums of the values of a feature, as files store them: sums of parts of a dataset add up without rounding."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Self

import numpy as np
import pydantic

from pipeline.format.models import FeatureStatistics
from pipeline.schema.record import Array

# Every float32 is an integer multiple of 2**-149, and its square one of 2**-298. Every float32 is less than 2**128.
SUM_UNIT, SQUARES_UNIT = -149, -298
_MAX_COUNT = 2**53 - 1
# The sum of _MAX_COUNT squares has at most 53 + 256 + 298 bits, which are 152 digits.
_MAX_DIGITS, _MAX_EXPONENT = 152, 53 + 256
# Exactly the texts that `format_number` returns, without zero: the last digit is odd, and the first is not 0.
_NUMBER = re.compile(rf"(-?0x(?:[1-9a-f][0-9a-f]{{0,{_MAX_DIGITS - 2}}})?[13579bdf])p(\+0|[+-][1-9][0-9]{{0,2}})")
_ZERO = "0x0p+0"


def format_number(value: int, *, unit: int) -> str:
    """Returns value * 2**unit as text.

    >>> format_number(-499 << 20, unit=-40)
    '-0x1f3p-20'
    """
    if not value:
        return _ZERO
    zeros = (value & -value).bit_length() - 1
    return f"{value >> zeros:#x}p{unit + zeros:+d}"


def parse_number(text: Any, *, unit: int) -> int:
    """Returns the value of which `format_number` makes this text.

    Raises:
        ValueError: It makes this text of no value, or of one that is larger than every sum.
    """
    if text == _ZERO:
        return 0
    match = _NUMBER.fullmatch(text) if isinstance(text, str) else None
    if match and unit <= (exponent := int(match[2])) <= _MAX_EXPONENT:
        return int(match[1], 16) << exponent - unit
    raise ValueError(
        f"expected an odd hexadecimal integer of at most {_MAX_DIGITS} digits and a power of two from {unit} to "
        f"{_MAX_EXPONENT}, such as '-0x1f3p-20', or {_ZERO!r}"
    )


_Count = Annotated[int, pydantic.Field(ge=0, le=_MAX_COUNT)]
_Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
_Sum = Annotated[
    int,
    pydantic.BeforeValidator(functools.partial(parse_number, unit=SUM_UNIT)),
    pydantic.PlainSerializer(functools.partial(format_number, unit=SUM_UNIT), return_type=str),
]
_Squares = Annotated[
    int,
    pydantic.BeforeValidator(functools.partial(parse_number, unit=SQUARES_UNIT)),
    pydantic.PlainSerializer(functools.partial(format_number, unit=SQUARES_UNIT), return_type=str),
]


class FeatureSums(pydantic.BaseModel):
    """Exact sums over rows of float32 values, for each column of a feature's flattened shape.

    In a file, a sum is text, a hexadecimal integer times a power of two: "-0x1f3p-20" is -499 / 2**20. The integer is
    odd, and zero is "0x0p+0", so that equal sums are equal texts. The model is also made from such texts.

    Missing values count in `count` and `missing` only. A column without any other value has zeros elsewhere.

    Attributes:
        count: Number of rows, including those with missing values.
        missing: Number of missing values of each column; empty if none is missing.
        sum: The sum of the values of each column, as a multiple of 2**SUM_UNIT.
        sum_squares: The sum of the squares of the values of each column, as a multiple of 2**SQUARES_UNIT.
        min, max: The smallest and the largest value of each column; zero is never negative.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    count: _Count
    missing: tuple[_Count, ...] = ()
    sum: tuple[_Sum, ...]
    sum_squares: tuple[_Squares, ...]
    min: tuple[_Finite, ...]
    max: tuple[_Finite, ...]

    @classmethod
    def of(
        cls,
        count: int,
        missing: Array,
        sums: Iterable[int],
        squares: Iterable[int],
        minimum: Array,
        maximum: Array,
    ) -> "FeatureSums":
        """Returns the sums without checking them.

        Args:
            missing: int64[width].
            sums, squares: The integers of `sum` and `sum_squares`.
            minimum, maximum: float[width]; any value in columns where all values are missing.
        """
        has_values = missing < count
        # The smallest of 0.0 and -0.0 depends on their order. The sum with 0.0 is 0.0 for both.
        low, high = (np.where(has_values, values, 0.0).astype(np.float64) + 0.0 for values in (minimum, maximum))
        # Not validated: the integers are no texts, and the checks would take longer than the sums of a wide feature.
        return cls.model_construct(
            count=count,
            missing=tuple(missing.tolist()) if missing.any() else (),
            sum=tuple(sums),
            sum_squares=tuple(squares),
            min=tuple(low.tolist()),
            max=tuple(high.tolist()),
        )

    @property
    def width(self) -> int:
        """Number of columns."""
        return len(self.sum)

    def statistics(self) -> FeatureStatistics:
        """Returns the statistics that follow. Each mean and each variance is rounded once, to float64."""
        mean, variance = [], []
        for count, total, squares in zip(self._counts(), self.sum, self.sum_squares, strict=True):
            # Python rounds the quotient of two integers of any size correctly.
            mean.append(total / (count << -SUM_UNIT) if count else 0.0)
            spread = count * squares - total * total
            variance.append(spread / (count * count << -SQUARES_UNIT) if count else 0.0)
        return FeatureStatistics(
            count=self.count,
            missing=self.missing,
            mean=tuple(mean),
            variance=tuple(variance),
            min=self.min,
            max=self.max,
        )

    def _counts(self) -> list[int]:
        """Returns the number of values of each column that are not missing."""
        return [self.count - missing for missing in self.missing or [0] * self.width]

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        """Refuses sums that no values have."""
        widths = {"sum_squares": len(self.sum_squares), "min": len(self.min), "max": len(self.max)}
        if self.missing:
            widths["missing"] = len(self.missing)
        for name, width in widths.items():
            if width != self.width:
                raise ValueError(f"{name} has {width:,} columns, but sum has {self.width:,}")
        if self.missing and not any(self.missing):
            raise ValueError("missing has only zeros, expected no columns if no value is missing")
        for name, bounds in (("min", np.array(self.min)), ("max", np.array(self.max))):
            with np.errstate(over="ignore"):  # a number that is too large becomes infinite, which is not equal to it
                wrong = (bounds.astype(np.float32) != bounds) | (np.signbit(bounds) & (bounds == 0))
            if wrong.any():
                raise ValueError(f"{name} has {bounds[wrong][0]}, expected float32 numbers and no -0.0")
        columns = zip(self._counts(), self.sum, self.sum_squares, self.min, self.max, strict=True)
        for number, column in enumerate(columns):
            if problem := _find_problem(*column):
                raise ValueError(f"column {number}: {problem}")
        return self


def _find_problem(count: int, total: int, squares: int, low: float, high: float) -> str | None:
    """Returns why no `count` values have these sums, minimum and maximum; None if some may have them."""
    if count < 0:
        return "more values are missing than there are rows"
    if not count and (total, squares, low, high) != (0, 0, 0, 0):
        return "all values are missing, expected zeros"
    least, most = (int(math.ldexp(bound, -SUM_UNIT)) for bound in (low, high))
    if not count * least <= total <= count * most:
        return f"no {count:,} values from {low!r} to {high!r} have this sum"
    # The first inequality is that of Cauchy and Schwarz: a variance is not negative.
    if not total * total <= count * squares <= count * count * max(least * least, most * most):
        return f"no {count:,} values from {low!r} to {high!r} with this sum have this sum_squares"
    return None


@dataclasses.dataclass(frozen=True)
class PackedSums:
    """Sums as a few long objects, for Beam: it visits every object in a value that it passes between workers.

    Attributes:
        sum, sum_squares: The integers of all columns, each of the same number of bytes.
        minimum, maximum: float64[width].
    """

    count: int
    missing: Array
    sum: bytes
    sum_squares: bytes
    minimum: Array
    maximum: Array

    @classmethod
    def of(cls, sums: FeatureSums) -> "PackedSums":
        """Packs sums."""
        return cls(
            sums.count,
            _missing(sums),
            _pack_integers(sums.sum),
            _pack_integers(sums.sum_squares),
            np.array(sums.min),
            np.array(sums.max),
        )

    def unpack(self) -> FeatureSums:
        """Returns the sums that `of` packed."""
        sums, squares = (_unpack_integers(data, len(self.minimum)) for data in (self.sum, self.sum_squares))
        return FeatureSums.of(self.count, self.missing, sums, squares, self.minimum, self.maximum)


def _pack_integers(values: tuple[int, ...]) -> bytes:
    size = max(value.bit_length() for value in values) // 8 + 1
    return b"".join([value.to_bytes(size, "little", signed=True) for value in values])


def _unpack_integers(data: bytes, count: int) -> list[int]:
    size = len(data) // count
    return [int.from_bytes(data[at : at + size], "little", signed=True) for at in range(0, len(data), size)]


def merge_sums(parts: Iterable[FeatureSums | None]) -> FeatureSums | None:
    """Returns the sums over the rows of all parts, whatever their order; None if there is no part.

    Raises:
        ValueError: The parts have different numbers of columns.
    """
    present = (part for part in parts if part is not None)
    first = next(present, None)
    if first is None:
        return None
    count, missing, (minimum, maximum) = first.count, _missing(first), _range(first)
    sums, squares = first.sum, first.sum_squares
    for part in present:
        if part.width != first.width:
            raise ValueError(f"cannot add sums of {part.width:,} columns to sums of {first.width:,}")
        low, high = _range(part)
        minimum, maximum = np.minimum(minimum, low), np.maximum(maximum, high)
        count, missing = count + part.count, missing + _missing(part)
        sums = tuple([a + b for a, b in zip(sums, part.sum, strict=True)])
        squares = tuple([a + b for a, b in zip(squares, part.sum_squares, strict=True)])
    return FeatureSums.of(count, missing, sums, squares, minimum, maximum)


def _missing(part: FeatureSums) -> Array:
    return np.array(part.missing or [0] * part.width, np.int64)


def _range(part: FeatureSums) -> tuple[Array, Array]:
    """Returns the minimum and the maximum of each column: infinity and -infinity if all values are missing."""
    has_values = _missing(part) < part.count
    return np.where(has_values, part.min, np.inf), np.where(has_values, part.max, -np.inf)
