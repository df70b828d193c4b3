"""Initializes a run with the weights of another run, if they have the same name, shape and meaning."""

import keras

from pipeline.errors import UserError
from pipeline.schema.schema import Schema
from trainer.data.target import Vocabularies, make_target
from trainer.model.build import build_model
from trainer.runs.checkpoints import restore_weights
from trainer.runs.run import Run


def warm_start(path: str, model: keras.Model, schema: Schema, vocabularies: Vocabularies) -> str:
    """Assigns the matching weights of another run to `model`, and returns one line that lists which.

    Args:
        path: Folder of the other run; its best checkpoint is used, or its last one if there is no best one.
        schema, vocabularies: Those of the dataset that `model` was built for.

    Raises:
        UserError: There is no such run, or none of its weights match.
    """
    run = Run(path.rstrip("/"))
    manifest, source_vocabularies = run.manifest(), run.vocabularies()
    source = build_model(manifest.record_schema, manifest.statistics, run.config(), vocabularies=source_vocabularies)
    checkpoint = restore_weights(run, source, None)
    source_weights = {weight.path: weight for weight in source.weights}
    mismatches = _find_mismatches(manifest.record_schema, source_vocabularies, schema, vocabularies)
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


def _find_mismatches(
    source_schema: Schema, source_vocabularies: Vocabularies, schema: Schema, vocabularies: Vocabularies
) -> dict[str, str]:
    """Returns the layers whose weights have another meaning in the source, even if their shapes agree.

    Returns:
        Name of the layer, which is the first part of a weight's path: the reason.
    """
    found = {}
    source_features, features = list(source_schema.features), list(schema.features)
    for number, name in enumerate(features):
        if source_features[number : number + 1] != [name]:
            found[f"embedding_{number}"] = f"in that run for another feature than {name}"
        elif source_vocabularies.get(name) != vocabularies.get(name):
            found[f"embedding_{number}"] = f"the vocabulary of {name} differs"
    if list(source_schema.steps) != list(schema.steps):
        found |= {
            f"{cell}_0{side}": "the step features differ" for cell in ("lstm", "gru") for side in ("", "_backward")
        }
    if list(source_schema.context) != list(schema.context):
        found["head"] = "the context features differ"
    if make_target(source_schema, source_vocabularies).names != make_target(schema, vocabularies).names:
        found["head"] = "the classes differ"
    return found


def _shape(weight: keras.Variable) -> str:
    return " x ".join(map(str, weight.shape))
