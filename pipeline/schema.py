"""The schema: what one record holds, what is to be learnt from it, and how records are split."""

import functools
import hashlib
import json
import math
import re
from typing import Annotated, Any, Literal

import pydantic

from pipeline.documents import PLANNED, Document, build, parse_yaml

# Names that every example has already.
RESERVED_NAMES = ("length", "id")
# The names that `splits: {from: field}` may find in a record: the trainer asks for splits by these.
FIELD_SPLITS = ("train", "validation", "test")


def _check_class(name: Any) -> Any:
    # Said here, so that a fault is not explained by one member of the union.
    if not isinstance(name, bool | int | str):
        raise ValueError("a class should be a word, a whole number, true or false")
    return name


ClassName = Annotated[
    pydantic.StrictBool | pydantic.StrictInt | pydantic.StrictStr, pydantic.BeforeValidator(_check_class)
]
# Lengths and positions are int32 in TensorFlow.
PositiveInt = Annotated[int, pydantic.Field(strict=True, ge=1, le=2**31 - 1)]

_SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class Feature(Document):
    """One value a step: float32 of any shape, or categories (int64 or string)."""

    dtype: Literal["float32", "int64", "string"]
    shape: tuple[PositiveInt, ...] = ()
    num_values: PositiveInt | None = pydantic.Field(
        None, description="Categories: int64 values are 0 … num_values - 1; strings are hashed into as many values."
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse_planned(cls, values: Any) -> Any:
        for key in ("vocabulary", "missing"):
            if isinstance(values, dict) and key in values:
                raise ValueError(f"{key!r} {PLANNED}")
        return values

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Feature":
        if self.dtype == "float32" and self.num_values is not None:
            raise ValueError("num_values belongs to the categories int64 and string, a float32 has none")
        if self.dtype != "float32" and self.num_values is None:
            raise ValueError(f"{self.dtype} is a category and needs num_values (a quantity is float32)")
        return self

    @property
    def width(self) -> int:
        """Numbers (or strings) a step: the product of `shape`."""
        return math.prod(self.shape)


class Label(Document):
    """What is learnt: one value a record, or one a step (`step_…`, where null is a step without a label)."""

    name: Annotated[str, pydantic.Field(min_length=1)]
    kind: Literal["class", "distribution", "regression", "step_class"]
    classes: tuple[ClassName, ...] = ()

    @pydantic.field_validator("kind", mode="before")
    @classmethod
    def _refuse_planned(cls, kind: Any) -> Any:
        if kind in ("multilabel", "step_multilabel", "step_regression"):
            raise ValueError(f"this kind of label {PLANNED}")
        return kind

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Label":
        if self.kind == "regression":
            if self.classes:
                raise ValueError("a regression has no classes")
        elif not self.classes:
            raise ValueError(f"kind {self.kind} needs classes: a list of the class names")
        names = [class_name(c) for c in self.classes]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f'the class {double[0]!r} stands twice in classes (1 and "1" are the same class)')
        return self

    @property
    def per_step(self) -> bool:
        return self.kind.startswith("step_")

    @functools.cached_property  # every record asks for it
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
        if "context" in values:
            raise ValueError(f"context: this key {PLANNED}")
        if isinstance(values.get("label"), dict) and "next_of" in values["label"]:
            raise ValueError(f"label.next_of: this key {PLANNED}")
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
        for name in self.steps:
            if not name.isprintable() or "/" in name:  # Keras allows no / in the name of an input
                raise ValueError(f"steps.{name!r}: expected a name without control characters and without /")
            if name in RESERVED_NAMES or not name:
                raise ValueError(
                    f"steps.{name}: this name is reserved; expected any other than {', '.join(RESERVED_NAMES)}"
                )
        if self.label.name in RESERVED_NAMES:
            raise ValueError(f"label.name: {self.label.name!r} is reserved; expected any other name")
        if self.label.name in self.steps:
            raise ValueError(f"label.name: {self.label.name!r} is a step feature too; expected a name of its own")
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
        from pipeline.storage import read_bytes

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
    def measured_widths(self) -> dict[str, int]:
        """Numbers a step (or a record) of what statistics are taken of: float features, the label of a regression."""
        widths = {name: feature.width for name, feature in self.steps.items() if feature.dtype == "float32"}
        return widths | ({self.label.name: 1} if self.label.kind == "regression" else {})

    @property
    def split_names(self) -> tuple[str, ...]:
        return FIELD_SPLITS if isinstance(self.splits, SplitFromField) else tuple(self.splits)


def class_name(value: bool | int | str) -> str:
    """One name for one class: 1 and "1" are the same, true and "true" too."""
    return json.dumps(value) if isinstance(value, bool) else str(value)
