"""Programs that run on one GPU, each in a process of its own; each prints its result as a line of JSON.

    python tests/support/gpu_programs.py PROGRAM [ARGUMENT …]

They need neither pytest nor Beam nor a network. Without a GPU they run on the CPU, to check the programs themselves.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS: dict[str, dict[str, Any]] = {
    "lstm": {"units": (100, 100)},
    "bidirectional gru": {"units": (40, 40), "cell": "gru", "bidirectional": True},
}
NUM_FEATURES = 8


def call(program: str, *arguments: object, on_cpu: bool = False) -> Any:
    """Runs a program in a new process and returns its result.

    Args:
        on_cpu: Whether the process must not see a GPU.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | ({"CUDA_VISIBLE_DEVICES": "-1"} if on_cpu else {})
    command = [sys.executable, __file__, program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{program} ended with status {done.returncode}: {done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def lengthwise(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Starts a command of Lengthwise."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "lengthwise.py"), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **(pipes | options))


def run_lengthwise(*arguments: object) -> None:
    """Runs a command of Lengthwise. Raises an AssertionError with its messages if it fails."""
    process = lengthwise(*arguments)
    _, messages = process.communicate()
    assert process.returncode == 0, f"{arguments[0]} ended with status {process.returncode}: {messages[-4000:]}"


def make_dataset(folder: pathlib.Path, num_records: int) -> pathlib.Path:
    """Makes a dataset of log-normal lengths (median 24, at most 400), 8 numbers per step, without Beam."""
    sys.path.insert(0, str(ROOT / "tests" / "benchmarks"))
    import data

    return data.make_dataset(folder, NUM_FEATURES, num_records)


def describe() -> dict[str, Any]:
    """Returns the environment as a run records it."""
    from trainer.devices.environment import describe_environment
    from trainer.devices.replicas import find_replicas

    return describe_environment(find_replicas("one"), deterministic=False)


def outputs(path: str, num_batches: str) -> dict[str, Any]:
    """Computes outputs and gradients of ragged batches with fixed weights, without TF32, and saves them."""
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(False)
    found: dict[str, Any] = {}
    for name in MODELS:
        model, update = _make_update(name)
        random = np.random.default_rng(1)
        for number in range(int(num_batches) // len(MODELS)):
            part = _ragged_batch(random)
            found[f"{name} {number} output"] = model(part[0], training=False).numpy()
            _, gradients = update.gradients((part,))
            found[f"{name} {number} gradient"] = np.concatenate([each.numpy().ravel() for each in gradients])
    np.savez(path, **found)
    return {"batches": len(found) // 2}


def kernels() -> dict[str, Any]:
    """Counts cuDNN's operations in the update of each model, and the memory that a small update takes."""
    import tensorflow as tf

    found: dict[str, Any] = {}
    for name in MODELS:
        _, update = _make_update(name)
        update((_ragged_batch(np.random.default_rng(0)),))
        found[name] = count_cudnn(update._compiled.update.get_concrete_function())
    gpus = tf.config.list_physical_devices("GPU")
    return {
        "operations": found,
        "gpus": len(gpus),
        "memory_growth": [tf.config.experimental.get_memory_growth(gpu) for gpu in gpus],
        "peak_mebibytes": [tf.config.experimental.get_memory_info(f"GPU:{n}")["peak"] >> 20 for n in range(len(gpus))],
        "used_mebibytes": _ask_nvidia("memory.used"),
        "total_mebibytes": _ask_nvidia("memory.total"),
    }


def count_cudnn(function: Any) -> dict[str, int]:
    """Returns the number of cuDNN's recurrent operations in a concrete function, by name."""
    graph = function.graph.as_graph_def()
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    return dict(Counter(node.op for node in nodes if node.op.startswith("CudnnRNN")))


def out_of_memory(dataset: str, folder: str, mebibytes: str) -> dict[str, Any]:
    """Trains with one batch that is too large for a GPU of this size, and then with the budget that the error names."""
    import re

    import tensorflow as tf

    from pipeline.errors import UserError
    from trainer.config import TrainConfig
    from trainer.data.dataset import open_dataset
    from trainer.training.train import train

    for gpu in tf.config.list_physical_devices("GPU"):
        limit = tf.config.LogicalDeviceConfiguration(memory_limit=int(mebibytes))
        tf.config.set_logical_device_configuration(gpu, [limit])
    batch_steps = 2 * open_dataset(dataset).split("train").steps
    begin = time.monotonic()
    try:
        train(dataset, f"{folder}/too-large", TrainConfig(epochs=1, batch_steps=batch_steps))
    except UserError as error:
        seconds = time.monotonic() - begin
        advice = re.search(r"--batch_steps (\d+)", str(error))
        if advice is None:
            return {"message": str(error), "seconds": seconds}
        result = train(dataset, f"{folder}/advised", TrainConfig(epochs=1, batch_steps=int(advice[1])))
        return {"message": str(error), "seconds": seconds, "advised": int(advice[1]), "updates": result["updates"]}
    return {"message": None}


def predict(run: str, path: str) -> dict[str, Any]:
    """Saves the outputs of a run for ragged batches."""
    from trainer.serving.predictor import load_predictor

    predictor, random, found = load_predictor(run), np.random.default_rng(2), {}
    for number in range(5):
        features, _, _ = _ragged_batch(random)
        found[f"{number} x"], found[f"{number} length"] = features["x"].numpy(), features["length"].numpy()
        found[f"{number} output"] = predictor.forward(features).numpy()
    np.savez(path, **found)
    return {"batches": 5}


def serve(saved_model: str, path: str) -> dict[str, Any]:
    """Returns the largest difference of a SavedModel's outputs from those that `predict` saved."""
    import tensorflow as tf

    function = tf.saved_model.load(saved_model).signatures["serving_default"]
    farthest = 0.0
    with np.load(path) as saved:
        for number in range(len(saved.files) // 3):
            features = {name: tf.constant(saved[f"{number} {name}"]) for name in ("x", "length")}
            (found,) = function(**features).values()
            farthest = max(farthest, float(np.abs(found.numpy() - saved[f"{number} output"]).max()))
    return {"difference": farthest, "devices": [d.device_type for d in tf.config.list_logical_devices()]}


def throughput(dataset: str, seconds: str, *budgets: str) -> list[dict[str, Any]]:
    """Returns useful steps per second of the seed model's update for each budget: with the reader, and from memory.

    Each measurement repeats epochs for at least this number of seconds, after a first pass over the shapes.
    """
    import itertools

    from trainer.data.dataset import open_dataset
    from trainer.reading.batches import batches

    opened, rows = open_dataset(dataset), []
    for budget in map(int, budgets):
        _, update = _make_update("lstm")
        in_memory = list(itertools.islice(batches(opened, "train", batch_steps=budget), 64))
        num_steps = [int(features["length"].numpy().sum()) for features, _, _ in in_memory]
        for batch in in_memory:
            update((batch,))  # cuDNN sets up a descriptor for each shape
        pairs = list(zip(in_memory, num_steps, strict=True))
        from_memory, _, num_updates = _measure(update, itertools.repeat(pairs), float(seconds))

        def read(budget: int = budget) -> Iterator[Any]:
            for epoch in itertools.count(1):
                yield ((batch, None) for batch in batches(opened, "train", batch_steps=budget, epoch=epoch).prefetch(2))

        with_reader, waiting, _ = _measure(update, read(), float(seconds))
        padded = sum(int(np.prod(features["x"].shape[:2])) for features, _, _ in in_memory)
        rows.append(
            {
                "batch_steps": budget,
                "rows": float(np.mean([len(features["length"]) for features, _, _ in in_memory])),
                "useful_share": sum(num_steps) / padded,
                "updates": num_updates,
                "in_memory_steps_per_second": from_memory,
                "with_reader_steps_per_second": with_reader,
                # Updates run asynchronously, so the loop may wait for a batch while the GPU works.
                "loop_waits_for_reader": waiting,
                "lost_to_reader": max(0.0, 1 - with_reader / from_memory),
            }
        )
    return rows


def _measure(update: Any, epochs: Iterator[Any], seconds: float) -> tuple[float, float, int]:
    """Returns (useful steps per second, share of the time spent in waiting for batches, number of updates)."""
    begin, waited, num_steps, num_updates, lengths = time.perf_counter(), 0.0, 0, 0, []
    sums: Any = None
    for epoch in epochs:
        batches = iter(epoch)
        while True:
            before = time.perf_counter()
            batch, known = next(batches, (None, None))
            waited += time.perf_counter() - before
            if batch is None:
                break
            sums = update((batch,))
            num_updates += 1
            if known is None:
                lengths.append(batch[0]["length"])
            else:
                num_steps += known
            if num_updates % 16 == 0:
                float(sums.loss)  # the queue of the device must not grow without limit
            if time.perf_counter() - begin > seconds:
                break
        if time.perf_counter() - begin > seconds:
            break
    float(sums.loss)
    elapsed = time.perf_counter() - begin
    num_steps += sum(int(each.numpy().sum()) for each in lengths)
    return num_steps / elapsed, waited / elapsed, num_updates


def _make_update(name: str) -> tuple[Any, Any]:
    """Returns a model with fixed weights and its update, for 8 numbers per step and 3 classes."""
    model, _, make_update = make_model(MODELS[name])
    return model, make_update()


def make_model(options: dict[str, Any], backprop_chunks: int | None = None) -> tuple[Any, Any, Callable[[], Any]]:
    """Returns a model with fixed weights, its schema, and a function that makes its update.

    Args:
        options: Keys of the configuration.
        backprop_chunks: Makes the update of batching `stateful`, whose gradient goes back through so many chunks.
    """
    import tensorflow as tf

    from pipeline.schema.schema import Schema
    from trainer.config import TrainConfig
    from trainer.devices.replicas import find_replicas
    from trainer.model.build import build_model
    from trainer.training.stateful_update import StatefulUpdate
    from trainer.training.update import Update, make_optimizer

    schema = Schema.parse(
        f"id: id\nsteps: {{x: {{dtype: float32, shape: [{NUM_FEATURES}]}}}}\n"
        "label: {name: y, kind: class, classes: [a, b, c]}\nsplits: {train: 1}\n"
    )
    config = TrainConfig(**options)
    model, random = build_model(schema, {}, config), np.random.default_rng(0)
    model.set_weights([random.normal(scale=0.1, size=weight.shape) for weight in model.weights])
    spec = (
        {
            "x": tf.TensorSpec([None, None, NUM_FEATURES], tf.float32),
            "length": tf.TensorSpec([None], tf.int32),
        },
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None], tf.float32),
    )

    def make_update() -> Any:
        optimizer = make_optimizer(config)
        optimizer.build(model.trainable_variables)
        values: dict[str, Any] = {"kind": "class", "element_spec": spec, "by_epoch": False}
        values["replicas"] = find_replicas("one")
        if backprop_chunks is None:
            return Update(model, optimizer, **values)
        return StatefulUpdate(model, optimizer, schema=schema, backprop_chunks=backprop_chunks, **values)

    return model, schema, make_update


def _ragged_batch(random: np.random.Generator) -> Any:
    """Returns (features, label, weight) of up to 32 records of up to 60 steps; the padding has arbitrary values."""
    import tensorflow as tf

    rows = int(random.integers(1, 33))
    length = random.integers(1, 61, rows)
    x = random.normal(size=(rows, int(length.max()) + int(random.integers(0, 3)), NUM_FEATURES))
    x[np.arange(x.shape[1]) >= length[:, None]] = random.choice([np.nan, 1e9, 0.5])
    features = {"x": tf.constant(x, tf.float32), "length": tf.constant(length, tf.int32)}
    return features, tf.constant(random.integers(0, 3, rows)), tf.ones([rows])


def _ask_nvidia(query: str) -> list[int]:
    """Returns a number of each GPU; an empty list without NVIDIA's tool."""
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    with contextlib.suppress(OSError, ValueError):
        return [int(line) for line in subprocess.run(command, capture_output=True, text=True).stdout.split()]
    return []


PROGRAMS: dict[str, Callable[..., Any]] = {
    program.__name__: program for program in (describe, outputs, kernels, out_of_memory, predict, serve, throughput)
}


def main(arguments: Sequence[str]) -> None:
    from trainer.devices.tensorflow_setup import start_tensorflow

    name, *rest = arguments
    if name != "out_of_memory":  # which limits the memory itself
        start_tensorflow()
    print(json.dumps(PROGRAMS[name](*rest)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
