"""Initializes a run with the weights of another run, where name, shape and meaning are the same."""

import dataclasses
from collections.abc import Mapping

import keras

from pipeline.errors import UserError
from pipeline.schema.features import Feature
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.target import Vocabularies, make_target
from trainer.model.build import build_model
from trainer.runs.checkpoints import restore_weights
from trainer.runs.run import Run
from trainer.runs.statistics import RunStatistics, keep_statistics
from trainer.runs.statistics_changes import describe_changes


def warm_start(run: Run, model: keras.Model, config: TrainConfig) -> list[str]:
    """Assigns the matching weights of another run to `model`, and returns lines that describe what was taken from it.

    The first line lists the weights. The next lines say which statistics and vocabularies are those of the other run,
    or for `statistics: dataset`, what changes and by how much.

    Args:
        run: The run that starts.
        model: Its model.
        config: Its configuration; `warm_start` is the folder of the other run. Of that run, the best checkpoint is
            used, or the last one if there is no best one.

    Raises:
        UserError: There is no such other run, or none of its weights match.
    """
    assert config.warm_start is not None
    source = _Inputs.read(Run(config.warm_start.rstrip("/")))
    started = _Inputs.read(run)
    return [_load_weights(source, started, model), *_describe_statistics(source, started, config.statistics)]


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What the model of a run is built from, besides its configuration."""

    run: Run
    schema: Schema
    own: RunStatistics
    vocabularies: Vocabularies

    @classmethod
    def read(cls, run: Run) -> "_Inputs":
        return cls(run, run.manifest().record_schema, run.own_statistics(), run.vocabularies())


def _load_weights(source: _Inputs, started: _Inputs, model: keras.Model) -> str:
    """Assigns the matching weights of `source` to the model, and returns the line that lists them."""
    run = source.run
    source_model = build_model(source.schema, source.own.statistics, run.config(), vocabularies=source.vocabularies)
    checkpoint = restore_weights(run, source_model, None)
    source_weights = {weight.path: weight for weight in source_model.weights}
    mismatches = _find_mismatches(source, started)
    loaded, skipped = [], []
    for weight in model.weights:
        found = source_weights.get(weight.path)
        layer = weight.path.split("/")[0]
        if found is None:
            skipped.append(f"{weight.path} (not in that run)")
        elif layer in mismatches:
            skipped.append(f"{weight.path} ({mismatches[layer]})")
        elif found.shape != weight.shape:
            skipped.append(f"{weight.path} ({_shape(found)} in that run, {_shape(weight)} in this one)")
        else:
            weight.assign(found.value)
            loaded.append(weight.path)
    if not loaded:
        raise UserError(f"warm_start: {run.path} has no weight that fits this model: {', '.join(skipped)}.")
    text = f"Warm start from {run.path} ({checkpoint} checkpoint): loaded {', '.join(loaded)}"
    return f"{text}; not loaded: {', '.join(skipped)}." if skipped else f"{text}, which are all weights."


def _describe_statistics(source: _Inputs, started: _Inputs, statistics: str) -> list[str]:
    """Returns the lines about statistics and vocabularies; none if the run has neither."""
    names = [*started.own.statistics, *started.own.vocabularies]
    _, not_kept = keep_statistics(source.own, source.schema, started.own, started.schema)
    others = ", ".join(f"{name} ({reason})" for name, reason in not_kept.items())
    if not names:
        return []
    if statistics == "run":
        if len(not_kept) == len(names):
            return [f"Statistics and vocabularies: those of the dataset for all features: {others}."]
        others = others and f"; those of the dataset for {others}"
        return [f"Statistics and vocabularies: those of {source.run.path}{others}."]
    changes = describe_changes(
        {name: found for name, found in source.own.statistics.items() if name not in not_kept},
        started.own.statistics,
        {name: terms for name, terms in source.vocabularies.items() if name not in not_kept},
        started.vocabularies,
    )
    others = others and f" Not comparable: {others}."
    if not changes:
        return [
            f"Statistics and vocabularies: those of the dataset, which do not differ from {source.run.path}.{others}"
        ]
    title = f"Statistics and vocabularies: those of the dataset. What changes from {source.run.path}, most first:"
    return [title, *(f"  {line}" for line in changes), *([others.strip()] if others else [])]


def _find_mismatches(source: _Inputs, started: _Inputs) -> dict[str, str]:
    """Returns the layers whose weights have another meaning in the source, even if their shapes agree.

    Returns:
        Name of the layer, which is the first part of a weight's path: the reason.
    """
    source_schema, schema, found = source.schema, started.schema, {}
    source_features, features = list(source_schema.features), list(schema.features)
    for number, name in enumerate(features):
        if source_features[number : number + 1] != [name]:
            found[f"embedding_{number}"] = f"in that run for another feature than {name}"
        elif source_schema.features[name].dtype != schema.features[name].dtype:
            found[f"embedding_{number}"] = f"the dtype of {name} differs"
        elif source.vocabularies.get(name) != started.vocabularies.get(name):
            found[f"embedding_{number}"] = f"the vocabulary of {name} differs"
    if _columns(source_schema.steps) != _columns(schema.steps):
        found |= {
            f"{cell}_0{side}": "the step features differ" for cell in ("lstm", "gru") for side in ("", "_backward")
        }
    if _columns(source_schema.context) != _columns(schema.context):
        found["head"] = "the context features differ"
    if make_target(source_schema, source.vocabularies).names != make_target(schema, started.vocabularies).names:
        found["head"] = "the classes differ"
    return found


def _columns(features: Mapping[str, Feature]) -> list[object]:
    """Returns what determines the meaning of the columns that a layer reads from these features."""
    return [(name, each.dtype, each.shape, each.missing == "indicator") for name, each in features.items()]


def _shape(weight: keras.Variable) -> str:
    return " x ".join(map(str, weight.shape))
