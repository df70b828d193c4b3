"""`verify` counts the records of each generation again, and names the summary or file of counts that is wrong."""

import io
import json

import pyarrow.parquet as pq
import pytest
from damage import edit, edit_json, replace_listed, resign_log
from prepare_jobs import load

from pipeline.errors import UserError
from pipeline.format import count_strings
from pipeline.format.commit import commit_path
from pipeline.format.string_counts import read_counts, tabulate_counts, write_counts
from pipeline.format.summary import GenerationSummary, summary_path
from pipeline.format.sums import SQUARES_UNIT, SUM_UNIT, format_number, parse_number
from pipeline.inspection.verify import verify

SPLITS = ("train", "validation", "test")


def faults(dataset):
    return [(fault.file, fault.message) for fault in verify(str(dataset)).faults]


def second(dataset):
    return load(dataset).generations[1]


def edit_summary(dataset, change):
    """Changes the summary of the second generation, and makes commits and manifest agree with it."""
    edit_json(dataset / summary_path(second(dataset)), change)
    resign_log(dataset)


def move_lengths(values):
    counts = values["splits"]["train"]["length_counts"]
    for length, by in {"1": 1, "2": -1, "3": -1, "4": 1}.items():
        counts[length] += by


def move_labels(values):
    counts = values["splits"]["train"]["label_counts"]
    counts["a"], counts["b"] = counts["a"] - 1, counts["b"] + 1


def add_to_sum(field, unit):
    """Adds a half to a sum, of about 1000, whose mean, rounded to three digits, stays the same."""

    def change(values):
        sums = values["sums"]["x"]
        total = parse_number(sums[field][0], unit=unit) + (1 << -unit - 1)
        sums[field] = [format_number(total, unit=unit)]

    return change


def rename_reason(values):
    values["rejected"]["by_reason"] = {"wrong_type": 1}


CHANGES = {
    "lengths": (move_lengths, "splits.train.length_counts.1 is "),
    "labels": (move_labels, "splits.train.label_counts.a is "),
    "truncated": (
        edit("splits", "train", "truncated", to=1),
        "splits.train.truncated is 1, but 0 records have ",
    ),
    "sum": (add_to_sum("sum", SUM_UNIT), "sums.x.sum.0 is 0x"),
    "squares": (add_to_sum("sum_squares", SQUARES_UNIT), "sums.x.sum_squares.0 is 0x"),
    "max": (edit("sums", "x", "max", to=[64.0]), "sums.x.max.0 is 64.0, but the shards give "),
    "strings": (edit("strings", "word", "strings", by=1), "strings.word.strings is 6, but the shards hold 5 distinct"),
    "reasons": (rename_reason, "rejected.by_reason.not_json is 0, but its files hold 1"),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_a_summary_that_is_consistent_but_wrong_is_named(log_copy, change, message):
    edit_summary(log_copy, change)
    found = faults(log_copy)
    path = summary_path(second(log_copy))
    assert [text[: len(message)] for file, text in found if file == path][0] == message
    # The manifest is the sum of the summaries, and no other summary is wrong.
    assert {file for file, _ in found} <= {path, "manifest.json"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("sums", to={}), "sums has the features [], but the schema says ['x']"),
        (edit("strings", to={}), "strings has the features [], but the schema says ['word']"),
        (edit("splits", to={}), "splits are [], but the schema says ['test', 'train', 'validation']"),
    ],
)
def test_a_summary_with_other_names_than_its_schema_is_refused(log_copy, change, message):
    path = log_copy / summary_path(second(log_copy))
    edit_json(path, change)
    with pytest.raises(UserError) as caught:
        GenerationSummary.parse(path.read_bytes(), origin="it")
    assert str(caught.value) == f"it: {message}. Was this file edited?"


@pytest.mark.parametrize(("key", "message"), [("files", "lists 1 raw files, expected 2."), ("bytes", "lists 1,")])
def test_wrong_totals_of_the_sources_are_named(log_copy, key, message):
    edit_summary(log_copy, edit("sources", key, by=1))
    ((file, text),) = faults(log_copy)
    assert (file, text[: len(message)]) == (f"data/{second(log_copy)}/sources.parquet", message)


def counts_file(dataset):
    return f"data/{second(dataset)}/strings/word.parquet"


def read_words(dataset):
    (table,) = read_counts(str(dataset / counts_file(dataset)), SPLITS)
    return table.to_pydict()


