"""The command `lengthwise export`: what it writes, what it refuses and what it leaves."""

import functools
import json
import os
import pathlib
import shutil
import signal
import site
import subprocess
import sys
import time

import children
import datasets
import numpy as np
import pytest
from export_runs import (
    LENGTHWISE,
    Fakes,
    as_tensors,
    copy_run,
    cut,
    difference,
    fail,
    files_of,
    forget_our_modules,
    in_order,
    made_of,
    model_of,
    raw_batch,
    run_of,
    shards_of,
)
from prepare_jobs import without_progress

import trainer.runs.contents
import trainer.serving.export
from pipeline.errors import UserError
from trainer.evaluation.evaluate import evaluate
from trainer.serving.export import export


@functools.cache
def exported():
    """Returns (folder, printed JSON, lines of stderr) of an export by the command.

    The working folder contains modules that have the names of ours and of libraries, which must not be imported.
    """
    folder = datasets.new_folder()
    for name in ("trainer", "pipeline", "tensorflow", "json"):
        (folder / f"{name}.py").write_text("raise SystemExit('the working folder was imported')")
    command = [LENGTHWISE, "export", run_of("class"), "--output", "made/export", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "made" / "export", json.loads(done.stdout), done.stderr.splitlines()


@pytest.mark.proof
def test_an_export_contains_the_documented_files_and_leaves_no_others():
    folder, printed, stderr = exported()
    run = pathlib.Path(run_of("class"))
    vocabularies = {name for name in files_of(run) if name.startswith("vocabulary/")}
    assert len(vocabularies) == 2
    assert files_of(folder) == vocabularies | {
        "export.json",
        "manifest.json",
        "statistics.json",
        "model.keras",
        "saved_model/fingerprint.pb",
        "saved_model/saved_model.pb",
        "saved_model/variables/variables.data-00000-of-00001",
        "saved_model/variables/variables.index",
    }
    for name in {"manifest.json", "statistics.json"} | vocabularies:
        assert (folder / name).read_bytes() == (run / name).read_bytes()
    assert os.listdir(folder.parent) == ["export"]
    result = json.loads((run / "result.json").read_text())
    assert max(printed.pop("differences").values()) <= 1e-6
    assert json.loads((folder / "export.json").read_text()) == printed
    assert (printed["checkpoint"], printed["epoch"]) == ("best", result["best_epoch"])
    assert printed["weights_sha256"] == result["best_weights_sha256"]
    assert printed["classes"] == datasets.CLASSES
    assert printed["output"] == {"name": "probabilities", "dtype": "float32", "shape": ["batch", 3]}
    assert printed["inputs"]["x"] == {
        "name": "x", "dtype": "float32", "shape": ["batch", "time", 2], "missing": "NaN"
    }  # fmt: skip
    assert printed["inputs"]["plan"] == {"name": "plan", "dtype": "int64", "shape": ["batch", 2]}
    assert printed["inputs"]["length"] == {"name": "length", "dtype": "int32", "shape": ["batch"]}
    steps = without_progress(stderr, "export")
    assert [line.split(",")[0] for line in steps] == ["Making the model", "Checking it"]


# The interpreter reads no .pth files, so that Lengthwise, which is installed in the same folder, cannot be imported.
WITHOUT_LENGTHWISE = """
import importlib.util, sys
sys.path.append(sys.argv[1])
assert not any(importlib.util.find_spec(name) for name in ("trainer", "pipeline", "lengthwise"))
import numpy as np
import tensorflow as tf

model = tf.saved_model.load(sys.argv[2])
serve, serialized = model.signatures["serving_default"], model.signatures["serialized"]
inputs = {name: tf.constant(values) for name, values in np.load("inputs.npz").items()}
examples = tf.data.TFRecordDataset(sys.argv[3:]).batch(1000).get_single_element()
np.savez("outputs.npz", served=serve(**inputs)["probabilities"], serialized=serialized(examples)["probabilities"])
"""


class Blocker:
    """Lets a process import no module of Lengthwise."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("trainer", "pipeline", "lengthwise"):
            raise ModuleNotFoundError(name)


def run_without_lengthwise(folder, arguments):
    """Does what the interpreter without Lengthwise does, in a process that has imported TensorFlow already."""
    forget_our_modules()
    sys.meta_path.insert(0, Blocker())
    os.chdir(folder)
    sys.argv = ["-c", *arguments]
    code = WITHOUT_LENGTHWISE.replace("assert not any(importlib.util.find_spec", "assert not any(sys.modules.get")
    exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("is_bare", datasets.some([False, True], [False]))
def test_the_saved_model_runs_without_lengthwise(tmp_path, is_bare):
    records = in_order("class")
    np.savez(tmp_path / "inputs.npz", **raw_batch(records))
    arguments = [site.getsitepackages()[0], str(made_of("class") / "export" / "saved_model"), *shards_of("class")]
    if is_bare:
        command = [sys.executable, "-I", "-S", "-c", WITHOUT_LENGTHWISE, *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        child = children.Child(tmp_path / "output", run_without_lengthwise, tmp_path, arguments)
        assert child.wait() == 0, child.lines
    with np.load(tmp_path / "outputs.npz") as outputs:
        served, serialized = outputs["served"], outputs["serialized"]
    assert len(records) == len(served) == 30
    assert difference(serialized, served) <= 1e-6
    assert difference(served, model_of("class")(as_tensors(raw_batch(records)), training=False)) <= 1e-6
    labels = [datasets.CLASSES.index(record["y"]) for record in records]
    evaluation = evaluate(run_of("class"), datasets.of_every_feature("class").path)
    assert np.mean(-np.log(served[np.arange(30), labels])) == pytest.approx(evaluation["loss"], rel=1e-5)


@pytest.mark.proof
def test_an_older_export_is_kept_on_failure_and_replaced_on_success(tmp_path, monkeypatch):
    output = tmp_path / "export"
    shutil.copytree(made_of("next_word") / "export", output)
    before = (output / "export.json").read_bytes()
    fakes = Fakes(lambda made, golden: None)
    monkeypatch.setattr(
        trainer.serving.export,
        "call_in_subprocess",
        lambda function, *rest: fail() if "export_check" in function else fakes(function, *rest),
    )
    with pytest.raises(UserError, match="on purpose"):
        export(run_of("class"), output, overwrite=True)
    assert (output / "export.json").read_bytes() == before and os.listdir(tmp_path) == ["export"]
    monkeypatch.setattr(
        trainer.serving.export,
        "call_in_subprocess",
        lambda function, *rest: {"all": 0.0} if "export_check" in function else fakes(function, *rest),
    )
    assert export(run_of("class"), output, overwrite=True)["kind"] == "class"
    assert files_of(output) == files_of(made_of("class") / "export") and os.listdir(tmp_path) == ["export"]
    assert json.loads((output / "export.json").read_text())["kind"] == "class"


def test_an_output_that_appears_during_the_export_is_kept(tmp_path, monkeypatch):
    output = tmp_path / "export"

    def fake(function, *arguments):
        if function.endswith(":make"):
            return Fakes(lambda made, golden: None)(function, *arguments)
        output.mkdir()
        (output / "mine.txt").write_text("mine")
        return {"all": 0.0}

    monkeypatch.setattr(trainer.serving.export, "call_in_subprocess", fake)
    with pytest.raises(UserError, match="export: the export could not be moved there: Directory not empty."):
        export(run_of("class"), output)
    assert files_of(tmp_path) == {"export/mine.txt"} and os.listdir(tmp_path) == ["export"]


def test_the_older_export_is_restored_if_the_new_one_cannot_be_moved(tmp_path):
    (tmp_path / "export").mkdir()
    with pytest.raises(UserError, match="export: the export could not be moved there: No such file"):
        trainer.serving.export._publish(str(tmp_path / "gone"), str(tmp_path / "export"), overwrite=True)
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.proof
def test_a_damaged_run_prints_one_line_and_leaves_no_files(tmp_path):
    run = copy_run(tmp_path)
    cut("data-00000-of-00001")(run)
    done = subprocess.run(
        [LENGTHWISE, "export", "run", "--output", "made/export"], cwd=tmp_path, capture_output=True, text=True
    )
    lines = without_progress(done.stderr.splitlines(), "export")
    assert (done.returncode, done.stdout, len(lines)) == (1, "", 2)
    assert lines[1].startswith("lengthwise export: run/checkpoints/best/ckpt-1: not a checkpoint of this run's model")
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        (
            "there",
            [],
            "there: exists already. Choose another --output, or replace an existing export with --",
        ),
        ("there", ["--overwrite"], "there: is not an export: it contains 'mine.txt'. Choose another --output."),
        ("file", ["--overwrite"], "file: a file or a link is in the way, expected nothing. Choose another --output."),
        ("link", ["--overwrite"], "link: a file or a link is in the way, expected nothing. Choose another --output."),
        ("run", ["--overwrite"], "run: is in the folder of the run. Choose an --output outside of "),
        ("run/export", [], "run/export: is in the folder of the run. Choose an --output outside of "),
        ("there/../run/export", [], "run/export: is in the folder of the run. Choose an --output outside of "),
        ("to-run/export", [], "to-run/export: is in the folder of the run. Choose an --output outside of "),
        (
            "gs://bucket/export",
            [],
            "gs://bucket/export/**: no file system for gs:// is installed. It needs: pip install",
        ),
    ],
)
def test_an_unsuitable_output_is_refused_and_unchanged(tmp_path, monkeypatch, capsys, output, flags, message):
    monkeypatch.chdir(tmp_path)
    run = copy_run(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "to-run").symlink_to("run")
    before = files_of(tmp_path)
    status, out, (line,) = datasets.call(capsys, "export", run, "--output", output, *flags)
    assert (status, out) == (1, "") and line.startswith("lengthwise export: ") and message in line
    assert files_of(tmp_path) == before


def test_a_folder_without_a_run_is_refused_with_one_line(tmp_path, capsys):
    for run in (tmp_path / "none", datasets.of_every_feature("class").path):
        status, out, (line,) = datasets.call(capsys, "export", run, "--output", tmp_path / "export")
        assert (status, out) == (1, "") and line.startswith(f"lengthwise export: {run}: ")
    assert list(tmp_path.iterdir()) == []


def test_folders_of_killed_exports_are_removed_and_those_of_running_ones_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.serving.export, "call_in_subprocess", fail)
    output = tmp_path / "[export]*"
    left, living = tmp_path / "[export]*.dead.tmp", tmp_path / "[export]*.living.tmp"
    others = tmp_path / "export.other.tmp"
    for path in (left / "export", living, others):
        path.mkdir(parents=True)
    with trainer.serving.export._locked(str(living)):
        with pytest.raises(UserError, match="on purpose"):
            export(run_of("class"), output)
    assert sorted(tmp_path.iterdir()) == sorted([living, others])


@pytest.mark.proof
def test_a_killed_export_publishes_nothing_and_the_next_one_cleans_up(tmp_path):
    command = [LENGTHWISE, "export", run_of("class"), "--output", str(tmp_path / "export")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    while not list(tmp_path.glob("export.*.tmp/export/model.keras")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [path.suffix for path in tmp_path.iterdir()] == [".tmp"]
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert os.listdir(tmp_path) == ["export"]


@pytest.mark.proof
def test_an_interrupted_export_leaves_no_files(tmp_path):
    command = [LENGTHWISE, "export", run_of("class"), "--output", str(tmp_path / "export")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("export.*.tmp/export/saved_model")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    lines = process.communicate()[1].splitlines()
    assert (process.returncode, lines[-1]) == (130, "lengthwise export: interrupted.")
    assert list(tmp_path.iterdir()) == []
