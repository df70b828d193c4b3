"""The schema: what one record holds, what is to be learnt from it, and how records are split."""

import functools
import hashlib
import json
import re
from typing import Annotated, Any, Literal

import pydantic

from pipeline.schema.features import Feature, PositiveInt
from pipeline.schema.labels import REGRESSION, Label, _resolve_next_of
from pipeline.yaml_document import PLANNED, Document, parse_yaml, validate

# Names that every example has already.
RESERVED_NAMES = ("length", "id")
# The names that `splits: {from: field}` may find in a record: the trainer asks for splits by these.
FIELD_SPLITS = ("train", "validation", "test")


_SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


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
        return validate(cls, parse_yaml(text, origin=origin), origin=origin)

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
    def statistics_widths(self) -> dict[str, int]:
        """Numbers a step (or a record) of what statistics are taken of: float features, the label of a regression."""
        widths = {name: feature.width for name, feature in self.features.items() if feature.dtype == "float32"}
        label = self.label
        return widths | ({label.name: 1} if label.name is not None and label.kind in REGRESSION else {})

    def is_per_step(self, name: str) -> bool:
        """Whether a feature, or the label, has a value for each step rather than one for the record."""
        return name in self.steps or (name == self.label.name and self.label.per_step)

    @functools.cached_property  # every record asks for it
    def array_steps(self) -> dict[str, Feature]:
        """The step features that are not, by mistake, the id, the group or the split too."""
        split = self.splits.field if isinstance(self.splits, SplitFromField) else None
        return {name: feature for name, feature in self.steps.items() if name not in (self.id, self.group, split)}

    @property
    def split_names(self) -> tuple[str, ...]:
        return FIELD_SPLITS if isinstance(self.splits, SplitFromField) else tuple(self.splits)
