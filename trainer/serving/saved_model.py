"""Makes what an export holds of a finished run: SavedModel, .keras file, what is to be known of them, the manifest."""

import contextlib
import itertools
import json
import os
import platform
import re
from importlib import metadata
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from pipeline.errors import UserError
from pipeline.format.manifest import FILE_NAME, Manifest
from pipeline.format.vocabulary import serialize_terms
from pipeline.schema.record import Array
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.target import Target, Vocabularies, make_target
from trainer.model.build import build_model
from trainer.runs.checkpoints import BEST, LAST, check_shapes, restore_weights, weights_sha256
from trainer.runs.contents import VOCABULARY
from trainer.runs.run import Run
from trainer.serving.export import unfinished
from trainer.serving.golden import make_golden, save_golden
from trainer.serving.signatures import input_names, make_signatures, output_name

# Operations that only a GPU runs, or that call back into the Python that made them.
_FORBIDDEN = re.compile("cudnn|pyfunc", re.IGNORECASE)


def make(run_path: str, folder: str, golden_path: str, checkpoint: str | None) -> None:
    """Writes an export into `folder`, and beside it golden predictions of the model that it was made of.

    Raises:
        UserError: the run is not finished, or something in it is not what it wrote.
    """
    run = Run(run_path)
    config, manifest, result = run.config(), run.manifest(), run.result()
    if result is None:
        raise UserError(unfinished(run.path))
    vocabularies, schema = run.vocabularies(), manifest.record_schema
    files = {FILE_NAME: run.read(FILE_NAME), **_vocabulary_files(manifest, vocabularies)}
    which = checkpoint or (BEST if result.get("best_epoch") else LAST)
    model = _build(run, which, config, manifest, vocabularies)
    target = make_target(schema, vocabularies)
    os.makedirs(folder)
    _write_saved_model(f"{folder}/saved_model", model, schema, target)
    model.save(f"{folder}/model.keras")
    for path, data in files.items():
        _write(folder, path, data)
    about = _describe(model, schema, target) | {
        "checkpoint": which,
        "epoch": result.get("best_epoch" if which == BEST else "epochs"),
        "dataset_fingerprint": manifest.fingerprint,
        "software": _software(),
    }
    _write(folder, "export.json", json.dumps(about, indent=1, ensure_ascii=False).encode() + b"\n")
    save_golden(golden_path, make_golden(schema, manifest.statistics, vocabularies, _make_forward(model)))


def _build(run: Run, which: str, config: TrainConfig, manifest: Manifest, vocabularies: Vocabularies) -> keras.Model:
    def build() -> keras.Model:
        return build_model(manifest.record_schema, manifest.statistics, config, vocabularies=vocabularies)

    # First without its memory: a configuration may say 2 billion units, and the checkpoint knows better.
    with keras.StatelessScope(initialize_variables=False):
        check_shapes(run, build(), which)
    keras.utils.clear_session()  # forgets the variables that wait for their memory
    model = build()
    restore_weights(run, model, which)
    return model


def _make_forward(model: keras.Model) -> Any:
    @tf.function(autograph=False, jit_compile=False)
    def forward(features: dict[str, tf.Tensor]) -> tf.Tensor:
        return model(features, training=False)

    def call(features: dict[str, Array]) -> Array:
        return forward({name: tf.constant(values) for name, values in features.items()}).numpy()

    return call


def _write_saved_model(path: str, model: keras.Model, schema: Schema, target: Target) -> None:
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    tf.saved_model.save(module, path, signatures=make_signatures(model, schema, target))
    found = forbidden_operations(path)
    if found:
        raise UserError(f"The model holds {', '.join(sorted(found))}, which not every machine runs.")


def forbidden_operations(path: str) -> set[str]:
    """The operations in a SavedModel, its functions included, that do not run everywhere."""
    with open(f"{path}/saved_model.pb", "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    graphs = [meta.graph_def for meta in saved.meta_graphs]
    functions = itertools.chain.from_iterable(graph.library.function for graph in graphs)
    nodes = itertools.chain(*(graph.node for graph in graphs), *(function.node_def for function in functions))
    return {node.op for node in nodes if _FORBIDDEN.search(node.op)}


def _vocabulary_files(manifest: Manifest, vocabularies: Vocabularies) -> dict[str, bytes]:
    """The files that belong beside the manifest, by their paths."""
    files = {manifest.vocabularies[name].path: serialize_terms(terms) for name, terms in vocabularies.items()}
    strange = [path for path in files if path.split("/")[0] != VOCABULARY]
    if strange:
        raise UserError(f"{FILE_NAME}: a vocabulary is {strange[0]}, expected a file in {VOCABULARY}/.")
    return files


def _describe(model: keras.Model, schema: Schema, target: Target) -> dict[str, Any]:
    """What a caller must know: inputs and output by name, dtype and shape, and the classes in the output's order."""
    names = input_names(schema.features)
    inputs = {
        name: {
            "name": names.get(name, name),
            "dtype": tensor.dtype,
            "shape": _shape(tensor.shape, name in schema.steps),
        }
        for name, tensor in model.input.items()
    }
    for name, feature in schema.features.items():
        if feature.allows_nulls:
            inputs[name]["missing"] = {"float32": "NaN", "int64": "-1", "string": "the byte 0xff"}[feature.dtype]
    return {
        "label": schema.label.title,
        "kind": target.kind,
        "output": {
            "name": output_name(target),
            "dtype": model.output.dtype,
            "shape": _shape(model.output.shape, target.per_step),
        },
        "classes": list(target.names),
        "inputs": inputs,
        "weights_sha256": weights_sha256(model),
    }


def _shape(shape: tuple[int | None, ...], per_step: bool) -> list[Any]:
    """A shape with words for what is open: ["batch", "time", 12]."""
    return ["batch", *(["time"] if per_step else []), *shape[1 + per_step :]]


def _software() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (tf, keras, np)}
    with contextlib.suppress(metadata.PackageNotFoundError):  # run from a folder, without installing it
        versions["lengthwise"] = metadata.version("lengthwise")
    return versions


def _write(folder: str, name: str, data: bytes) -> None:
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)
