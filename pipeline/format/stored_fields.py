"""The fields that an Example stores of a record, as the schema gives them: features, label and length."""

import dataclasses
import math

from pipeline.schema.labels import MULTILABEL, REGRESSION
from pipeline.schema.record import NO_LABEL
from pipeline.schema.schema import NEXT_STEP, Schema


@dataclasses.dataclass(frozen=True)
class StoredField:
    """A field of an Example, and of a batch.

    Attributes:
        dtype: float32, int64 or string.
        shape: Shape of the value of one step, or of the record if `per_step` is false.
        per_step: Whether there is a value for each step.
        padding: Value of padded steps in a batch. For a label, the value that means "no label".
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    per_step: bool
    padding: float | str = 0

    @property
    def width(self) -> int:
        """Number of values for each step (or record)."""
        return math.prod(self.shape)


def stored_fields(schema: Schema, *, labelled: bool = True) -> list[StoredField]:
    """Returns all fields of an Example except the id: features, label and NEXT_STEP (if `labelled`), and length."""
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
    if labelled and schema.stores_next_step:
        feature = schema.steps[str(label.next_of)]
        fields.append(StoredField(NEXT_STEP, feature.dtype, tuple(feature.shape), per_step=False))
    return [*fields, StoredField("length", "int64", (), per_step=False)]
