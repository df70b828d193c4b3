"""The signature `streaming` of an export reads records chunk by chunk, and gives the outputs of whole records."""

import json

import children
import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
from export_runs import SMALL, as_tensors, check_without_our_modules, difference, made_of
from interruptions import change

import trainer.serving.signatures
from pipeline.schema.schema import Schema
from trainer.config import TrainConfig
from trainer.data.target import make_target
from trainer.model.build import build_model
from trainer.model.chunks import chunk_model
from trainer.serving.saved_model import make
from trainer.serving.signatures import make_signatures, state_widths
from trainer.training.train import train

STEPS = """x: {dtype: float32, shape: [2]}
  "a b": {dtype: int64, num_values: 5}"""
CONTEXT = "context: {State_gru_0_output: {dtype: float32}}\n"
LENGTHS, TIME = (9, 4, 1), 9


def batch():
    random = np.random.default_rng(0)
    return {
        "x": random.normal(size=(3, TIME, 2)).astype(np.float32),
        "a_b": random.integers(0, 5, (3, TIME)),
        "State_gru_0_output": random.normal(size=3).astype(np.float32),
        "length": np.array(LENGTHS, np.int32),
    }


CASES = [("class", "last", "lstm"), ("regression", "mean", "gru"), ("multilabel", "max", "lstm")]
CASES += [("step_class", "last", "gru"), ("step_regression", "last", "lstm")]


@pytest.mark.parametrize(("kind", "pooling", "cell"), datasets.some(CASES, CASES[1:2], unpack=True))
def test_a_client_that_sends_one_step_at_a_time_gets_the_outputs_of_the_steps_so_far(kind, pooling, cell):
    """The client holds one state for each record, as a server of many records does."""
    keras.utils.set_random_seed(3)
    schema = Schema.parse(datasets.schema_text(kind, STEPS) + CONTEXT)
    model = build_model(schema, {}, TrainConfig(units=(3, 4), pooling=pooling, cell=cell))
    signatures = make_signatures(model, schema, make_target(schema, {}))
    serve, streaming = signatures["serving_default"], signatures["streaming"]
    (output,) = set(serve.structured_outputs) - {"length"}
    whole, widths = batch(), state_widths(model, schema)
    assert not {name.lower() for name in widths} & {name.lower() for name in whole}
    for row, length in enumerate(LENGTHS):
        state = {name: tf.zeros([1, width]) for name, width in widths.items()}
        for step in range(length):
            one = {name: whole[name][row : row + 1, step : step + 1] for name in ("x", "a_b")}
            one |= {"State_gru_0_output": whole["State_gru_0_output"][row : row + 1], "length": np.array([1], np.int32)}
            answer = streaming(**as_tensors(one), **state)
            state = {name: answer[name] for name in widths}
            before = {name: whole[name][row : row + 1, : step + 1] for name in ("x", "a_b")}
            expected = serve(**as_tensors(one | before | {"length": np.array([step + 1], np.int32)}))[output]
            assert (
                difference(
                    answer[output][:, -1] if kind.startswith("step_") else answer[output],
                    expected[:, -1] if kind.startswith("step_") else expected,
                )
                <= 1e-6
            )


def check(made):
    """Returns what the check of an export returns or its error; a process checks it that did not make it."""
    child = children.Child(
        datasets.new_folder() / "output", check_without_our_modules, str(made / "export"), str(made / "golden.npz")
    )
    assert child.wait() == 0, child.lines
    return json.loads(child.lines[-1])


WAYS = {f"streaming in chunks of {steps}" for steps in (1, 8, 21)}
WAYS |= {"streaming in uneven chunks with garbage for padding"}


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["next_word", "regression", "next_x"])
def test_the_check_of_an_export_reads_the_golden_records_in_chunks(kind):
    assert check(made_of(kind))["result"].keys() >= WAYS


@pytest.mark.proof
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_pooled_model_is_checked_in_chunks(tmp_path, pooling):
    train(datasets.of_kind("class").path, tmp_path / "run", change(SMALL, pooling=pooling, units=(4, 3)))
    make(str(tmp_path / "run"), str(tmp_path / "export"), str(tmp_path / "golden.npz"), None)
    assert check(tmp_path)["result"].keys() >= WAYS


@pytest.mark.proof
def test_a_streaming_signature_with_other_outputs_is_found(tmp_path, monkeypatch):
    """The state after padding is not that of the last real step."""
    monkeypatch.setattr(
        trainer.serving.signatures,
        "chunk_model",
        lambda *args, **options: chunk_model(*args, **options, full_rows=True),
    )
    train(datasets.of_kind("class").path, tmp_path / "run", SMALL)
    make(str(tmp_path / "run"), str(tmp_path / "export"), str(tmp_path / "golden.npz"), None)
    assert "streaming in uneven chunks with garbage for padding is off by " in check(tmp_path)["error"]
