"""`lengthwise prepare --streaming`: its flags, its lines and its exit status."""

import pytest
from datasets import call
from prepare_jobs import load, read_whole
from streams import Place, lines


@pytest.fixture
def prepare(tmp_path, capsys):
    place = Place(tmp_path)

    def run(*flags, raw=None):
        arguments = [raw or place.logs, "--schema", tmp_path / "schema.yaml", "--output", place.dataset, *flags]
        return call(capsys, "prepare", *arguments)

    return place, run


def test_one_round_and_nothing_new(prepare):
    place, run = prepare
    place.append("a.jsonl", lines(range(30)) + "{")
    status, out, errors = run("--streaming", "--once")
    assert (status, out.splitlines()[0]) == (0, f"{place.dataset}: 30 records")
    size = len(lines(range(30)))
    assert errors[:2] == [
        f"prepare: commit 1: 30 records, 0 rejected, {size:,} bytes of 1 file",
        f"prepare: 1 byte waits for the end of the line: {place.logs / 'a.jsonl'}.",
    ]
    status, out, errors = run("--streaming", "--once")
    assert (status, out) == (3, "")
    assert errors == [
        f"lengthwise prepare: {place.dataset}: nothing new. 1 byte waits for the end of the line: "
        f"{place.logs / 'a.jsonl'}."
    ]
    status, out, errors = run("--streaming", "--idle", "0", "--commit_interval", "1d")
    assert (status, out) == (0, "")
    assert "wait" in errors[0]
    assert read_whole(place.dataset).commit == 1


def test_a_commit_of_rejects_alone_has_the_name_of_a_stream(prepare):
    place, run = prepare
    place.append("a.jsonl", lines(range(30)))
    run("--streaming", "--once")
    place.append("a.jsonl", "{}\n" * 2)
    status, _, errors = run("--streaming", "--once")
    assert status == 0
    assert "commit 2: 0 records, 2 rejected (2 bad_id), 6 bytes of 1 file" in errors[0]
    assert load(place.dataset).commit == 2
    assert run("--streaming", "--once")[0] == 3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--once"], "argument --once: only with --streaming"),
        (["--settle", "1s"], "argument --settle: only with --streaming"),
        (["--streaming", "--append"], "argument --append: not allowed with --streaming"),
        (["--streaming", "--overwrite"], "argument --overwrite: not allowed with --streaming"),
        (["--streaming", "--changed_inputs", "add"], "--on_rewrite is the flag for it"),
        (["--streaming", "--once", "--idle", "1s"], "argument --idle: not allowed with --once"),
        (["--streaming", "--on_rewrite", "skip"], "argument --on_rewrite: invalid choice: 'skip'"),
        (["--streaming", "--max_bytes", "0"], "argument --max_bytes: 0 is too small"),
        (["--streaming", "--dedup_windows", "2"], "argument --dedup_windows: only with --window and --event_time"),
        (["--streaming", "--dedup_windows", "0"], "argument --dedup_windows: 0 is too small"),
        (["--streaming", "--dedup_memory", "1.5G"], "argument --dedup_memory: 1.5G is not a size"),
    ],
)
def test_wrong_flags_are_refused(prepare, flags, message):
    place, run = prepare
    status, _, errors = run(*flags)
    assert status == 2
    assert message in errors[0]
    assert not place.dataset.exists()


def test_splits_by_input_and_open_classes_are_refused(prepare, tmp_path):
    place, run = prepare
    status, _, errors = run("--streaming", "--replay", "x")
    assert (status, "argument --replay: not allowed with --streaming" in errors[0]) == (2, True)
    schema = tmp_path / "schema.yaml"
    schema.write_text(schema.read_text().replace("[a, b]", "auto"))
    status, _, errors = run("--streaming")
    assert status == 1
    assert "label has classes: auto, but the records of a stream are not known when it starts" in errors[0]
