"""Begins a run with the weights of another, where names and shapes agree and mean the same."""

import keras

from pipeline.errors import UserError
from pipeline.schema.schema import Schema
from trainer.data.target import Vocabularies, make_target
from trainer.model.build import build_model
from trainer.runs.checkpoints import restore_weights
from trainer.runs.run import Run


def warm_start(path: str, model: keras.Model, schema: Schema, vocabularies: Vocabularies) -> str:
    """Gives `model` what fits of the weights of the run at `path`, and says what was taken and what not.

    Raises:
        UserError: there is no such run, or nothing in it fits.
    """
    run = Run(path.rstrip("/"))
    manifest, theirs_by_name = run.manifest(), run.vocabularies()
    theirs = build_model(manifest.record_schema, manifest.statistics, run.config(), vocabularies=theirs_by_name)
    which = restore_weights(run, theirs, None)
    known = {weight.path: weight for weight in theirs.weights}
    others = _of_another_meaning(manifest.record_schema, theirs_by_name, schema, vocabularies)
    taken, left = [], []
    for weight in model.weights:
        found = known.get(weight.path)
        layer = weight.path.split("/")[0]
        if found is None:
            left.append(f"{weight.path} (not there)")
        elif layer in others:
            left.append(f"{weight.path} ({others[layer]})")
        elif found.shape != weight.shape:
            left.append(f"{weight.path} (there {_shape(found)}, here {_shape(weight)})")
        else:
            weight.assign(found.value)
            taken.append(weight.path)
    if not taken:
        raise UserError(f"warm_start: {run.path} has no weight that fits this model: {', '.join(left)}.")
    text = f"Warm start from {run.path} (its {which} checkpoint): took {', '.join(taken)}"
    return f"{text}; began anew {', '.join(left)}." if left else f"{text}: all there is."


def _of_another_meaning(
    their_schema: Schema, their_terms: Vocabularies, schema: Schema, terms: Vocabularies
) -> dict[str, str]:
    """By the first part of a weight's path, why it means something else there, though its shape may be the same."""
    found = {}
    theirs, ours = list(their_schema.features), list(schema.features)
    for number, name in enumerate(ours):
        if theirs[number : number + 1] != [name]:
            found[f"embedding_{number}"] = f"there of another feature than {name}"
        elif their_terms.get(name) != terms.get(name):
            found[f"embedding_{number}"] = f"the vocabulary of {name} is another"
    if list(their_schema.steps) != list(schema.steps):
        found |= {
            f"{cell}_0{side}": "there of other features" for cell in ("lstm", "gru") for side in ("", "_backward")
        }
    if list(their_schema.context) != list(schema.context):
        found["head"] = "there of other context"
    if make_target(their_schema, their_terms).names != make_target(schema, terms).names:
        found["head"] = "the classes are others"
    return found


def _shape(weight: keras.Variable) -> str:
    return " x ".join(map(str, weight.shape))
