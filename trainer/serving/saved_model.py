"""Makes the files of an export from a finished run: SavedModel, Keras file, export.json, and its statistics."""

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
from pipeline.format.manifest import FILE_NAME
from pipeline.format.vocabulary import serialize_terms
from pipeline.schema.schema import Schema
from trainer.data.target import Target, Vocabularies, make_target
from trainer.devices.tensorflow_setup import allow_tf32
from trainer.model.build import build_model
from trainer.runs.checkpoints import BEST, LAST, check_shapes, restore_weights, weights_sha256
from trainer.runs.contents import STATISTICS, unfinished_error
from trainer.runs.run import Run
from trainer.runs.statistics import RunStatistics
from trainer.serving.golden_records import LENGTHS, Golden, draw_golden_records, encode_without_label, save_golden
from trainer.serving.predictor import pad_batch
from trainer.serving.signatures import LENGTH, input_names, make_signatures, output_name, state_widths

# Operations that run on a GPU only, or that call Python code of the process that made them.
_NOT_PORTABLE = re.compile("cudnn|pyfunc", re.IGNORECASE)


def make(run_path: str, folder: str, golden_path: str, checkpoint: str | None) -> None:
    """Writes an export into `folder`, and the golden records with the outputs of its model to `golden_path`.

    Args:
        run_path: Folder of the run.
        folder: Folder of the export, which must not exist.
        golden_path: The .npz file of the golden records.
        checkpoint: `best` or `last`. By default the best checkpoint, or the last one if the run has no best one.

    Raises:
        UserError: The run is not finished, or one of its files was changed.
    """
    run = Run(run_path)
    manifest, result = run.manifest(), run.result()
    if result is None:
        raise unfinished_error(run.path)
    own, vocabularies, schema = run.own_statistics(), run.vocabularies(), manifest.record_schema
    files = {FILE_NAME: run.read(FILE_NAME), STATISTICS: own.to_json(), **_vocabulary_files(own, vocabularies)}
    used = checkpoint or (BEST if result.get("best_epoch") else LAST)
    model = _load_model(run, used, schema, own, vocabularies)
    target = make_target(schema, vocabularies)
    os.makedirs(folder)
    _write_saved_model(f"{folder}/saved_model", model, schema, target)
    model.save(f"{folder}/model.keras")
    for path, data in files.items():
        _write(folder, path, data)
    description = _describe(model, schema, target) | {
        "checkpoint": used,
        "epoch": result.get("best_epoch" if used == BEST else "epochs"),
        "dataset_fingerprint": manifest.fingerprint,
        "software": _software_versions(),
    }
    _write(folder, "export.json", json.dumps(description, indent=1, ensure_ascii=False).encode() + b"\n")
    save_golden(golden_path, _make_golden(model, schema, own, vocabularies))


def _load_model(
    run: Run, checkpoint: str, schema: Schema, own: RunStatistics, vocabularies: Vocabularies
) -> keras.Model:
    config = run.config()
    allow_tf32(config.tf32)

    def build() -> keras.Model:
        return build_model(schema, own.statistics, config, vocabularies=vocabularies)

    # First without memory for the weights: an edited configuration may ask for 2 billion units, and the shapes in the
    # checkpoint show that they are wrong.
    with keras.StatelessScope(initialize_variables=False):
        check_shapes(run, build(), checkpoint)
    keras.utils.clear_session()  # forgets the variables that have no memory yet
    model = build()
    restore_weights(run, model, checkpoint)
    return model


def _make_golden(model: keras.Model, schema: Schema, own: RunStatistics, vocabularies: Vocabularies) -> Golden:
    @tf.function(autograph=False, jit_compile=False)
    def forward(features: dict[str, tf.Tensor]) -> tf.Tensor:
        return model(features, training=False)

    records = draw_golden_records(schema, own.statistics, vocabularies)
    features = pad_batch(records[: len(LENGTHS)], schema)
    outputs = forward({name: tf.constant(values) for name, values in features.items()}).numpy()
    return Golden(features, [encode_without_label(record) for record in records], outputs)


def _write_saved_model(path: str, model: keras.Model, schema: Schema, target: Target) -> None:
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    tf.saved_model.save(module, path, signatures=make_signatures(model, schema, target))
    found = find_not_portable(path)
    if found:
        raise UserError(f"The model contains {', '.join(sorted(found))}, which do not run on every machine.")


def find_not_portable(path: str) -> set[str]:
    """Returns the operations in a SavedModel and in its functions that do not run on every machine."""
    with open(f"{path}/saved_model.pb", "rb") as file:
        saved = saved_model_pb2.SavedModel.FromString(file.read())
    graphs = [meta.graph_def for meta in saved.meta_graphs]
    functions = itertools.chain.from_iterable(graph.library.function for graph in graphs)
    nodes = itertools.chain(*(graph.node for graph in graphs), *(function.node_def for function in functions))
    return {node.op for node in nodes if _NOT_PORTABLE.search(node.op)}


def _vocabulary_files(own: RunStatistics, vocabularies: Vocabularies) -> dict[str, bytes]:
    """Returns the content of the vocabulary files by path, relative to statistics.json."""
    return {own.vocabularies[name].path: serialize_terms(terms) for name, terms in vocabularies.items()}


def _describe(model: keras.Model, schema: Schema, target: Target) -> dict[str, Any]:
    """Returns what a caller must know: name, dtype and shape of the inputs and the output, and the order of classes."""
    names = input_names(schema.features)
    inputs = {
        name: {
            "name": names.get(name, name),
            "dtype": tensor.dtype,
            "shape": _name_dimensions(tensor.shape, name in schema.steps),
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
            "shape": _name_dimensions(model.output.shape, target.per_step),
        },
        "classes": list(target.names),
        "inputs": inputs,
        "streaming": _describe_streaming(model, schema, target),
        "weights_sha256": weights_sha256(model),
    }


def _describe_streaming(model: keras.Model, schema: Schema, target: Target) -> dict[str, Any]:
    """Returns the inputs and outputs of the signature `streaming`, or why there is none."""
    widths = state_widths(model, schema)
    if not widths:
        return {
            "unavailable": "The model is bidirectional: it reads each record from its end, too, so it cannot read one "
            "step by step. Train a model without --bidirectional."
        }
    return {
        "inputs": [*input_names(schema.features).values(), LENGTH, *widths],
        "outputs": [output_name(target), *([LENGTH] if target.per_step else []), *widths],
        "state": {name: {"dtype": "float32", "shape": ["batch", width]} for name, width in widths.items()},
    }


def _name_dimensions(shape: tuple[int | None, ...], per_step: bool) -> list[Any]:
    """Returns a shape with names for its variable dimensions, such as ["batch", "time", 12]."""
    return ["batch", *(["time"] if per_step else []), *shape[1 + per_step :]]


def _software_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (tf, keras, np)}
    with contextlib.suppress(metadata.PackageNotFoundError):  # Lengthwise runs from a folder and is not installed
        versions["lengthwise"] = metadata.version("lengthwise")
    return versions


def _write(folder: str, name: str, data: bytes) -> None:
    path = os.path.join(folder, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)
