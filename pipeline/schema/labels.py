"""Labels: the values that a model learns to predict."""

import functools
import json
from typing import Annotated, Any, Literal

import pydantic

from pipeline.schema.features import Feature, _check_unicode
from pipeline.yaml_document import Document


def _check_class(name: Any) -> Any:
    # Said here, so that a fault is not explained by one member of the union.
    if not isinstance(name, bool | int | str):
        raise ValueError("a class should be a word, a whole number, true or false")
    return _check_unicode(name)


ClassName = Annotated[
    pydantic.StrictBool | pydantic.StrictInt | pydantic.StrictStr, pydantic.BeforeValidator(_check_class)
]

LabelKind = Literal[
    "class", "distribution", "multilabel", "regression", "step_class", "step_multilabel", "step_regression"
]

# Kinds whose label is one class of several.
ONE_CLASS = ("class", "step_class")

MULTILABEL = ("multilabel", "step_multilabel")

REGRESSION = ("regression", "step_regression")


class Label(Document):
    """What is learnt: one value a record, or one a step (`step_…`, where null is a step without a label)."""

    name: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(None, description="Field of the record.")
    next_of: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(
        None, description="Instead of a name: at each step, the value that this step feature has at the next step."
    )
    kind: LabelKind
    classes: tuple[ClassName, ...] = ()

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Label":
        if (self.name is None) == (self.next_of is None):
            raise ValueError("expected either name (a field of the record) or next_of (a step feature)")
        if self.next_of is not None:
            if self.classes:
                raise ValueError("classes: with next_of they are those of the feature")
            return self
        if self.kind in REGRESSION:
            if self.classes:
                raise ValueError("a regression has no classes")
        elif not self.classes:
            raise ValueError(f"kind {self.kind} needs classes: a list of the class names")
        names = [class_name(c) for c in self.classes]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f'the class {double[0]!r} stands twice in classes (1 and "1" are the same class)')
        return self

    @functools.cached_property  # every record asks for it
    def per_step(self) -> bool:
        return self.kind.startswith("step_")

    @property
    def title(self) -> str:
        return self.name if self.name is not None else f"next {self.next_of}"

    @functools.cached_property  # as above
    def class_index(self) -> dict[str, int]:
        """Position of each class in the schema's order, by its canonical name."""
        return {class_name(c): position for position, c in enumerate(self.classes)}


def _resolve_next_of(label: dict[str, Any], steps: Any) -> dict[str, Any]:
    """A label `next_of` with its kind, which follows from the feature unless it is said."""
    name = label["next_of"]
    feature = steps.get(name) if isinstance(steps, dict) and isinstance(name, str) else None
    if feature is None:
        known = ", ".join(map(str, steps)) if isinstance(steps, dict) else "none"
        raise ValueError(f"label.next_of: {name!r}: expected the name of a step feature; there are {known}")
    # What is no feature at all is told where features are read.
    values = feature.model_dump() if isinstance(feature, Feature) else feature if isinstance(feature, dict) else {}
    shape = list(values["shape"]) if isinstance(values.get("shape"), list | tuple) else []
    categorical = values.get("dtype") in ("int64", "string")
    kinds = ("step_class",) if categorical else ("step_regression", "step_multilabel")
    kind = label.get("kind")
    kind = kinds[0] if kind is None else kind if str(kind).startswith("step_") else f"step_{kind}"
    if kind not in kinds:
        told = " or ".join(k.removeprefix("step_") for k in kinds)
        raise ValueError(f"label.kind: {label['kind']!r}: what comes next of a {values.get('dtype')} is {told}")
    if categorical and shape:
        raise ValueError(f"label.next_of: {name}: has the shape {shape}; expected one category a step, without a shape")
    if kind == "step_regression" and (len(shape) > 1 or shape == [1]):
        raise ValueError(
            f"label.next_of: {name}: has the shape {shape}; expected none (one number a step), or [2 or more]"
        )
    if kind == "step_multilabel" and len(shape) != 1:
        raise ValueError(f"label.next_of: {name}: has the shape {shape}; expected [classes]: 0 or 1 for each of them")
    if values.get("dtype") == "string" and values.get("vocabulary") is None:
        raise ValueError(f"label.next_of: {name}: is hashed, and no hash says what comes next; expected a vocabulary")
    return label | {"kind": kind}


def class_name(value: bool | int | str) -> str:
    """One name for one class: 1 and "1" are the same, true and "true" too."""
    return json.dumps(value) if isinstance(value, bool) else str(value)
