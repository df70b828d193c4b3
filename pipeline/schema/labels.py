"""Labels: the values that a model learns to predict."""

import collections
import functools
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic

from pipeline.schema.features import Feature, check_unicode
from pipeline.yaml_document import Document, error_with_path


def _check_class(name: Any) -> Any:
    # Checked before the union, whose own message would describe only one of its members.
    if not isinstance(name, bool | int | str):
        raise ValueError("a class should be a string, an integer, true or false")
    return check_unicode(name)


ClassName = Annotated[
    pydantic.StrictBool | pydantic.StrictInt | pydantic.StrictStr, pydantic.BeforeValidator(_check_class)
]

LabelKind = Literal[
    "class", "distribution", "multilabel", "regression", "step_class", "step_multilabel", "step_regression"
]

# Kinds with exactly one class per record, or per step.
ONE_CLASS = ("class", "step_class")

MULTILABEL = ("multilabel", "step_multilabel")

REGRESSION = ("regression", "step_regression")

# In place of a list of classes: `prepare` collects them from the records (`auto_classes.py`).
AUTO = "auto"

# Probabilities are often rounded to a few digits before they are written.
DISTRIBUTION_TOLERANCE = 1e-3


class Label(Document):
    """The label: one value per record, or one per step (`step_…`), where a null is a step without a label."""

    name: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(None, description="Name of the label.")
    source: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(
        None, alias="from", description="Field of the raw record. By default the name of the label."
    )
    next_of: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(
        None, description="Step feature whose value at the next step is the label of a step. Replaces `name`."
    )
    kind: LabelKind
    classes: tuple[ClassName, ...] = ()

    @pydantic.field_validator("classes", mode="before")
    @classmethod
    def _check_list(cls, classes: Any) -> Any:
        if classes == AUTO:
            raise ValueError(
                "only `lengthwise prepare` collects the classes; expected a list of their names, for example the list "
                "in the manifest of a dataset that it made"
            )
        if not isinstance(classes, list | tuple):
            raise ValueError("expected a list of the class names, [a, b], or auto")
        return classes

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Label":
        if (self.name is None) == (self.next_of is None):
            raise ValueError("expected either name (a field of the record) or next_of (a step feature)")
        if self.next_of is not None:
            if self.source is not None:
                raise ValueError("from: not allowed with next_of; give it to the feature")
            if self.classes:
                raise ValueError("classes: not allowed with next_of, because the feature determines the classes")
            return self
        if self.kind in REGRESSION:
            if self.classes:
                raise ValueError("a regression has no classes")
        elif not self.classes:
            auto = "" if self.kind == "distribution" else ", or auto"
            raise ValueError(f"kind {self.kind} needs classes: a list of the class names{auto}")
        counts = collections.Counter(class_name(c) for c in self.classes)
        duplicates = sorted(name for name, count in counts.items() if count > 1)
        if duplicates:
            raise ValueError(f'the class {duplicates[0]!r} is a duplicate in classes (1 and "1" are the same class)')
        return self

    @functools.cached_property  # read for every record
    def per_step(self) -> bool:
        """Whether there is a label for each step rather than one for the record."""
        return self.kind.startswith("step_")

    @property
    def title(self) -> str:
        """Name of the label in messages and tables."""
        return self.name if self.name is not None else f"next {self.next_of}"

    @functools.cached_property  # read for every record
    def field(self) -> str:
        """Name of the label in a raw record, and in messages about it."""
        return self.source or self.title

    @property
    def is_open(self) -> bool:
        """Whether the classes are still to be collected. No dataset has such a label."""
        return not self.classes and self.next_of is None and self.kind not in REGRESSION

    @functools.cached_property  # a value that `fix_classes` sets, which is not part of the label that is stored
    def unknown_class_hint(self) -> str:
        """Why a class that is not in `classes` is unknown, for messages; empty if the classes are those of a list."""
        return ""

    @functools.cached_property  # read for every record
    def class_index(self) -> dict[str, int]:
        """Index of each class in `classes`, by its canonical name."""
        return {class_name(c): position for position, c in enumerate(self.classes)}


def resolve_next_of(label: dict[str, Any], steps: Mapping[str, Feature]) -> dict[str, Any]:
    """Returns the values of a label with `next_of`, with the kind that follows from the feature or that `kind` selects.

    Raises:
        PydanticCustomError: `next_of` is not a step feature, or its next value cannot be predicted as this kind.
    """
    name = label["next_of"]
    feature = steps.get(name) if isinstance(name, str) else None
    if feature is None:
        known = ", ".join(steps)
        raise error_with_path(f"label.next_of: {name!r}: expected the name of a step feature; there are {known}")
    shape = list(feature.shape)
    categorical = feature.dtype != "float32"
    kinds = ("step_class",) if categorical else ("step_regression", "step_multilabel")
    kind = kinds[0] if label.get("kind") is None else str(label["kind"])
    if not kind.startswith("step_"):
        kind = f"step_{kind}"
    if kind not in kinds:
        allowed = " or ".join(k.removeprefix("step_") for k in kinds)
        raise error_with_path(
            f"label.kind: {label['kind']!r}: expected {allowed}, to predict the next value of a feature of dtype "
            f"{feature.dtype}"
        )
    expected = None
    if categorical and shape:
        expected = "no shape (one category per step)"
    elif kind == "step_regression" and (len(shape) > 1 or shape == [1]):
        expected = "no shape (one number per step), or [2 or more]"
    elif kind == "step_multilabel" and len(shape) != 1:
        expected = "[classes]: 0 or 1 for each class"
    if expected is not None:
        raise error_with_path(f"label.next_of: {name}: has the shape {shape}; expected {expected}")
    if feature.dtype == "string" and feature.vocabulary is None:
        raise error_with_path(
            f"label.next_of: {name}: is hashed into num_values, so the next string cannot be predicted; expected a "
            "vocabulary"
        )
    return label | {"kind": kind}


def class_name(value: bool | int | str) -> str:
    """Returns the canonical name of a class: 1 and "1" are the same class, and so are true and "true"."""
    return json.dumps(value) if isinstance(value, bool) else str(value)
