"""The schema: what one record holds, what is to be learnt from it, and how records are split."""

import functools
import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal

import pydantic

from pipeline.yaml_document import PLANNED, Document, build, parse_yaml

# Names that every example has already.
RESERVED_NAMES = ("length", "id")
# The names that `splits: {from: field}` may find in a record: the trainer asks for splits by these.
FIELD_SPLITS = ("train", "validation", "test")


def _check_class(name: Any) -> Any:
    # Said here, so that a fault is not explained by one member of the union.
    if not isinstance(name, bool | int | str):
        raise ValueError("a class should be a word, a whole number, true or false")
    return _check_unicode(name)


def _check_unicode(value: Any) -> Any:
    """`value`, which is no string that cannot be written down: with half of a pair of surrogates."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError("expected valid Unicode") from None
    return value


ClassName = Annotated[
    pydantic.StrictBool | pydantic.StrictInt | pydantic.StrictStr, pydantic.BeforeValidator(_check_class)
]
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

_SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


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
    def may_miss(self) -> bool:
        """Whether a null is a missing value, and no fault."""
        return self.missing != "reject"


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


class SplitFromField(Document):
    """The record says itself which split it belongs to."""

    field: Annotated[str, pydantic.Field(alias="from", min_length=1)]


class Schema(Document):
    """What `schema.yaml` says; the same object is in the manifest of a dataset and beside every trained model."""

    format: Literal["jsonl"] = "jsonl"
    id: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(
        None, description="Field that is the key of a record; without it the id is a hash of the record."
    )
    steps: dict[str, Feature]
    context: dict[str, Feature] = pydantic.Field({}, description="One value a record, beside the steps.")
    label: Label
    splits: SplitFromField | dict[str, Annotated[float, pydantic.Field(ge=0, le=1)]] = pydantic.Field(
        {"train": 0.8, "validation": 0.1, "test": 0.1}, description="Share of each split, or {from: field}."
    )
    group: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(
        None, description="Field whose records all go to one split. May stand inside splits too."
    )
    max_length: PositiveInt | None = pydantic.Field(None, description="Steps.")
    over_length: Literal["reject", "truncate_head", "truncate_tail"] = pydantic.Field(
        "reject",
        description="A record longer than max_length: refused, or its first (head) or last (tail) steps are cut off.",
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _normalize(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        label = values.get("label")
        label = label.model_dump(exclude_defaults=True) if isinstance(label, Label) else label
        if isinstance(label, dict) and label.get("next_of") is not None:
            values = values | {"label": _resolve_next_of(label, values.get("steps"))}
        splits = values.get("splits")
        if isinstance(splits, dict) and "group" in splits:
            if values.get("group") is not None:
                raise ValueError("group: stands twice, at the top and inside splits; keep one")
            splits = dict(splits)
            values = values | {"group": splits.pop("group"), "splits": splits}
        return values

    @pydantic.field_validator("splits", mode="before")
    @classmethod
    def _choose_splits(cls, splits: Any) -> Any:
        # Decided here, so that a fault in one form is not explained by the other.
        if isinstance(splits, dict) and "from" in splits:
            if len(splits) > 1:
                raise ValueError("from stands alone: the record's field names the split")
            return SplitFromField.model_validate(splits)
        if not isinstance(splits, dict | SplitFromField) or not splits:
            raise ValueError("expected shares such as {train: 0.8, test: 0.2}, or {from: field}")
        if isinstance(splits, dict):
            for name, share in splits.items():
                if not isinstance(name, str):
                    raise ValueError(f"{name!r}: expected a name of letters, digits and _")
                if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                    raise ValueError(f"{name}: expected a share between 0 and 1, not {share!r}")
        return splits

    @pydantic.field_validator("over_length", mode="before")
    @classmethod
    def _refuse_planned(cls, over_length: Any) -> Any:
        if over_length == "chunk":
            raise ValueError(PLANNED)
        return over_length

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Schema":
        if not self.steps:
            raise ValueError("steps: expected at least one feature")
        for part, features in (("steps", self.steps), ("context", self.context)):
            for name in features:
                if not name.isprintable() or "/" in name:  # Keras allows no / in the name of an input
                    raise ValueError(f"{part}.{name!r}: expected a name without control characters and without /")
                if name in RESERVED_NAMES or not name:
                    raise ValueError(
                        f"{part}.{name}: this name is reserved; expected any other than {', '.join(RESERVED_NAMES)}"
                    )
        both = self.steps.keys() & self.context.keys()
        if both:
            raise ValueError(f"context.{min(both)}: is a step feature too; expected a name of its own")
        if self.label.name in RESERVED_NAMES:
            raise ValueError(f"label.name: {self.label.name!r} is reserved; expected any other name")
        for part, features in (("step", self.steps), ("context", self.context)):
            if self.label.name in features:
                raise ValueError(f"label.name: {self.label.name!r} is a {part} feature too; expected a name of its own")
        if isinstance(self.splits, SplitFromField):
            if self.group is not None:
                raise ValueError("group: means nothing beside splits.from, where the record names its split itself")
        else:
            for name in self.splits:
                if not _SPLIT_NAME.fullmatch(name):
                    raise ValueError(f"splits.{name}: expected a name of letters, digits and _")
            total = sum(self.splits.values())
            if abs(total - 1) > 1e-6:
                raise ValueError(f"splits: the shares add up to {total:g}, expected 1")
        return self

    @classmethod
    def parse(cls, text: str | bytes, *, origin: str = "schema") -> "Schema":
        """The schema that a YAML text holds.

        Raises:
            UserError: names `origin`, the path of the key, the value and what was expected.
        """
        return build(cls, parse_yaml(text, origin=origin), origin=origin)

    @classmethod
    def read(cls, path: str) -> "Schema":
        """The schema in the YAML file `path`."""
        from pipeline.files import read_bytes

        return cls.parse(read_bytes(path), origin=path)

    def canonical(self) -> dict[str, Any]:
        """Plain values, as the manifest holds them; `parse` of their YAML gives an equal schema."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what the schema says beside the defaults, as hexadecimal digits.

        So a key that a later version adds does not change the fingerprint of a schema that does without it.
        """
        said = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @property
    def features(self) -> dict[str, Feature]:
        """All features by name: of the steps, then of the context."""
        return {**self.steps, **self.context}

    @property
    def measured_widths(self) -> dict[str, int]:
        """Numbers a step (or a record) of what statistics are taken of: float features, the label of a regression."""
        widths = {name: feature.width for name, feature in self.features.items() if feature.dtype == "float32"}
        label = self.label
        return widths | ({label.name: 1} if label.name is not None and label.kind in REGRESSION else {})

    def is_per_step(self, name: str) -> bool:
        """Whether a feature, or the label, has a value for each step rather than one for the record."""
        return name in self.steps or (name == self.label.name and self.label.per_step)

    @functools.cached_property  # every record asks for it
    def plain_steps(self) -> dict[str, Feature]:
        """The step features that are not, by mistake, the id, the group or the split too."""
        split = self.splits.field if isinstance(self.splits, SplitFromField) else None
        return {name: feature for name, feature in self.steps.items() if name not in (self.id, self.group, split)}

    @property
    def split_names(self) -> tuple[str, ...]:
        return FIELD_SPLITS if isinstance(self.splits, SplitFromField) else tuple(self.splits)


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
