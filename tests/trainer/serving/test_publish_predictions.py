"""Predictions replace older ones in one step; a failed job changes nothing, and files of others stay."""

import gzip
import json
import pathlib

import object_store
import pytest
from predict_runs import by_id, check_complete, run_of, snapshot

from pipeline.errors import UserError
from trainer.serving.predict import predict
from trainer.serving.publish import SUMMARY, PredictionsPublisher, print_summary

GENERATION = "20200101T000000-00000000"


def test_existing_predictions_are_refused_or_replaced(run_predict, tmp_path):
    made, run = run_of("class")
    run_predict(run, made.of("test"))
    before = snapshot(tmp_path / "predictions")
    with pytest.raises(UserError, match="predictions: predictions are there already. Choose another --output, or repl"):
        run_predict(run, made.of("train"))
    assert snapshot(tmp_path / "predictions") == before
    summary, _ = run_predict(run, [*made.of("train"), "{"], overwrite=True, max_rejected=1)
    assert check_complete(tmp_path / "predictions") == summary
    assert summary["records"] == len(made.of("train"))


def test_a_failed_job_keeps_the_older_predictions(run_predict, tmp_path, write_raw):
    made, run = run_of("class")
    run_predict(run, made.of("test"))
    before = snapshot(tmp_path / "predictions")
    good = pathlib.Path(write_raw(made.of("train")))
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(good.read_bytes() * 50)[:-20])
    with pytest.raises(UserError, match=rf"^{cut}: not a complete gzip file: [^\n]*$"):
        run_predict(run, str(cut), overwrite=True)
    assert snapshot(tmp_path / "predictions") == before
    assert not (tmp_path / "predictions/.staging").exists()


def test_files_of_killed_jobs_are_removed_and_files_of_others_are_kept(run_predict, tmp_path):
    made, run = run_of("class")
    left = [
        f"part-{GENERATION}-00000.jsonl",
        f".staging/{GENERATION}/{'0' * 32}.jsonl",
        f".staging/{GENERATION}/{'1' * 32}.jsonl.{'2' * 32}.tmp",
        f"rejected/{GENERATION}-{'0' * 16}.jsonl",
        f"predictions.json.{'0' * 32}.tmp",
    ]
    theirs = ["README.md", "rejected/mine.jsonl", "part-0", "deep/part-1.jsonl", "predictions.json.bak"]
    for name in [*left, *theirs]:
        path = tmp_path / "predictions" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")
    summary, lines = run_predict(run, made.of("test"))
    assert len(lines) == len(made.of("test"))
    parts = [part["path"] for part in summary["parts"]]
    assert sorted(snapshot(tmp_path / "predictions")) == sorted([*theirs, *parts, SUMMARY])
    assert not (tmp_path / "predictions/.staging").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "predictions: a file is in the way, expected a folder or nothing"),
        (
            "part-0001.jsonl",
            "predictions: contains part-0001.jsonl, which `predict` did not write and which readers would take for",
        ),
        ("manifest.json", "predictions: a dataset or a run is there. Choose another --output"),
    ],
)
def test_an_unsuitable_output_folder_is_refused_before_any_work(run_predict, tmp_path, name, message):
    made, run = run_of("class")
    path = tmp_path / "predictions" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"{message}"):
            run_predict(run, made.of("test"), overwrite=overwrite)
    assert path.read_bytes() == b"mine"


def test_predictions_of_another_job_are_not_replaced(run_predict, tmp_path):
    made, run = run_of("class")
    early = PredictionsPublisher(str(tmp_path / "predictions"), GENERATION, 0.0, False, {})
    early.check_output()
    summary, _ = run_predict(run, made.of("test"))
    with pytest.raises(UserError, match="predictions: another job published predictions there in the meantime"):
        early.publish([], [])
    assert check_complete(tmp_path / "predictions") == summary


def test_predictions_are_published_to_an_object_store_as_to_a_disk(write_raw, tmp_path):
    made, run = run_of("class")
    lines = pathlib.Path(write_raw([*made.of("test"), "{"])).read_bytes()
    store = object_store.OBJECTS
    store |= {"store://bucket/raw/new.jsonl": lines, "store://bucket/out/README": b"mine"}
    before = dict(store)
    for overwrite in (False, True):
        options = {"overwrite": overwrite, "max_rejected": 0.1}
        summary = predict(run, "store://bucket/raw", "store://bucket/out", **options)
        names = [SUMMARY, *summary["rejected"]["files"], *(part["path"] for part in summary["parts"])]
        assert sorted(store) == sorted([*before, *(f"store://bucket/out/{name}" for name in names)])
    (part,) = summary["parts"]
    found = by_id([json.loads(line) for line in store[f"store://bucket/out/{part['path']}"].splitlines()])
    assert sorted(found) == sorted(record["id"] for record in made.of("test"))
    after = dict(store)
    with pytest.raises(UserError, match=r"^store://bucket/out: predictions are there already"):
        predict(run, ["store://bucket/raw"], "store://bucket/out", max_rejected=0.1)
    with pytest.raises(UserError, match=r"1 of 31 records .* was rejected"):
        predict(run, ["store://bucket/raw"], "store://bucket/out", overwrite=True)
    assert [name for name in store if name not in after] == [n for n in store if "/rejected/" in n and n not in after]
    assert after.items() <= store.items()


def test_the_summary_of_one_record_is_in_the_singular_and_its_rate_is_not_zero(capsys):
    counts = {"records": 1, "seconds": 3.2, "rejected": {"total": 1, "by_reason": {"not_json": 1}}}
    print_summary(counts | {"checkpoint": "best", "run": "run", "parts": ["part-0.jsonl"]}, "out")
    assert capsys.readouterr().out.splitlines() == [
        "1 record predicted in 3.2 s (0.31 records/s, start included).",
        "1 record rejected: 1 not_json; see out/rejected.",
        "Model: best checkpoint of run.",
        "Predictions: out/part-*.jsonl (1 file).",
    ]
