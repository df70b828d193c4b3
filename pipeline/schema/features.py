"""Features: the values that a record has for each step, or once."""

import functools
import math
from typing import Annotated, Any, Literal

import pydantic

from pipeline.yaml_document import Document


def _check_unicode(value: Any) -> Any:
    """`value`, which is no string that cannot be written down: with half of a pair of surrogates."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("expected valid Unicode") from None
    return value


# Lengths and positions are int32 in TensorFlow.
PositiveInt = Annotated[int, pydantic.Field(strict=True, ge=1, le=2**31 - 1)]


def _check_fill_value(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a number, a string, or mean")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return _check_unicode(value)


Fill = Annotated[
    pydantic.StrictInt | pydantic.StrictFloat | pydantic.StrictStr, pydantic.BeforeValidator(_check_fill_value)
]

_MAX_FLOAT32 = float(2**128 - 2**104)


class Feature(Document):
    """Numbers (float32 of any shape) or categories (int64, string); one such value a step, or one a record."""

    dtype: Literal["float32", "int64", "string"]
    shape: tuple[PositiveInt, ...] = ()
    num_values: PositiveInt | None = pydantic.Field(
        None, description="Categories: int64 values are 0 … num_values - 1; strings are hashed into as many values."
    )
    vocabulary: PositiveInt | None = pydantic.Field(
        None, description="Strings: so many, the most frequent of the train split, have a value each; others share one."
    )
    missing: Literal["reject", "fill", "indicator"] = pydantic.Field(
        "reject",
        description="A null: rejects the record; is replaced; or is replaced and told by an input of its own.",
    )
    fill_value: Fill | None = pydantic.Field(
        None, description="What replaces a null: a value, or `mean` (of the train split), the default of float32."
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _normalize(cls, values: Any) -> Any:
        """`missing: {fill: 0}` is `missing: fill, fill_value: 0`; of a float32, the fill value is a float, or mean.

        So that what means the same has the same fingerprint.
        """
        if not isinstance(values, dict):
            return values
        missing = values.get("missing")
        if isinstance(missing, dict):
            if list(missing) != ["fill"]:
                raise ValueError(f"missing: {missing}: expected reject, indicator, fill, or {{fill: a value}}")
            if values.get("fill_value") is not None:
                raise ValueError("fill_value: stands twice, here and inside missing; keep one")
            values = values | {"missing": "fill", "fill_value": missing["fill"]}
        if values.get("dtype") == "float32" and values.get("missing") == "fill":
            fill = values.get("fill_value")
            if fill is None:
                values = values | {"fill_value": "mean"}
            elif type(fill) is int and abs(fill) <= _MAX_FLOAT32:
                values = values | {"fill_value": float(fill)}
        return values

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Feature":
        if self.dtype == "float32" and self.num_values is not None:
            raise ValueError("num_values belongs to the categories int64 and string, a float32 has none")
        if self.dtype != "string" and self.vocabulary is not None:
            raise ValueError(f"vocabulary belongs to the dtype string, not to {self.dtype}")
        if self.dtype == "int64" and self.num_values is None:
            raise ValueError("int64 is a category and needs num_values (a quantity is float32)")
        if self.dtype == "string" and (self.num_values is None) == (self.vocabulary is None):
            raise ValueError(
                "string needs either vocabulary (the most frequent strings have a value each) or num_values (strings "
                "are hashed into as many values)"
            )
        self._check_fill()
        return self

    def _check_fill(self) -> None:
        fill = self.fill_value
        if self.missing != "fill":
            if fill is not None:
                raise ValueError(f"fill_value: {fill!r}: belongs to missing: fill, not to missing: {self.missing}")
        elif self.dtype == "float32":
            if fill != "mean" and not (isinstance(fill, float) and abs(fill) <= _MAX_FLOAT32):
                raise ValueError(f"fill_value: {fill!r}: expected a number in the range of float32, or mean")
        elif self.dtype == "string":
            if fill is not None and (not isinstance(fill, str) or fill == "mean"):
                raise ValueError(f"fill_value: {fill!r}: expected a string (of which there is no mean)")
        elif not isinstance(fill, int) or not 0 <= fill < (self.num_values or 0):
            found = "is missing" if fill is None else repr(fill)
            raise ValueError(
                f"fill_value: {found}: expected a value of this category, 0 to {(self.num_values or 0) - 1}"
            )

    @functools.cached_property  # as below
    def width(self) -> int:
        """Numbers (or strings) a step, or a record: the product of `shape`."""
        return math.prod(self.shape)

    @property
    def allows_nulls(self) -> bool:
        """Whether a null is a missing value, and no fault."""
        return self.missing != "reject"
