"""A run that holds a file of another origin is not exported."""

import os
import zipfile

import datasets
import keras
import pytest
from export_runs import copy_run, made_of

import trainer.runs.contents


def lambda_model(run):
    inputs = keras.Input((2,))
    keras.Model(inputs, keras.layers.Lambda(lambda values: values * 2)(inputs)).save(run / "model.keras")
    return "model.keras"


def linked_weights(run):
    import h5py

    with h5py.File(run / "checkpoints" / "weights.h5", "w") as file:
        file["kernel"] = h5py.ExternalLink("/etc/passwd", "/x")
    return "checkpoints/weights.h5"


def archive_with_parent_path(run):
    with zipfile.ZipFile(run / "vocabulary" / "words.zip", "w") as archive:
        archive.writestr("../../evil.py", "raise SystemExit")
    return "vocabulary/words.zip"


def pickled(run):
    (run / "logs" / "train" / "model.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    return "logs/train/model.pkl"


def saved_model(run):
    (run / "saved_model.pb").write_bytes((made_of("class") / "export" / "saved_model" / "saved_model.pb").read_bytes())
    return "saved_model.pb"


def folder(run):
    (run / "assets" / "more").mkdir(parents=True)
    (run / "assets" / "a.txt").write_text("")
    return "assets/"


def linked_manifest(run):
    (run / "manifest.json").rename(run.parent / "elsewhere.json")
    (run / "manifest.json").symlink_to(run.parent / "elsewhere.json")
    return "manifest.json (a link)"


def linked_folder(run):
    (run / "checkpoints" / "best").rename(run.parent / "elsewhere")
    (run / "checkpoints" / "best").symlink_to(run.parent / "elsewhere")
    return "checkpoints/best (a link)"


def named_pipe(run):
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    return "metrics.jsonl (not a regular file)"


def names_with_dots(run):
    (run / "..evil").write_text("")
    (run / "..\\..\\evil\n.txt").write_text("")
    return "'..\\\\..\\\\evil\\n.txt', ..evil"


def files_beside_a_checkpoint(run):
    for number in range(7):
        (run / "checkpoints" / "last" / f"ckpt-{number}.index.py").write_text("")
    return ", ".join(f"checkpoints/last/ckpt-{number}.index.py" for number in range(5)) + " and 2 more"


FOREIGN_FILES = [
    lambda_model,
    linked_weights,
    archive_with_parent_path,
    pickled,
    saved_model,
    folder,
    linked_manifest,
    linked_folder,
    named_pipe,
    names_with_dots,
    files_beside_a_checkpoint,
]


@pytest.mark.parametrize("put", FOREIGN_FILES, ids=lambda put: put.__name__)
def test_a_run_with_a_foreign_file_is_refused_and_nothing_is_created(tmp_path, capsys, put):
    run = copy_run(tmp_path)
    listed = put(run)
    before = sorted(os.listdir(tmp_path))
    status, out, (line,) = datasets.call(capsys, "export", run, "--output", tmp_path / "made" / "export")
    assert (status, out) == (1, "")
    assert line.startswith(f"lengthwise export: {run}: holds files that no run writes: {listed}. Move them ")
    assert sorted(os.listdir(tmp_path)) == before


def test_files_of_a_killed_training_are_not_foreign(tmp_path):
    run = copy_run(tmp_path)
    last = run / "checkpoints" / "last"
    (last / "ckpt-2_temp").mkdir()
    for name in ("ckpt-2_temp/part-00000-of-00001.index", "checkpoint.tmpbeef12", "../../config.yaml.tmp"):
        (last / name).write_text("")
    (run / "evaluation-validation.json").write_text("{}")
    trainer.runs.contents.refuse_foreign_files(str(run))
