"""What a model is to give out, as the schema and the vocabularies say it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.schema.labels import REGRESSION, LabelKind
from pipeline.schema.schema import Schema

# By the name of a feature: its strings, the number of each is its position.
Vocabularies = Mapping[str, Sequence[bytes]]


@dataclasses.dataclass(frozen=True)
class Target:
    """The output of a model for a record, or for each step where `per_step`.

    Attributes:
        size: Classes; or, of a regression, the numbers of a step or record.
        names: Names of the classes in the order of the output: as the schema has them, or the values of the feature
            whose next value is the label, where None is a string that is not in the vocabulary. None in a regression.
        next_of: The step feature whose next value is the label.
    """

    kind: LabelKind
    size: int
    names: tuple[Any, ...] = ()
    next_of: str | None = None

    @property
    def per_step(self) -> bool:
        return self.kind.startswith("step_")

    @property
    def is_vector(self) -> bool:
        """Whether an output is a row of numbers, and not one number."""
        return self.kind not in REGRESSION or self.size > 1


def make_target(schema: Schema, vocabularies: Vocabularies) -> Target:
    label = schema.label
    if label.next_of is None:
        return Target(label.kind, max(len(label.classes), 1), label.classes)
    feature = schema.steps[label.next_of]
    if feature.dtype == "string":
        names: tuple[Any, ...] = (*(term.decode() for term in vocabularies[label.next_of]), None)
    elif feature.dtype == "int64":
        names = tuple(range(feature.num_values or 0))
    elif label.kind in REGRESSION:
        return Target(label.kind, feature.width, next_of=label.next_of)
    else:
        names = tuple(range(feature.width))
    return Target(label.kind, len(names), names, label.next_of)
