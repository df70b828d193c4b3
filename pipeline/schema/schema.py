"""The schema: the fields of a record, the label to learn, and how records are split."""

import collections
import functools
import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self

import pydantic

from pipeline.errors import show
from pipeline.schema.features import Feature, PositiveInt
from pipeline.schema.labels import MULTILABEL, REGRESSION, Label, resolve_next_of
from pipeline.yaml_document import Document, error_with_path, parse_yaml, validate

# Names of the fields that every example has besides its features.
RESERVED_NAMES = ("length", "id")
# The value of `over_length` that stores a long record as several Examples, its parts.
PARTS = "parts"
# The field of an Example with the value that the `next_of` feature has at the first step of the next part. No field of
# a schema that stores parts may have this name.
NEXT_STEP = "next_step"
# Values that the field of `splits: {from: field}` may have, and the names of inputs. The trainer reads splits by these
# names.
VALIDATION = "validation"
FIELD_SPLITS = ("train", VALIDATION, "test")

_SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


# A share of the train records. `strict` refuses true and "0.1".
_MovedShare = Annotated[float, pydantic.Field(ge=0, strict=True)]


class NamedSplits(Document):
    """Each record comes with the name of its split. A share of the train records may be moved by a hash."""

    validation: _MovedShare | None = pydantic.Field(None, description="Share of the train records that is moved here.")
    test: _MovedShare | None = pydantic.Field(None, description="Share of the train records that is moved here.")

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        total = sum(self.moved.values())
        if total >= 1:
            shares = " and ".join(f"{name} {share:g}" for name, share in self.moved.items())
            plural, verb = ("s", "add up to") if len(self.moved) > 1 else ("", "is")
            raise error_with_path(
                f"splits: the share{plural} of train for {shares} {verb} {total:g}, expected less than 1: the rest "
                "stays in train"
            )
        return self

    @property
    def moved(self) -> dict[str, float]:
        """The share of the train records that is moved to each of the other splits."""
        shares = {"validation": self.validation, "test": self.test}
        return {name: share for name, share in shares.items() if share is not None}


class SplitFromField(NamedSplits):
    """A field of the record names its split."""

    field: Annotated[str, pydantic.Field(alias="from", min_length=1)]


class SplitFromInputs(NamedSplits):
    """The split is that for which the raw file of the record was given."""

    inputs: Literal[True]


