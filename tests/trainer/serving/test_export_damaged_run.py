"""A run whose files were changed after training is not exported."""

import json
import os
import re
import shutil

import datasets
import pytest
import tensorflow as tf
from export_runs import SMALL, checkpoint_file, copy_run, cut, model_of, other_run
from interruptions import change

from pipeline.errors import UserError
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model
from trainer.runs.checkpoints import BEST, LAST, checkpoint_sha256, restore_weights, weights_sha256
from trainer.runs.run import Run
from trainer.serving.saved_model import make
from trainer.training.train import train


def edit(name, old, new):
    def change(run):
        data = (run / name).read_bytes()
        assert old in data
        (run / name).write_bytes(data.replace(old, new, 1))

    return change


def word_file(run):
    (path,) = (run / "vocabulary").glob("*/word.txt")
    return path


def misplace_vocabulary(run):
    """Moves a vocabulary to a path where an export has another file."""
    name = str(word_file(run).relative_to(run))
    (run / "saved_model").mkdir()
    word_file(run).rename(run / "saved_model" / "saved_model.pb")
    edit("statistics.json", name.encode(), b"saved_model/saved_model.pb")(run)


def overwrite(name, data):
    return lambda run: (run / name).write_bytes(data)


def flip_a_weight(run):
    """Changes one bit of a weight; the rest of the file is unchanged."""
    path = checkpoint_file(run, "data-00000-of-00001")
    data, weight = bytearray(path.read_bytes()), model_of("class").weights[-2].numpy().tobytes()
    data[bytes(data).index(weight)] ^= 1
    path.write_bytes(data)


def put_another_checkpoint(run):
    """Puts a complete checkpoint of the same model there that belongs to another run."""
    shutil.rmtree(run / "checkpoints" / "best")
    shutil.copytree(other_run() / "checkpoints" / "last", run / "checkpoints" / "best")


def huge_tensors(run):
    """Puts a checkpoint there whose weights are larger than the model's. They must not be read."""
    shapes = [(2**10, 2**10)] * len(model_of("class").weights)
    checkpoint = tf.train.Checkpoint(weights=[tf.Variable(tf.zeros(shape)) for shape in shapes])
    path = checkpoint.write(str(run / "huge"))
    for ending in ("index", "data-00000-of-00001"):
        os.replace(f"{path}.{ending}", checkpoint_file(run, ending))


def shift_the_mean(file):
    def change(run):
        values = json.loads((run / file).read_bytes())
        values["statistics"]["x"]["mean"][0] += 1
        (run / file).write_text(json.dumps(values))

    return change


