"""The statistics and vocabularies that a run owns (RUN/statistics.json), which never change after its start."""

import json
from collections.abc import Iterator
from typing import Literal

import pydantic

from pipeline.errors import UserError
from pipeline.format.manifest import Manifest
from pipeline.format.models import Model, Vocabulary
from pipeline.format.scaling import MIN_SCALE, ScaledStatistics
from pipeline.schema.schema import Schema
from trainer.runs.contents import VOCABULARY

_MAX_FLOAT32 = float(2**128 - 2**104)
# The parts of a feature's definition that give its numbers, or the positions in its vocabulary, their meaning. What
# replaces a missing value is no part of it: statistics and vocabularies contain no missing values.
_DEFINITION = ("dtype", "shape", "num_values", "vocabulary")


class RunStatistics(Model):
    """The contents of statistics.json.

    Attributes:
        statistics: Statistics of float32 features and of a regression label, by name.
        vocabularies: Vocabulary of each string feature that has one; the files are in the run's folder.
    """

    format_version: Literal[1] = 1
    statistics: dict[str, ScaledStatistics]
    vocabularies: dict[str, Vocabulary]

    @classmethod
    def of_dataset(cls, manifest: Manifest, *, origin: str, is_scaled: bool = True) -> "RunStatistics":
        """Returns the statistics and vocabularies of a dataset.

        Args:
            origin: Path of the manifest, for error messages.
            is_scaled: Whether features are scaled as `pipeline.format.scaling` does; otherwise as a run did before.

        Raises:
            UserError: A vocabulary is where a run has another file.
        """
        features, statistics = manifest.record_schema.features, {}
        for name, each in manifest.statistics.items():
            # Those of a label convert the outputs to its units, without a bound.
            is_feature = is_scaled and name in features
            statistics[name] = ScaledStatistics.of(each) if is_feature else ScaledStatistics(**each.model_dump())
        found = cls(statistics=statistics, vocabularies=manifest.vocabularies)
        for problem in found._find_misplaced_files():
            raise UserError(f"{origin}: {problem}. Was this file edited?")
        return found

    @classmethod
    def parse(cls, data: bytes, manifest: Manifest, *, origin: str) -> "RunStatistics":
        """Parses and checks the bytes of statistics.json.

        Args:
            manifest: The manifest in the same folder.
            origin: Path of the file, for error messages.

        Raises:
            UserError: The file is damaged, or belongs to a run on another schema.
        """
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            raise _damaged(origin, f"not JSON: {data[:40]!r}") from None
        try:
            found = cls.model_validate(values)
        except pydantic.ValidationError as error:
            fault = error.errors()[0]
            place = ".".join(map(str, fault["loc"]))
            raise _damaged(
                origin, f"{place + ': ' if place else ''}{str(fault['input'])[:60]!r}: {fault['msg']}"
            ) from None
        for problem in found._find_problems(manifest):
            raise _damaged(origin, problem)
        return found

    def to_json(self) -> bytes:
        """Returns the bytes of statistics.json."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False).encode() + b"\n"

    def _find_problems(self, manifest: Manifest) -> Iterator[str]:
        for place, names, expected in (
            ("statistics", self.statistics.keys(), manifest.statistics.keys()),
            ("vocabularies", self.vocabularies.keys(), manifest.vocabularies.keys()),
        ):
            if names != expected:
                yield f"{place} has the features {sorted(names)}, but manifest.json has {sorted(expected)}"
        for name, statistics in self.statistics.items():
            width = manifest.record_schema.statistics_widths.get(name, 0)
            for key, column in statistics.columns().items():
                if len(column) != width:
                    yield f"statistics.{name}.{key} has {len(column)} columns, expected {width}"
                least, most = (0.0, _MAX_FLOAT32**2) if key == "variance" else (-_MAX_FLOAT32, _MAX_FLOAT32)
                least = MIN_SCALE if key == "scale" else least
                for value in column:
                    if not least <= value <= most:  # also true for NaN
                        yield f"statistics.{name}.{key} has the value {value}, expected {least:.3g} to {most:.3g}"
        yield from self._find_misplaced_files()

    def _find_misplaced_files(self) -> Iterator[str]:
        for vocabulary in self.vocabularies.values():
            if vocabulary.path.split("/")[0] != VOCABULARY:
                yield f"a vocabulary is {vocabulary.path}, expected a file in {VOCABULARY}/"


def keep_statistics(
    source: RunStatistics, source_schema: Schema, own: RunStatistics, schema: Schema
) -> tuple[RunStatistics, dict[str, str]]:
    """Returns what a run has that starts from another run: the statistics and vocabularies of that run.

    The weights of the other run are only right with its statistics: if a feature is normalized by another mean, the
    same weights give another prediction for the same record.

    Args:
        source, source_schema: Those of the other run.
        own, schema: Those of the dataset.

    Returns:
        The statistics and vocabularies, and the features (or label) for which they are those of the dataset: name ->
        reason.
    """
    reasons = {}
    for name in (*own.statistics, *own.vocabularies):
        reason = _find_difference(name, source_schema, schema)
        if reason is None and name not in source.statistics and name not in source.vocabularies:
            reason = "without statistics in that run"
        if reason is not None:
            reasons[name] = reason
    kept = RunStatistics(
        statistics={n: v if n in reasons else source.statistics[n] for n, v in own.statistics.items()},
        vocabularies={n: v if n in reasons else source.vocabularies[n] for n, v in own.vocabularies.items()},
    )
    return kept, reasons


def _find_difference(name: str, source: Schema, schema: Schema) -> str | None:
    """Returns why the values of a feature, or of the label, have another meaning in the schema of a source run."""
    if name == schema.label.name:
        if source.label.name != name:
            return "not the label of that run"
        if source.label.kind != schema.label.kind:
            return f"kind {source.label.kind} in that run, {schema.label.kind} in this one"
        return None
    if name not in source.features:
        return "not in that run"
    if (name in source.steps) != (name in schema.steps):
        return f"a feature of the {'steps' if name in source.steps else 'context'} in that run"
    for key in _DEFINITION:
        before, now = (getattr(features[name], key) for features in (source.features, schema.features))
        if before != now:
            return f"{key} {_show(before)} in that run, {_show(now)} in this one"
    return None


def _show(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _damaged(origin: str, problem: str) -> UserError:
    return UserError(f"{origin}: {problem}. Restore this file from a copy, or train again with --overwrite.")
