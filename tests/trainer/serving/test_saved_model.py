"""The files of an export: the SavedModel, the Keras file and export.json."""

import json
import zipfile

import datasets
import keras
import pytest
import tensorflow as tf
from export_runs import OUTPUTS, SMALL, as_tensors, difference, in_order, made_of, model_of, raw_batch, run_of

from pipeline.errors import UserError
from trainer.runs.run import Run
from trainer.serving.saved_model import find_not_portable, make
from trainer.training.train import train


def test_export_json_lists_the_classes_in_the_order_of_the_output():
    about = json.loads((made_of("next_word") / "export" / "export.json").read_text())
    terms = Run(run_of("next_word")).vocabularies()["word"]
    assert about["classes"] == [*(term.decode() for term in terms), None] and len(terms) == 4
    assert about["output"]["shape"][-1] == 5


@pytest.mark.parametrize("kind", datasets.some(OUTPUTS, ["next_word"]))
def test_the_keras_file_contains_no_code_and_loads_in_safe_mode(kind):
    path = made_of(kind) / "export" / "model.keras"
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]
        config = archive.read("config.json").decode()
    assert "Lambda" not in config and "marshal" not in config and "pickle" not in config
    model = keras.saving.load_model(path, safe_mode=True)
    inputs = as_tensors(raw_batch(in_order(kind), extra_steps=3))
    length = inputs["length"].numpy() if kind.startswith(("step_", "next_")) else None
    assert difference(model(inputs, training=False), model_of(kind)(inputs, training=False), length) <= 1e-6


def test_operations_of_cudnn_and_of_python_are_found_in_every_function(tmp_path):
    assert find_not_portable(str(made_of("class") / "export" / "saved_model")) == set()
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec([4, 2, 3])])
    def inner(values):
        state, parameters = tf.zeros([1, 2, 3]), tf.zeros([200])
        output = tf.raw_ops.CudnnRNNV2(input=values, input_h=state, input_c=state, params=parameters).output
        return tf.py_function(lambda value: value, [output], tf.float32)

    module.outer = tf.function(
        lambda values: tf.cond(values[0, 0, 0] > 0, lambda: inner(values), lambda: values * 2),
        input_signature=[tf.TensorSpec([4, 2, 3])],
    )
    tf.saved_model.save(module, str(tmp_path))
    assert find_not_portable(str(tmp_path)) == {"CudnnRNNV2", "EagerPyFunc"}


@pytest.mark.proof
def test_a_run_without_a_best_checkpoint_exports_its_last_one(tmp_path):
    records = datasets.random_records([3, 4, 5])
    result = train(datasets.make(tmp_path, records).path, tmp_path / "run", SMALL)
    assert result["best_weights_sha256"] is None
    about = make(str(tmp_path / "run"), str(tmp_path / "made"), str(tmp_path / "golden.npz"), None)
    assert about is None
    assert json.loads((tmp_path / "made" / "export.json").read_text())["checkpoint"] == "last"
    with pytest.raises(UserError, match="has no best checkpoint yet"):
        make(str(tmp_path / "run"), str(tmp_path / "again"), str(tmp_path / "golden.npz"), "best")
