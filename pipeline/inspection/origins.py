"""Checks that the records of a split belong there, and come from raw files that are known."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipeline.format.manifest import Manifest
from pipeline.schema.schema import Schema, SplitFromField
from pipeline.shuffle.hashing import choose_split


@dataclasses.dataclass(frozen=True)
class Origins:
    """What is known of where the records of a split come from.

    Attributes:
        sources: The raw files; none where they are not known.
    """

    schema: Schema
    seed: int
    split: str
    sources: frozenset[str]

    @classmethod
    def of(cls, manifest: Manifest, split: str) -> "Origins":
        sources = frozenset(source.path for source in manifest.sources)
        return cls(manifest.record_schema, manifest.seed, split, sources)

    def check(self, row: Mapping[str, Any]) -> None:
        """Raises a ValueError if the group, the split or the source of a record is not what it has to be."""
        group, source = row["group"], row["source"]
        if (group is None) != (self.schema.group is None):
            raise ValueError(f"the index says that the group is {group!r}, but the schema's is {self.schema.group!r}")
        if not isinstance(self.schema.splits, SplitFromField):
            key = row["id"] if group is None else group
            due = choose_split(key, self.schema.splits, seed=self.seed)
            if due != self.split:
                what = "id" if group is None else "group"
                raise ValueError(f"its {what} {key!r} belongs to the split {due}, not to {self.split}")
        if self.sources and source is not None and source not in self.sources:
            raise ValueError(f"the index says that the source is {source!r}, which the manifest does not list")
