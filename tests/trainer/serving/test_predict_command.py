"""The command `lengthwise predict`: its output, its exit status and its one-line errors."""

import json
import shutil

import datasets
import pytest
from predict_runs import by_id, check_complete, lines_of, run_of, snapshot
from prepare_jobs import without_progress

from trainer.serving import predictor


def test_the_command_prints_a_summary_or_json(capsys, write_raw, tmp_path):
    made, run = run_of("class")
    raw = write_raw([*made.of("test"), "{", "[]"])
    command = ("predict", run, raw, "--output", tmp_path / "out", "--max_rejected", "0.1")
    status, out, err = datasets.call(capsys, *command)
    assert (status, err[0]) == (0, "Running in this process (FnApiRunner).")
    assert without_progress(err, "predict") == []
    first, *rest = out.splitlines()
    assert first.startswith("30 records predicted in ")
    assert rest == [
        f"2 records rejected: 1 not_a_record, 1 not_json; see {tmp_path}/out/rejected.",
        f"Model: best checkpoint of {run}.",
        f"Predictions: {tmp_path}/out/part-*.jsonl (1 file).",
    ]
    status, out, _ = datasets.call(capsys, *command, "--overwrite", "--json", "--runner=DirectRunner")
    summary = json.loads(out)
    assert status == 0
    assert summary.pop("seconds") > 0
    assert check_complete(tmp_path / "out") == summary
    assert by_id(lines_of(tmp_path / "out")).keys() == {record["id"] for record in made.of("test")}


def test_paths_are_made_absolute(capsys, monkeypatch, write_raw, tmp_path):
    made, run = run_of("class")
    write_raw(made.of("test"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(run)
    assert datasets.call(capsys, "predict", "run", "raw.jsonl", "--output", "out")[0] == 0
    assert check_complete(tmp_path / "out")["run"] == str(tmp_path / "run")


@pytest.mark.parametrize(
    ("run", "raw", "output", "flags", "status", "message"),
    [
        ("gone", "raw.jsonl", "out", [], 1, "{here}/gone: not a run: it has no config.yaml that can be read."),
        ("unfinished", "raw.jsonl", "out", [], 1, "{here}/unfinished: has no last checkpoint yet."),
        ("{dataset}", "raw.jsonl", "out", [], 1, "{dataset}: not a run: it has no config.yaml that can be read."),
        ("no_best", "raw.jsonl", "out", ["--checkpoint", "best"], 1, "{here}/no_best: has no best checkpoint yet."),
        ("{run}", "gone*", "out", [], 1, "{here}/gone*: matches no file."),
        (
            "{run}",
            "blank",
            "out",
            [],
            1,
            "The input contains no records: its files are empty, or all lines are blank. Nothing was published.",
        ),
        (
            "{run}",
            "bad",
            "out",
            ["--max_rejected=1"],
            1,
            "The only record was rejected: 1 not_json. The first one is line 1 of {here}/bad, not_json: ",
        ),
        ("{run}", "raw.jsonl", "raw.jsonl", [], 1, "{here}/raw.jsonl: a file is in the way, expected a folder or"),
        ("{run}", "raw.jsonl", "raw.jsonl/out", [], 1, "A file could not be read or written: [Errno 20] Not a direct"),
        ("{run}", "raw.jsonl", "{run}", ["--overwrite"], 1, "{run}: a dataset or a run is there."),
        (
            "{run}",
            "raw.jsonl",
            "{run}/out",
            [],
            1,
            "{run}/out: is in the folder of the run, which only the run may use",
        ),
        ("{run}", "raw.jsonl", "out", ["--runner=FooRunner"], 1, "--runner FooRunner: "),
        ("{run}", "raw.jsonl", "out", ["--overwrit"], 2, "unknown flag --overwrit; did you mean --overwrite?"),
        ("{run}", "raw.jsonl", "out", ["--direct_num_worker=2"], 2, "unknown flag --direct_num_worker; did you mean"),
        ("{run}", "raw.jsonl", "out", ["--batch_steps=0"], 2, "argument --batch_steps: 0 is too small, expected a"),
        ("{run}", "raw.jsonl", "out", ["--checkpoint=first"], 2, "argument --checkpoint: invalid choice: 'first'"),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_line(
    capsys, monkeypatch, write_raw, tmp_path, run, raw, output, flags, status, message
):
    made, good_run = run_of("class")
    write_raw(made.of("test"))
    write_raw(["", " "], "blank")
    write_raw(["{"], "bad")
    for name in ("unfinished", "no_best"):
        shutil.copytree(good_run, tmp_path / name)
    shutil.rmtree(tmp_path / "unfinished/checkpoints")
    shutil.rmtree(tmp_path / "no_best/checkpoints/best")
    monkeypatch.chdir(tmp_path)
    places = {"here": tmp_path, "run": good_run, "dataset": made.path}
    before = snapshot(tmp_path)
    arguments = [argument.format(**places) for argument in (run, raw, "--output", output, *flags)]
    found, out, err = datasets.call(capsys, "predict", *arguments)
    (line,) = without_progress(err, "predict")
    assert (found, out) == (status, "")
    assert line.startswith(f"lengthwise predict: {message.format(**places)}")
    left = snapshot(tmp_path)
    assert before.items() <= left.items()
    assert all(name.startswith("out/rejected/") for name in left.keys() - before.keys())


def test_a_missing_flag_or_argument_exits_2(capsys):
    status, _, (line,) = datasets.call(capsys, "predict", "run", "--output", "out")
    assert (status, line) == (2, "lengthwise predict: the following arguments are required: RAW")
    status, _, (line,) = datasets.call(capsys, "predict", "run", "raw.jsonl")
    assert (status, line) == (2, "lengthwise predict: the following arguments are required: --output")


def test_an_interrupt_prints_one_line_and_leaves_no_files(capsys, monkeypatch, write_raw, tmp_path):
    made, run = run_of("class")
    raw = write_raw(made.of("test"))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor.Predictor, "__call__", interrupted)
    status, out, err = datasets.call(capsys, "predict", run, raw, "--output", tmp_path / "out")
    assert (status, out, err[-1]) == (130, "", "lengthwise predict: interrupted.")
    assert snapshot(tmp_path / "out") == {}
