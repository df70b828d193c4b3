"""Features: the input values of a record, per step or per record."""

import functools
import math
from typing import Annotated, Any, Literal

import pydantic

from pipeline.yaml_document import Document


def check_unicode(value: Any) -> Any:
    """Returns `value`. Raises ValueError for a string that has no UTF-8 encoding because of a lone surrogate."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("expected valid Unicode") from None
    return value


# TensorFlow stores lengths and positions as int32.
PositiveInt = Annotated[int, pydantic.Field(strict=True, ge=1, le=2**31 - 1)]


def _check_fill_value(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a number, a string, or mean")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return check_unicode(value)


Fill = Annotated[
    pydantic.StrictInt | pydantic.StrictFloat | pydantic.StrictStr, pydantic.BeforeValidator(_check_fill_value)
]

# Size of a vocabulary with `min_count` and without `size`.
MAX_VOCABULARY = 100_000

_MAX_FLOAT32 = float(2**128 - 2**104)


class Feature(Document):
    """A feature: numbers (float32) or categories (int64, string) of any shape, for each step or for the record."""

    dtype: Literal["float32", "int64", "string"]
    shape: tuple[PositiveInt, ...] = ()
    source: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(
        None, alias="from", description="Field of the raw record. By default the name of the feature."
    )
    num_values: PositiveInt | None = pydantic.Field(
        None,
        description="Number of categories: int64 values are 0 … num_values - 1; strings are hashed to these.",
    )
    vocabulary: PositiveInt | None = pydantic.Field(
        None,
        description="Number of strings, the most frequent of the train split, that get a category of their own. All "
        "other strings share one category. May also be {size: …, min_count: …, lowercase: true}; with a min_count, the "
        f"default of size is {MAX_VOCABULARY:,}.",
    )
    min_count: PositiveInt | None = pydantic.Field(
        None, description="Strings with fewer occurrences in the train split are not in the vocabulary."
    )
    lowercase: pydantic.StrictBool | None = pydantic.Field(
        None, description="Whether strings are converted to lower case, by Python's str.lower."
    )
    missing: Literal["reject", "fill", "indicator"] = pydantic.Field(
        "reject",
        description="A null rejects the record, is replaced, or is replaced and marked by an additional input.",
    )
    fill_value: Fill | None = pydantic.Field(
        None, description="Value that replaces a null. `mean`, the default of float32, is the mean of the train split."
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _normalize(cls, values: Any) -> Any:
        """Returns one form for features that mean the same, so that they have the same fingerprint.

        `missing: {fill: 0}` becomes `missing: fill, fill_value: 0`. For float32, the fill value is a float or `mean`.
        `vocabulary: {size: 9, min_count: 2}` becomes `vocabulary: 9, min_count: 2`, without keys of no effect.
        """
        if not isinstance(values, dict):
            return values
        values = _normalize_vocabulary(values)
        missing = values.get("missing")
        if isinstance(missing, dict):
            if list(missing) != ["fill"]:
                raise ValueError(f"missing: {missing}: expected reject, indicator, fill, or {{fill: a value}}")
            if values.get("fill_value") is not None:
                raise ValueError("fill_value: is given twice, here and inside missing; keep one")
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
            raise ValueError("num_values applies only to the dtypes int64 and string, not to float32")
        if self.dtype != "string" and self.vocabulary is not None:
            raise ValueError(f"vocabulary applies only to the dtype string, not to {self.dtype}")
        if self.vocabulary is None and (self.min_count, self.lowercase) != (None, None):
            raise ValueError("min_count and lowercase apply only to a string with a vocabulary")
        if self.dtype == "int64" and self.num_values is None:
            raise ValueError("int64 is a category and needs num_values (use float32 for a quantity)")
        if self.dtype == "string" and (self.num_values is None) == (self.vocabulary is None):
            raise ValueError(
                "string needs either vocabulary (the number of frequent strings with a category of their own) or "
                "num_values (the number of categories that strings are hashed into)"
            )
        self._check_fill()
        return self

    def _check_fill(self) -> None:
        fill = self.fill_value
        if self.missing != "fill":
            if fill is not None:
                raise ValueError(f"fill_value: {fill!r}: applies only to missing: fill, not to missing: {self.missing}")
        elif self.dtype == "float32":
            if fill != "mean" and not (isinstance(fill, float) and abs(fill) <= _MAX_FLOAT32):
                raise ValueError(f"fill_value: {fill!r}: expected a number in the range of float32, or mean")
        elif self.dtype == "string":
            if fill is not None and (not isinstance(fill, str) or fill == "mean"):
                raise ValueError(f"fill_value: {fill!r}: expected a string other than mean")
        elif not isinstance(fill, int) or not 0 <= fill < (self.num_values or 0):
            found = "is missing" if fill is None else repr(fill)
            raise ValueError(
                f"fill_value: {found}: expected a value of this category, 0 to {(self.num_values or 0) - 1}"
            )

    @functools.cached_property  # read for every record
    def width(self) -> int:
        """Number of values per step, or per record: the product of `shape`."""
        return math.prod(self.shape)

    @property
    def allows_nulls(self) -> bool:
        """Whether a null is a missing value rather than an error."""
        return self.missing != "reject"


def _normalize_vocabulary(values: dict[str, Any]) -> dict[str, Any]:
    vocabulary = values.get("vocabulary")
    if isinstance(vocabulary, dict):
        known = ("size", "min_count", "lowercase")
        unknown = [key for key in vocabulary if key not in known]
        if unknown:
            raise ValueError(f"vocabulary.{unknown[0]}: unknown key; known keys: {', '.join(known)}")
        twice = [key for key in known[1:] if key in vocabulary and values.get(key) is not None]
        if twice:
            raise ValueError(f"{twice[0]}: is given twice, here and inside vocabulary; keep one")
        if "size" not in vocabulary and "min_count" not in vocabulary:
            raise ValueError("vocabulary: expected a size (the largest number of strings), a min_count, or both")
        more = {key: vocabulary[key] for key in known[1:] if key in vocabulary}
        values = values | more | {"vocabulary": vocabulary.get("size", MAX_VOCABULARY)}
    without_effect = {key for key, value in (("min_count", 1), ("lowercase", False)) if values.get(key) is value}
    return {key: value for key, value in values.items() if key not in without_effect}