BEST_KEY = b'best_weights_sha256": "'
DAMAGES = {
    "no YAML": (overwrite("config.yaml", b"units: [4"), "config.yaml, line 1, column 10: not valid YAML"),
    "no configuration": (overwrite("config.yaml", b"unit: [4]"), "config.yaml: unit: unknown key; did you mean"),
    "code in YAML": (
        overwrite("config.yaml", b"units: !!python/object/apply:os.system ['true']"),
        "config.yaml, line 1, column 8: not valid YAML: could not determine a constructor",
    ),
    "2 billion units": (edit("config.yaml", b"- 4", b"- 2147483647"), "expected float32[14, 6442450941]."),
    "another pooling": (edit("config.yaml", b"pooling: mean", b"pooling: last"), "has changed since the run ended"),
    "another mean": (shift_the_mean("statistics.json"), "has changed since the run ended"),
    "another mean of the dataset": (shift_the_mean("manifest.json"), "has changed since the run ended"),
    "other layers": (edit("config.yaml", b"- 4", b"- 4\n- 4"), "it holds 1"),
    "no manifest": (lambda run: (run / "manifest.json").unlink(), "it has no manifest.json that can be read"),
    "no JSON": (overwrite("manifest.json", b"{"), "manifest.json: not a manifest of a dataset: b'{'"),
    "another schema": (
        edit("manifest.json", b'"num_values": 5', b'"num_values": 6'),
        "the fingerprint does not match what the manifest lists",
    ),
    "another vocabulary": (
        lambda run: word_file(run).write_bytes(b"teh\n"),
        "word.txt is not the file that was written",
    ),
    "no vocabulary": (lambda run: word_file(run).unlink(), "word.txt cannot be read"),
    "a vocabulary elsewhere": (misplace_vocabulary, "is saved_model/saved_model.pb, expected a file in vocabulary/."),
    "no result": (
        lambda run: (run / "result.json").unlink(),
        "is not finished. Resume it with the command that started",
    ),
    "result of no run": (overwrite("result.json", b"[]"), "result.json: not the result of a run"),
    "deep result": (overwrite("result.json", b"[" * 100_000), "result.json: not JSON"),
    "no digest": (edit("result.json", b"best_weights", b"bestweights"), "result.json says None: they are not those"),
    "another digest": (
        lambda run: edit("result.json", BEST_KEY + digest_of(run), BEST_KEY + b"0" * 64)(run),
        f"result.json says {'0' * 64}: they are not those that the run ended with",
    ),
    "no checkpoint": (lambda run: shutil.rmtree(run / "checkpoints" / "best"), "has no best checkpoint yet"),
    "a checkpoint's index that is cut": (cut("index"), "best/ckpt-1: not a checkpoint of this run's model"),
    "a checkpoint that is cut": (cut("data-00000-of-00001"), "best/ckpt-1: not a checkpoint of this run's model"),
    "a bit of a weight": (flip_a_weight, "best/ckpt-1: not a checkpoint of this run's model: TensorBundle at "),
    "no checkpoint state": (overwrite("checkpoints/best/checkpoint", b"?"), "best/checkpoint: names no checkpoint"),
    "a checkpoint elsewhere": (
        edit("checkpoints/best/checkpoint", b'"ckpt-1"', b'"../../../../elsewhere/ckpt-1"'),
        "elsewhere/ckpt-1', expected a checkpoint in the same folder",
    ),
    "another checkpoint": (put_another_checkpoint, "best/ckpt-0: its weights have the SHA-256"),
    "huge tensors": (huge_tensors, "is float32[1024, 1024], expected float32[5, "),
}


def digest_of(run):
    return json.loads((run / "result.json").read_text())["best_weights_sha256"].encode()


# Each of these is found by the same check as another damage.
ALIKE = {"another mean of the dataset", "no digest", "another digest", "a checkpoint that is cut"}


@pytest.mark.parametrize("damage", datasets.some(DAMAGES, DAMAGES.keys() - ALIKE))
def test_a_changed_run_is_refused_before_anything_is_made(tmp_path, damage):
    change, message = DAMAGES[damage]
    run = copy_run(tmp_path)
    change(run)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        make(str(run), str(tmp_path / "made"), str(tmp_path / "golden.npz"), None)
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("which", datasets.some(["best", "last"], ["best"]))
def test_evaluate_refuses_weights_of_another_run(tmp_path, which):
    run, path = copy_run(tmp_path), datasets.of_every_feature("class").path
    assert evaluate(run, path, checkpoint=which)["checkpoint"] == which
    key = {"best": b"best_weights_sha256", "last": b"weights_sha256"}[which]
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {key.decode(): "0" * 64}))
    with pytest.raises(UserError, match="they are not those that the run ended with"):
        evaluate(run, path, checkpoint=which)
    (run / "result.json").unlink()  # while a run resumes, its digests are not known
    assert evaluate(run, path, checkpoint=which)["checkpoint"] == which


@pytest.mark.proof
def test_a_run_records_the_digest_of_its_best_weights_and_has_no_result_until_it_ends(tmp_path, monkeypatch):
    folder, path = tmp_path / "run", datasets.of_kind("class").path
    short, longer = change(SMALL, epochs=1), change(SMALL, epochs=4, learning_rate=SMALL.learning_rate)
    result = train(path, folder, short)
    assert result["best_weights_sha256"] == result["weights_sha256"]

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("trainer.training.loop.probe_largest", stop)
        train(path, folder, longer)
    assert not (folder / "result.json").exists()
    with pytest.raises(UserError, match="is not finished"):
        make(str(folder), str(tmp_path / "made"), str(tmp_path / "golden.npz"), None)
    result = train(path, folder, longer)
    run = Run(str(folder))
    model = build_model(run.manifest().record_schema, run.statistics(), longer)
    for which, key in ((BEST, "best_weights_sha256"), (LAST, "weights_sha256")):
        assert restore_weights(run, model, which) == which
        assert weights_sha256(model) == result[key] == checkpoint_sha256(run, model, which)
