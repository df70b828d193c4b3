"""Describes the output of a model, as the schema and the vocabularies define it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.schema.labels import REGRESSION, LabelKind
from pipeline.schema.schema import Schema

# The strings of each feature by its name; the index of a string is its position.
Vocabularies = Mapping[str, Sequence[bytes]]


@dataclasses.dataclass(frozen=True)
class Target:
    """The output of a model for a record, or for each step if `per_step`.

    Attributes:
        kind: Kind of the label.
        size: Number of classes. For a regression: number of values per step or record.
        names: Names of the classes in the order of the output: the classes of the schema, or the values of the feature
            whose next value is the label. None stands for all strings that are not in the vocabulary. Empty for a
            regression.
        next_of: The step feature whose next value is the label, or None.
    """

    kind: LabelKind
    size: int
    names: Sequence[Any] = ()
    next_of: str | None = None

    @property
    def per_step(self) -> bool:
        """Whether there is an output for each step."""
        return self.kind.startswith("step_")

    @property
    def is_vector(self) -> bool:
        """Whether the output is a vector and not a single number."""
        return self.kind not in REGRESSION or self.size > 1


def make_target(schema: Schema, vocabularies: Vocabularies) -> Target:
    """Returns the target of a schema.

    Args:
        vocabularies: Must hold the feature whose next value is the label, if its values are strings.
    """
    label = schema.label
    if label.next_of is None:
        return Target(label.kind, max(len(label.classes), 1), label.classes)
    feature = schema.steps[label.next_of]
    if feature.dtype == "string":
        names: Sequence[Any] = (*(term.decode() for term in vocabularies[label.next_of]), None)
    elif feature.dtype == "int64":
        names = range(feature.num_values or 0)  # not a tuple: there may be two billion
    elif label.kind in REGRESSION:
        return Target(label.kind, feature.width, next_of=label.next_of)
    else:
        names = range(feature.width)
    return Target(label.kind, len(names), names, label.next_of)
