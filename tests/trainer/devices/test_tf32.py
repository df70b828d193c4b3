"""Products of matrices are not rounded to TF32 unless a run asks for it; then they are wherever its model computes."""

import datasets
import pytest
import tensorflow as tf

from pipeline.errors import UserError
from trainer.config import TrainConfig
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.evaluation.evaluate import evaluate
from trainer.runs.run import Run
from trainer.serving import saved_model
from trainer.serving.predictor import load_predictor
from trainer.training.train import train

is_allowed = tf.config.experimental.tensor_float_32_execution_enabled


@pytest.fixture(autouse=True)
def not_allowed():
    """Forbids TF32 after each test, as `start_tensorflow` does."""
    yield
    tf.config.experimental.enable_tensor_float_32_execution(False)


def test_every_command_starts_without_tf32():
    tf.config.experimental.enable_tensor_float_32_execution(True)
    start_tensorflow()
    assert not is_allowed()


@pytest.mark.proof
def test_training_evaluation_prediction_and_export_use_the_setting_of_the_run(tmp_path):
    path = datasets.of_kind("class").path
    config = {"units": (2,), "epochs": 0}
    runs = {tf32: str(tmp_path / str(tf32)) for tf32 in (True, False)}
    for tf32, run in runs.items():
        train(path, run, TrainConfig(**config, tf32=tf32))
        assert is_allowed() is tf32

    def load_to_export(path):
        run = Run(path)
        own, vocabularies = run.own_statistics(), run.vocabularies()
        saved_model._load_model(run, "last", run.manifest().record_schema, own, vocabularies)

    for use in (lambda run: evaluate(run, path), lambda run: load_predictor(run), load_to_export):
        for tf32, run in runs.items():
            tf.config.experimental.enable_tensor_float_32_execution(not tf32)
            use(run)
            assert is_allowed() is tf32
    with pytest.raises(
        UserError, match=r": was started with tf32 True, now False\. Use the same values, or start over"
    ):
        train(path, runs[True], TrainConfig(**config | {"epochs": 1}))
