"""The memory of `train` and `evaluate` is that of lanes and chunks, and that of `prepare` and `predict` is bounded.

TensorFlow alone, with one layer and one call, has 600 MB of resident pages, of which 370 MB are pages of its libraries.
So the bound of `predict` is on private pages, and on what it has beyond that program.
"""

import gzip
import shutil

import numpy as np
import pytest
from memory_peaks import measure

MOST_BYTES = 600e6
LENGTHS = {1_000: 40, 100_000: 8, 1_000_000: 4}
SCHEMA = """\
id: id
steps: {x: {dtype: float32, shape: [8]}}
label: {name: y, kind: class, classes: [a, b, c]}
splits: {train: 1}
"""
PARTS = "max_length: 10000\nover_length: parts\n"
LIMIT = ("--max_record_bytes", 10**8)
STATEFUL = ("--batching", "stateful", "--chunk_steps", 100, "--lanes", 4, "--units", 32, "--epochs", 1)
FLOOR = """\
import keras, numpy as np, tensorflow as tf
inputs = keras.Input((None, 8))
model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.LSTM(32)(inputs)))
function = tf.function(lambda x: model(x, training=False), input_signature=[tf.TensorSpec([None, None, 8], tf.float32)])
for _ in range(100):
    function(tf.zeros((1, 100, 8)))
"""


def write_raw(path, steps, labels=None):
    """Writes records of this length. A million steps are 64 MiB of JSON, as a thousand different steps in turn.

    Args:
        labels: Text of the label of each step, in turn. By default, a record has one label.
    """
    rows = np.random.default_rng(0).normal(size=(1000, 8))
    text = ",".join("[" + ",".join(f"{x:.{4 + (at < 5)}f}" for at, x in enumerate(row)) + "]" for row in rows)
    step_labels = ",".join((labels or []) * (1000 // len(labels or [0])))
    with open(path, "w") as file:

        def write_list(part):
            file.write(f"[{part}")
            for _ in range(steps // 1000 - 1):
                file.write("," + part)
            file.write("]")

        for number in range(LENGTHS[steps]):
            file.write(f'{{"id":{number},"y":')
            if labels:
                write_list(step_labels)
            else:
                file.write(f'"{"abc"[number % 3]}"')
            file.write(',"x":')
            write_list(text)
            file.write("}\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a raw file of each length, and several schemas."""
    folder = tmp_path_factory.mktemp("long")
    (folder / "whole.yaml").write_text(SCHEMA)
    (folder / "hash.yaml").write_text(SCHEMA.removeprefix("id: id\n"))
    (folder / "parts.yaml").write_text(SCHEMA + PARTS)
    (folder / "classes.yaml").write_text((SCHEMA + PARTS).replace("class,", "step_class,"))
    (folder / "numbers.yaml").write_text((SCHEMA + PARTS).replace("class, classes: [a, b, c]", "step_regression"))
    for steps in LENGTHS:
        write_raw(folder / f"{steps}.jsonl", steps)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def show(capsys):
    """Returns a function that prints Peaks while the test runs."""

    def show(name, peaks):
        with capsys.disabled():
            print(f"\n{name:<40}{peaks}", end="", flush=True)
        return peaks

    return show


def prepare(folder, raw, schema="parts.yaml", output="data"):
    command = ("prepare", raw, "--schema", schema, "--output", output, "--overwrite", "--memory", "600MB", *LIMIT)
    return measure(folder, *command)


@pytest.mark.proof
def test_prepare_takes_at_most_600_mb(folder, show):
    with open(folder / "1000000.jsonl", "rb") as raw, gzip.open(folder / "raw.gz", "wb", compresslevel=1) as file:
        shutil.copyfileobj(raw, file)
    write_raw(folder / "classes.jsonl", 1_000_000, ['"a"', '"b"', "null", '"c"'])
    write_raw(folder / "numbers.jsonl", 1_000_000, ["0.25", "-3", "null", "1e-3"])
    cases = [(f"{steps}.jsonl", "parts.yaml") for steps in LENGTHS]
    cases += [("1000000.jsonl", "whole.yaml"), ("1000000.jsonl", "hash.yaml"), ("raw.gz", "parts.yaml")]
    cases += [("classes.jsonl", "classes.yaml"), ("numbers.jsonl", "numbers.yaml")]
    found = [show(f"prepare {' '.join(case)}", prepare(folder, *case)) for case in cases]
    assert max(peaks.resident for peaks in found) <= MOST_BYTES


@pytest.mark.proof
def test_train_and_evaluate_take_the_same_memory_for_any_length(folder, show):
    """With records in parts, and with records in one Example each."""
    found = {"train": [], "evaluate": []}
    for steps, schema in [*((steps, "parts.yaml") for steps in LENGTHS), (1_000_000, "whole.yaml")]:
        prepare(folder, f"{steps}.jsonl", schema)
        commands = {
            "train": ("train", "data", "--output", "run", *STATEFUL),
            "evaluate": ("evaluate", "run", "data", "--split", "train", "--chunk_steps", 1000),
        }
        for name, command in commands.items():
            found[name].append(show(f"{name}, {steps:,} steps, {schema}", measure(folder, *command)))
        shutil.rmtree(folder / "run")
    for peaks in found.values():
        for kind in zip(*peaks, strict=True):
            assert max(kind) <= 1.1 * min(kind)


@pytest.mark.proof
def test_predict_takes_at_most_600_mb_besides_libraries(folder, show):
    floor = show("TensorFlow, a layer, a call", measure(folder, program=("-c", FLOOR)))
    prepare(folder, "1000.jsonl")
    measure(folder, "train", "data", "--output", "short", *STATEFUL)
    for steps in LENGTHS:
        command = ("predict", "short", f"{steps}.jsonl", "--output", f"out-{steps}", "--chunk_steps", 1000, *LIMIT)
        peaks = show(f"predict, {steps:,} steps", measure(folder, *command))
        assert peaks.private <= MOST_BYTES
        assert peaks.resident - floor.resident <= 400e6