class Schema(Document):
    """The contents of `schema.yaml`. A manifest holds the same object for a dataset and for every trained model."""

    format: Literal["jsonl"] = "jsonl"
    id: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(
        None,
        description="Field with the id of a record. Without it, a hash of the record, with numbers for copies.",
    )
    steps: dict[str, Feature]
    context: dict[str, Feature] = pydantic.Field({}, description="Features with one value per record.")
    label: Label
    splits: SplitFromField | SplitFromInputs | dict[str, Annotated[float, pydantic.Field(ge=0, le=1)]] = pydantic.Field(
        {"train": 0.8, "validation": 0.1, "test": 0.1},
        description="Share of each split; or {from: field}, or {inputs: true} for raw files that are given by split, "
        "with shares of train to move to validation or test.",
    )
    group: Annotated[str, pydantic.Field(min_length=1)] | None = pydantic.Field(
        None,
        description="Field whose equal values keep records in one split; with splits.from, they must be in one. "
        "May also be given in splits.",
    )
    max_length: PositiveInt | None = pydantic.Field(None, description="Maximum number of steps.")
    over_length: Literal["reject", "truncate_head", "truncate_tail", "parts"] = pydantic.Field(
        "reject",
        description="A record longer than max_length is rejected, or loses its first (head) or last (tail) steps, or "
        "is stored in parts of max_length steps, which batching stateful reads one after the other.",
    )
    nan_is_missing: pydantic.StrictBool | None = pydantic.Field(
        None,
        description="Whether a NaN is read as a null: in float32 features that allow nulls, and in a step_regression "
        "label, where it is a step without a label.",
    )

    @pydantic.model_validator(mode="before")
    @classmethod
    def _move_group(cls, values: Any) -> Any:
        splits = values.get("splits") if isinstance(values, dict) else None
        if not isinstance(splits, dict) or "group" not in splits:
            return values
        if values.get("group") is not None:
            raise ValueError("group: is given twice, at the top and inside splits; keep one")
        splits = dict(splits)
        return values | {"group": splits.pop("group"), "splits": splits}

    @pydantic.field_validator("label", mode="before")
    @classmethod
    def _resolve_next_of(cls, label: Any, info: pydantic.ValidationInfo) -> Any:
        # Runs after the validation of `steps`. If that failed, its error is reported instead of one of the label.
        values = label.model_dump(exclude_defaults=True) if isinstance(label, Label) else label
        if "steps" in info.data and isinstance(values, dict) and values.get("next_of") is not None:
            return resolve_next_of(values, info.data["steps"])
        return label

    @pydantic.field_validator("splits", mode="before")
    @classmethod
    def _choose_splits(cls, splits: Any) -> Any:
        # Chosen before the union, so that an error in one form is not described by the other.
        key = _key_of_named_splits(splits) if isinstance(splits, dict) else None
        if key is not None:
            for name in splits.keys() - {key, *FIELD_SPLITS[1:]}:
                what = "the field names" if key == "from" else "the inputs name"
                raise error_with_path(
                    f"splits.{name}: {show(splits[name])}: with {key}, {what} the split; expected no other key "
                    "than validation and test, each with the share of the train records to move there"
                )
            if key == "from":
                return SplitFromField.model_validate(splits)
            return SplitFromInputs.model_validate({"inputs": True} | splits)
        if not isinstance(splits, dict | NamedSplits) or not splits:
            raise ValueError("expected shares such as {train: 0.8, test: 0.2}, or {from: field}")
        if isinstance(splits, dict):
            for name, share in splits.items():
                if not isinstance(name, str):
                    raise ValueError(f"{name!r}: expected a name of letters, digits and _")
                if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                    raise ValueError(f"{name}: expected a share between 0 and 1, not {share!r}")
        return splits

    @pydantic.field_validator("nan_is_missing", mode="after")
    @classmethod
    def _omit_default(cls, nan_is_missing: bool | None) -> bool | None:
        return nan_is_missing or None  # so that schemas that mean the same have the same fingerprint

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Schema":
        if not self.steps:
            raise ValueError("steps: expected at least one feature")
        if self.nan_is_missing and not self._allows_null_numbers():
            raise ValueError(
                "nan_is_missing: true: has no effect, because no float32 feature allows missing values; give one of "
                "them missing: fill or missing: indicator, or remove nan_is_missing"
            )
        if self.stores_parts and self.max_length is None:
            raise ValueError("over_length: parts: needs max_length, the number of steps of a part; add it")
        self._check_names()
        self._check_splits()
        return self

    def _allows_null_numbers(self) -> bool:
        features = self.features.values()
        return self.label.kind == "step_regression" or any(f.dtype == "float32" and f.allows_nulls for f in features)

    def _check_names(self) -> None:
        for part, features in (("steps", self.steps), ("context", self.context)):
            for name in features:
                if not name.isprintable() or "/" in name:  # Keras allows no / in the name of an input
                    raise ValueError(f"{part}.{name!r}: expected a name without control characters and without /")
                if name in RESERVED_NAMES or not name:
                    raise ValueError(
                        f"{part}.{name}: this name is reserved; expected any other than {', '.join(RESERVED_NAMES)}"
                    )
        shared = self.steps.keys() & self.context.keys()
        if shared:
            raise ValueError(f"context.{min(shared)}: is also a step feature; expected a unique name")
        if self.stores_next_step and NEXT_STEP in self.features:
            raise ValueError(
                f"{NEXT_STEP}: this name is reserved with over_length: parts and next_of; expected another"
            )
        if self.label.name in RESERVED_NAMES:
            raise ValueError(f"label.name: {self.label.name!r} is reserved; expected any other name")
        for part, features in (("step", self.steps), ("context", self.context)):
            if self.label.name in features:
                raise ValueError(f"label.name: {self.label.name!r} is also a {part} feature; expected a unique name")

    def _check_splits(self) -> None:
        if isinstance(self.splits, NamedSplits):
            return
        for name in self.splits:
            if not _SPLIT_NAME.fullmatch(name):
                raise ValueError(f"splits.{name}: expected a name of letters, digits and _")
        total = sum(self.splits.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"splits: the shares add up to {total:g}, expected 1")

    @classmethod
    def parse(cls, text: str | bytes, *, origin: str = "schema") -> "Schema":
        """Parses the YAML text of a schema.

        Raises:
            UserError: The schema is invalid. The message has `origin`, the path of the key, the value and what was
                expected.
        """
        return validate(cls, parse_yaml(text, origin=origin), origin=origin)

    @classmethod
    def read(cls, path: str) -> "Schema":
        """Reads the schema in the YAML file `path`. Raises as `parse` does, and if the file cannot be read."""
        from pipeline.files import read_bytes

        return cls.parse(read_bytes(path), origin=path)

    def canonical(self) -> dict[str, Any]:
        """Returns the schema as plain values for the manifest. `parse` of their YAML returns an equal schema."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the values that differ from the defaults, as hexadecimal digits.

        A key that a later version adds does not change the fingerprint of a schema without this key.
        """
        values = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def features(self) -> dict[str, Feature]:
        """All features by name: the step features, then the context features."""
        return {**self.steps, **self.context}

    @property
    def statistics_widths(self) -> dict[str, int]:
        """Number of values per step or record, for each field with statistics: float32 features, a regression label."""
        widths = {name: feature.width for name, feature in self.features.items() if feature.dtype == "float32"}
        label = self.label
        return widths | ({label.name: 1} if label.name is not None and label.kind in REGRESSION else {})

    @property
    def vocabulary_sizes(self) -> dict[str, int]:
        """Largest size of the vocabulary, for each string feature that has one."""
        return {name: f.vocabulary for name, f in self.features.items() if f.vocabulary is not None}

    def is_per_step(self, name: str) -> bool:
        """Whether the feature or the label of this name has a value for each step rather than one for the record."""
        return name in self.steps or (name == self.label.name and self.label.per_step)

    @functools.cached_property  # read for every record
    def raw_fields(self) -> dict[str, str]:
        """The field of a raw record that each feature is read from, by the name of the feature."""
        return {name: feature.source or name for name, feature in self.features.items()}

    @functools.cached_property  # read for every record
    def array_steps(self) -> dict[str, Feature]:
        """The step features that may be parsed as arrays, by field: all whose field has no other use."""
        fields = ((self.raw_fields[name], feature) for name, feature in self.steps.items())
        return {field: feature for field, feature in fields if self._uses[field] == 1}

    @functools.cached_property  # read for every record
    def large_labels(self) -> dict[str, int]:
        """The field of a label per step that may be parsed in pieces, with the depth of its lists; or nothing.

        Its classes are known, and its field has no other use.
        """
        label = self.label
        if label.name is None or not label.per_step or label.is_open or self._uses[label.field] > 1:
            return {}
        return {label.field: int(label.kind in MULTILABEL)}

    @functools.cached_property
    def _uses(self) -> collections.Counter[str | None]:
        """How many features, labels and keys read each field of a raw record."""
        split = self.splits.field if isinstance(self.splits, SplitFromField) else None
        label = self.label.field if self.label.name is not None else None
        return collections.Counter([*self.raw_fields.values(), self.id, self.group, split, label])

    @property
    def stores_parts(self) -> bool:
        """Whether a record that is longer than `max_length` is stored as several Examples, its parts."""
        return self.over_length == PARTS

    @property
    def stores_next_step(self) -> bool:
        """Whether an Example has the field NEXT_STEP: the label of the last step of a part."""
        return self.stores_parts and self.label.next_of is not None

    def count_parts(self, num_steps: int) -> int:
        """Returns the number of Examples of a record."""
        return -(-num_steps // (self.max_length or 1)) if self.stores_parts else 1

    @property
    def checks_groups(self) -> bool:
        """Whether the records, and not a hash of their group, choose the split, so that a group could be in two."""
        return self.group is not None and isinstance(self.splits, NamedSplits)

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits, in the order of the schema."""
        return FIELD_SPLITS if isinstance(self.splits, NamedSplits) else tuple(self.splits)


def _key_of_named_splits(splits: dict[Any, Any]) -> str | None:
    """Returns which key of `splits` says where the name of a record's split comes from; None if there are shares only.

    Shares of validation and test alone are shares of the train input, because without train they give no train split.
    """
    if "from" in splits:
        return "from"
    shares = [share for share in splits.values() if type(share) in (int, float)]
    is_part = splits.keys() <= set(FIELD_SPLITS[1:]) and len(shares) == len(splits) and 0 <= sum(shares) < 1 - 1e-6
    return "inputs" if splits.get("inputs") is True or (splits and is_part) else None
