"""Faults of Keras, TensorFlow and Beam that we work around: a test that passes shows that a fault has been fixed.

Each test asserts the desired behaviour. Today it fails, with exactly the error that its mark names.
"""

import json
import signal
import socket
import struct
import subprocess
import sys
import warnings

import apache_beam as beam
import keras
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.io import fileio
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.localfilesystem import LocalFileSystem
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline.format.tfrecord import frame, masked_crc

pytestmark = pytest.mark.proof
UNREPORTED = "we know of no report"


def broken(where, raises=AssertionError):
    return pytest.mark.xfail(strict=True, raises=raises, reason=where)


def run_script(script, *arguments, seconds=120):
    """Runs Python code in a process of its own, which may crash; returns the completed process."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds)


def printed(done):
    """Returns the last line that a successful script printed, parsed as JSON."""
    if done.returncode:
        raise RuntimeError(f"The script failed by itself, status {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# Keras: training


FIT_AS_WORKER = """
import json, os, sys
worker, *ports = map(int, sys.argv[1:])
workers = [f"localhost:{port}" for port in ports]
os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": worker}})
import keras, numpy as np, tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
with strategy.scope():
    model = keras.Sequential([keras.Input((None, 2)), keras.layers.LSTM(3), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
try:
    model.fit(np.ones((8, 3, 2)), np.ones((8, 1)), batch_size=4, verbose=0)
    error = None
except ValueError as caught:
    error = str(caught)
print(json.dumps(error), flush=True)
# Without the goodbyes of the cluster, which may wait for a worker that is gone.
os._exit(0)
"""


@broken("https://github.com/keras-team/keras/issues/20585")
def test_fit_trains_on_two_workers():
    with socket.socket() as one, socket.socket() as other:
        for server in (one, other):
            server.bind(("localhost", 0))
        ports = [str(server.getsockname()[1]) for server in (one, other)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", FIT_AS_WORKER, str(worker), *ports],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for worker in (0, 1)
    ]
    try:
        ended = [(worker.communicate(timeout=180), worker.returncode) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    errors = [printed(subprocess.CompletedProcess([], status, out, err)) for (out, err), status in ended]
    if not all(error is None or "PerReplica" in error for error in errors):
        raise RuntimeError(f"Fails in another way than it did: {errors}")
    assert errors == [None, None]


UPDATE_ON_TWO_DEVICES = """
import json, keras, numpy as np, tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
x = np.array([[1, 2, 3, 4, 5, 6], [1, 0, 0, 0, 0, 0]], np.float32)[..., None]

def update(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        layers = [keras.layers.Masking(0.0), keras.layers.LSTM(2, return_sequences=True), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((None, 1)), *layers])
        model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=False)
    before = [weight.numpy() for weight in model.weights]
    model.fit(tf.data.Dataset.from_tensors((x, 1 - x)), verbose=0)
    return np.concatenate([(weight.numpy() - b).ravel() for weight, b in zip(model.weights, before)])

one = update(tf.distribute.get_strategy())
two = update(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
print(json.dumps(float(abs(two - one).max() / abs(one).max())))
"""


@broken("https://github.com/tensorflow/tensorflow/issues/29614")
def test_fit_on_two_devices_counts_each_step_as_one_device_does():
    """Records of 6 steps and 1 step, one per device: the mean of their means is not the mean over 7 steps."""
    assert printed(run_script(UPDATE_ON_TWO_DEVICES)) < 1e-4


DROPOUT_ON_TWO_DEVICES = """
import json, keras, tensorflow as tf
(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    dropout = keras.layers.Dropout(0.5)
dropped = tf.function(lambda: strategy.run(lambda: dropout(tf.ones([64]), training=True)))()
one, two = (values.numpy() for values in strategy.experimental_local_results(dropped))
print(json.dumps(bool((one == two).all())))
"""


@broken(UNREPORTED)
def test_dropout_draws_other_numbers_on_each_device():
    assert not printed(run_script(DROPOUT_ON_TWO_DEVICES))


@broken(UNREPORTED)
def test_an_optimizer_adds_up_the_gradients_of_a_category_that_occurs_twice_in_a_batch():
    """RMSprop squares each of the two separately: 3² + 4² instead of (3 + 4)²."""
    twice = tf.IndexedSlices(tf.constant([[3.0], [4.0]]), tf.constant([0, 0]), tf.constant([2, 1]))
    found = []
    for gradient in (twice, tf.convert_to_tensor(twice)):
        embeddings, optimizer = keras.Variable([[1.0], [1.0]]), keras.optimizers.RMSprop(1.0)
        optimizer.build([embeddings])
        optimizer.apply([gradient], [embeddings])
        found.append(embeddings.numpy())
    np.testing.assert_allclose(*found, rtol=1e-5)


@broken("https://github.com/keras-team/keras/issues/4186")
def test_the_loss_that_fit_reports_is_the_mean_over_all_steps():
    model = keras.Sequential(
        [keras.Input((None, 1)), keras.layers.Masking(-1.0), keras.layers.Dense(1, kernel_initializer="ones")]
    )
    model.compile(keras.optimizers.SGD(0.0), "mae", jit_compile=False)
    # One step with loss 1, and nine steps with loss 3 in another batch.
    spec = (tf.TensorSpec([1, None, 1]), tf.TensorSpec([1, None, 1]))
    batches = [(np.full((1, time, 1), cost), np.zeros((1, time, 1))) for time, cost in ((1, 1.0), (9, 3.0))]
    data = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=spec)
    data = data.apply(tf.data.experimental.assert_cardinality(2))
    (loss,) = model.fit(data, verbose=0, shuffle=False).history["loss"]
    assert loss == pytest.approx((1 + 9 * 3) / 10)


@broken("https://github.com/keras-team/keras/pull/22490")
def test_backup_and_restore_resumes_at_the_same_update(tmp_path):
    class InterruptAt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() == 11:
                raise InterruptedError

    def fit(*callbacks):
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", jit_compile=False)
        backup = keras.callbacks.BackupAndRestore(tmp_path, save_freq=2)
        x = np.ones((8, 1))
        model.fit(x, x, batch_size=1, epochs=2, verbose=0, callbacks=[backup, *callbacks])
        return int(model.optimizer.iterations.numpy())

    with pytest.raises(InterruptedError):
        fit(InterruptAt())
    # The backup was saved after update 10; the second epoch starts again from its beginning.
    assert fit() == 16


# Keras: masks


@broken("https://github.com/keras-team/keras/issues/5572")
@pytest.mark.parametrize("metric", [keras.metrics.AUC, keras.metrics.Precision])
def test_metrics_ignore_padding(metric):
    invert = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(-1.0), bias_initializer="ones")
    model = keras.Sequential([keras.Input((None, 1)), keras.layers.Masking(0.0), invert])
    model.compile(loss="mse", weighted_metrics=["mae", metric(name="found")], jit_compile=False)
    x = np.array([[0.9, 0.1, 0, 0], [0.1, 0.9, 0.9, 0]])[..., None]
    label = np.array([[0, 1, 0, 0], [1, 0, 0, 0]])[..., None]
    measured = model.evaluate(x, label, return_dict=True, verbose=0)
    if measured["mae"] != pytest.approx(0.1):
        raise RuntimeError(f"Expected a model that is right at every real step, and a mask: {measured}")
    assert measured["found"] == 1


@broken("https://github.com/tensorflow/tensorflow/issues/38349")
def test_masked_steps_do_not_contribute_to_the_gradient():
    layer = keras.layers.LSTM(2)
    x, mask = tf.constant([[[1.0], [2.0], [np.nan]]]), tf.constant([[True, True, False]])
    layer.build(x.shape)
    with tf.GradientTape() as tape:
        outputs = layer(x, mask=mask)
    if not np.isfinite(outputs).all():
        raise RuntimeError(f"Expected finite outputs, found {outputs}")
    gradients = tape.gradient(outputs, [weight.value for weight in layer.weights])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@broken("https://github.com/keras-team/keras/issues/18416")
@pytest.mark.parametrize(
    "change", [lambda h: h + h, keras.ops.relu, lambda h: h[:, :, :1]], ids=["add", "relu", "slice"]
)
def test_an_operation_keeps_the_mask_or_warns_that_it_is_lost(change):
    inputs = keras.Input((None, 2))
    hidden = keras.layers.LSTM(2, return_sequences=True)(keras.layers.Masking()(inputs))
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        changed = change(hidden)
    assert issued or getattr(changed, "_keras_mask", None) is not None


# Keras: saving


@broken("https://github.com/keras-team/keras/issues/21533")
def test_use_cudnn_is_saved(tmp_path):
    keras.Sequential([keras.Input((None, 2)), keras.layers.LSTM(2, use_cudnn=False)]).save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").layers[0].use_cudnn is False


@broken("https://github.com/keras-team/keras/issues/19796")
def test_a_checkpoint_of_a_model_holds_the_state_of_dropout(tmp_path):
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5)])
    checkpoint = tf.train.Checkpoint(model=model)
    saved = checkpoint.write(str(tmp_path / "checkpoint"))
    dropped = model(np.ones((1, 64)), training=True).numpy()
    checkpoint.read(saved)
    assert (model(np.ones((1, 64)), training=True).numpy() == dropped).all()


SAVE_AND_DIE = """
import os, signal, sys
import keras
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="one"), keras.layers.Dense(2, name="two")])
save = model.save_weights if sys.argv[1].endswith(".weights.h5") else model.save
save(sys.argv[1])
model.get_layer("two").save_own_variables = lambda store: os.kill(os.getpid(), signal.SIGKILL)
save(sys.argv[1])
"""


@broken("https://github.com/keras-team/keras/issues/20463", raises=(OSError, ValueError))
@pytest.mark.parametrize("name", ["model.weights.h5", "model.keras"])
def test_a_save_that_is_killed_keeps_the_previous_file(tmp_path, name):
    path = tmp_path / name
    done = run_script(SAVE_AND_DIE, path)
    if done.returncode != -signal.SIGKILL or not path.exists():
        raise RuntimeError(f"Expected a save that is killed, found status {done.returncode}: {done.stderr[-2000:]}")
    if name == "model.keras":
        keras.models.load_model(path)
    else:
        layers = [keras.layers.Dense(2, name="one"), keras.layers.Dense(2, name="two")]
        keras.Sequential([keras.Input((2,)), *layers]).load_weights(path)


# tf.data


def shuffled_twice():
    files = tf.data.Dataset.range(4).shuffle(4, seed=1)
    records = files.interleave(lambda file: tf.data.Dataset.range(10 * file, 10 * file + 10), cycle_length=2)
    return records.shuffle(8, seed=2)


def go_on(dataset, steps, again, path):
    """Returns the rest of an epoch of `again`, restored from the state of `dataset` after some steps."""
    iterator = iter(dataset)
    for _ in range(steps):
        next(iterator)
    saved = tf.train.Checkpoint(iterator=iterator).write(str(path / "iterator"))
    restored = iter(again)
    tf.train.Checkpoint(iterator=restored).read(saved)
    return [int(value) for value in restored]


@broken("https://github.com/tensorflow/tensorflow/issues/48178")
def test_an_iterator_restored_near_the_end_of_an_epoch_has_the_same_next_epoch(tmp_path):
    dataset = shuffled_twice()
    first, second = ([int(value) for value in dataset] for _ in range(2))

    def next_epoch(steps):
        again = shuffled_twice()
        if go_on(shuffled_twice(), steps, again, tmp_path) != first[steps:]:
            raise RuntimeError(f"Expected the same rest of the epoch after step {steps}.")
        return [int(value) for value in again]

    if next_epoch(10) != second:
        raise RuntimeError("Expected the same next epoch where the restored iterator is far from the end.")
    assert next_epoch(36) == second


@broken(UNREPORTED)
def test_an_iterator_is_not_restored_into_other_files(tmp_path):
    def records(num_files):
        files = tf.data.Dataset.range(num_files)
        return files.interleave(lambda file: tf.data.Dataset.range(10 * file, 10 * file + 10), cycle_length=2)

    try:
        rest = go_on(records(3), 5, records(2), tmp_path)
    except tf.errors.OpError:
        return
    raise AssertionError(f"No error, and {len(rest)} of the 25 records that were left.")


@broken(UNREPORTED, raises=tf.errors.UnimplementedError)
def test_buckets_can_be_checkpointed_by_position_only(tmp_path):
    lengths = tf.data.Dataset.range(1, 9)
    batches = lengths.map(lambda length: tf.ones([length])).bucket_by_sequence_length(tf.size, [5], [2, 2])
    options = tf.data.Options()
    options.experimental_symbolic_checkpoint = True
    iterator = iter(batches.with_options(options))
    next(iterator)
    tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))


# TFRecord files, and parsing


def header(length):
    packed = struct.pack("<Q", length)
    return packed + struct.pack("<I", masked_crc(packed))


@broken("https://github.com/tensorflow/datasets/issues/3330")
@pytest.mark.parametrize("left", [1, 8, 11])
def test_a_file_cut_inside_a_header_is_an_error(tmp_path, left):
    record = frame(b"payload")
    path = tmp_path / "cut.tfrecord"
    path.write_bytes(record + record + record[:left])
    try:
        found = list(tf.data.TFRecordDataset(str(path)))
    except tf.errors.DataLossError:
        return
    raise AssertionError(f"No error, and {len(found)} records.")


@broken("as https://github.com/tensorflow/tensorflow/issues/113160")
def test_a_record_that_claims_a_terabyte_does_not_kill_the_process(tmp_path):
    path = tmp_path / "crafted.tfrecord"
    path.write_bytes(header(2**40) + b"\0" * 100)
    done = run_script("import sys, tensorflow as tf; list(tf.data.TFRecordDataset(sys.argv[1]))", path)
    assert done.returncode >= 0


@broken(UNREPORTED)
def test_a_feature_without_values_does_not_kill_the_process():
    done = run_script(
        "import tensorflow as tf\n"
        "feature = tf.io.FixedLenSequenceFeature([0], tf.float32, allow_missing=True)\n"
        "tf.io.parse_example([tf.train.Example().SerializeToString()], {'x': feature})\n"
    )
    assert done.returncode >= 0


ROWS_OF_NOTHING = """
import tensorflow as tf
example = tf.train.Example()
example.features.feature["values"].float_list.value.extend([1.0, 2.0])
example.features.feature["splits"].int64_list.value.extend([0, 1_000_000])
feature = tf.io.RaggedFeature(tf.float32, "values", [tf.io.RaggedFeature.RowSplits("splits")])
parsed = tf.io.parse_single_example(example.SerializeToString(), {"x": feature})
print(parsed["x"].to_tensor().shape)
"""


@broken("https://github.com/tensorflow/tensorflow/pull/116301")
def test_rows_beyond_the_values_of_an_example_are_an_error():
    """Two values, and a row that claims a million: TensorFlow reads memory beyond the values, or crashes."""
    done = run_script(ROWS_OF_NOTHING)
    if done.returncode > 0 and "InvalidArgumentError" not in done.stderr:
        raise RuntimeError(f"Fails in another way than it did: {done.stderr[-2000:]}")
    assert done.returncode > 0, f"status {done.returncode}, {done.stdout}"


# Beam


@broken("https://github.com/apache/beam/pull/39993")
def test_a_file_that_cannot_be_renamed_fails_the_pipeline(tmp_path, monkeypatch):
    def refuse(self, sources, destinations):
        raise BeamIOError("refused", dict.fromkeys(zip(sources, destinations, strict=True), OSError("refused")))

    monkeypatch.setattr(LocalFileSystem, "rename", refuse)
    try:
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            lines = pipeline | beam.Create(["a", "b"])
            lines | fileio.WriteToFiles(str(tmp_path / "output"), shards=1, max_writers_per_bundle=0)
    except RuntimeError as error:
        if "refused" not in str(error):
            raise
        return
    written = list((tmp_path / "output").glob("output-*"))
    raise AssertionError(f"The pipeline is done, and has written {written}.")