@pytest.mark.parametrize("change", ["count", "split", "other", "less", "more"])
def test_a_file_of_counts_that_is_whole_but_wrong_is_named(log_copy, change):
    words = read_words(log_copy)
    counts = {split: dict(zip(words["string"], words[f"num_{split}"], strict=True)) for split in SPLITS}
    train = counts["train"]
    before = train[b"w2"]
    if change == "count":
        train[b"w2"] += 1
    elif change == "split":
        train[b"w2"], counts["test"][b"w2"] = before - 1, counts["test"][b"w2"] + 1
    elif change == "other":
        for of_split in counts.values():
            of_split[b"w20"] = of_split.pop(b"w2")
    elif change == "less":
        for of_split in counts.values():
            of_split.pop(b"w4")
    else:
        train[b"w5"] = 1
    counts = {split: {word: n for word, n in of_split.items() if n} for split, of_split in counts.items()}
    file = io.BytesIO()
    strings = write_counts(file, [tabulate_counts(counts, SPLITS)], SPLITS)
    path, generation = counts_file(log_copy), second(log_copy)
    edit_json(log_copy / summary_path(generation), edit("strings", "word", "strings", to=strings))
    replace_listed(log_copy, generation, path, file.getvalue())
    found = dict(faults(log_copy))
    word, wrong, right = {
        "count": ("w2", before + 1, before),
        "split": ("w2", before - 1, before),
        "other": ("w2", 0, before),
        "less": ("w4", 0, words["num_train"][4]),
        "more": ("w5", 1, 0),
    }[change]
    assert found[path].startswith(f"counts the string b'{word}' {wrong} times in train, ")
    assert f", but the shards hold it {right} times in train, " in found[path]
    assert found.keys() == {path} | ({summary_path(generation)} if change in ("less", "more") else set())


def test_a_file_of_counts_with_other_bytes_but_the_same_rows_has_no_fault(log_copy):
    """Another version of pyarrow writes other bytes."""
    (table,) = read_counts(str(log_copy / counts_file(log_copy)), SPLITS)
    file = io.BytesIO()
    pq.write_table(table, file, compression="none", use_dictionary=False, store_schema=False, row_group_size=2)
    replace_listed(log_copy, second(log_copy), counts_file(log_copy), file.getvalue())
    assert faults(log_copy) == []


def test_strings_are_counted_again_in_bounded_memory(three_commits, monkeypatch):
    monkeypatch.setattr(count_strings, "_BUFFER_BYTES", 400)
    assert faults(three_commits[0]) == []


def test_wrong_counts_of_unknown_strings_are_named_in_the_commit(log_copy):
    edit_json(log_copy / commit_path(3), edit("unknown", "train", "word", by=1))
    resign_log(log_copy)
    found = faults(log_copy)
    assert [file for file, _ in found] == ["manifest.json", commit_path(3)]
    assert found[0][1].startswith("splits.train.unknown.word is ")
    assert found[1][1].startswith("unknown.train.word is ")


def test_rejects_that_were_taken_back_are_counted(log_copy):
    first, _, third = load(log_copy).generations
    rejected = json.loads((log_copy / summary_path(first)).read_bytes())["rejected"]

    def take_back(values):
        values["replayed"] = rejected

    edit_json(log_copy / summary_path(third), take_back)
    resign_log(log_copy)
    assert (load(log_copy).rejected.total, faults(log_copy)) == (2, [])
    edit_json(log_copy / summary_path(third), edit("replayed", "by_reason", to={"not_json": 0, "wrong_type": 1}))
    edit_json(log_copy / summary_path(first), edit("rejected", "by_reason", to={"not_json": 0, "wrong_type": 1}))
    resign_log(log_copy)
    found = dict(faults(log_copy))
    assert found.keys() == {summary_path(first), summary_path(third)}
    assert found[summary_path(third)] == "replayed.by_reason.wrong_type is 1, but its files hold 0"
    edit_json(log_copy / summary_path(third), edit("replayed", "files", 0, "sha256", to="0" * 64))
    resign_log(log_copy)
    assert any("replayed names the SHA-256 0000" in message for _, message in faults(log_copy))


def test_a_damaged_generation_does_not_hide_a_wrong_summary(log_copy):
    edit_summary(log_copy, move_lengths)
    shard = next(iter(log_copy.glob(f"data/{load(log_copy).generations[0]}/train*.tfrecord")))
    shard.write_bytes(shard.read_bytes()[:-1])
    found = {file for file, _ in faults(log_copy)}
    assert found == {str(shard.relative_to(log_copy)), summary_path(second(log_copy))}
