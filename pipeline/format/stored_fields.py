"""What is stored of a record by its schema: each feature, the label, and the length."""

import dataclasses
import math

from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.record import NO_LABEL
from pipeline.schema.schema import Schema


@dataclasses.dataclass(frozen=True)
class StoredField:
    """One feature of an Example, and the array that a batch makes of it.

    Attributes:
        dtype: float32, int64 or string.
        shape: Of a step's value, or of a record's.
        padding: What a step of padding holds: of a label, that there is none.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    per_step: bool
    padding: float | str = 0

    @property
    def width(self) -> int:
        return math.prod(self.shape)


def stored_fields(schema: Schema, *, labelled: bool = True) -> list[StoredField]:
    """All fields of a record but its id."""
    fields = [
        StoredField(
            name, feature.dtype, tuple(feature.shape), name in schema.steps, "" if feature.dtype == "string" else 0
        )
        for name, feature in schema.features.items()
    ]
    label = schema.label
    if labelled and label.name is not None:
        floats = label.kind in ("distribution", *REGRESSION)
        shape = (len(label.classes),) if label.kind in ("distribution", *MULTILABEL) else ()
        padding = math.nan if label.kind in REGRESSION else NO_LABEL
        fields.append(StoredField(label.name, "float32" if floats else "int64", shape, label.per_step, padding))
    return [*fields, StoredField("length", "int64", (), per_step=False)]
