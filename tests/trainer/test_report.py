"""What is printed of an evaluation says the same as its JSON, in a few lines."""

import pytest

from trainer.report import print_evaluation

METRICS = {"accuracy": 0.5, "macro_f1": 0.25, "expected_calibration_error": 0.1}
WHOLE = {"records": 30, "steps": 120, "loss": 1.5, "metrics": METRICS}


def evaluation(**more):
    """Returns the contents of an evaluation-test.json."""
    return {
        "split": "test",
        **WHOLE,
        "baseline": None,
        "by_length": [{"min_steps": 1, "max_steps": 9, **WHOLE}],
        "worse_lengths": [],
        "checkpoint": "best",
        "dataset_changed": False,
        "vocabularies_changed": [],
        **more,
    }


def printed(capsys, **more):
    """Returns the lines that are printed of an evaluation."""
    print_evaluation(evaluation(**more), "run")
    return capsys.readouterr().out.splitlines()


def table(lines, title):
    """Returns the cells of the table below a title."""
    start = lines.index(title)
    end = lines.index("", start)
    return [line.split() for line in lines[start + 3 : end]]


def of_class(name, f1, support, precision=0.5, recall=0.25):
    return {"class": name, "precision": precision, "recall": recall, "f1": f1, "support": support}


def test_few_classes_are_listed_in_their_order(capsys):
    rows = [of_class("b", 0.5, 1200), of_class(True, None, 0, None, None), of_class(None, 0.0, 7)]
    assert table(printed(capsys, by_class=rows), "By class") == [
        ["b", "0.5000", "0.2500", "0.5000", "1,200"],
        ["true", "-", "-", "-", "0"],
        ["other", "0.5000", "0.2500", "0.0000", "7"],
    ]


@pytest.mark.parametrize(
    ("unlabelled", "more"), [(0, ""), (3, " (3 more without a label)"), (4988, " (4,988 more without a label)")]
)
def test_of_many_classes_the_worst_are_listed(capsys, unlabelled, more):
    """Among equal F1, the class with more labels comes first. A class without a label is not among the worst."""
    rows = [of_class(f"c{n}", 1 - n / 100, 5) for n in range(11)]
    rows += [of_class("rare", 0.0, 1), of_class("frequent", 0.0, 900)]
    rows += [of_class(f"none {n}", 0.0 if n % 2 else None, 0) for n in range(unlabelled)]
    found = table(printed(capsys, by_class=rows), f"By class, the 10 of 13 with the lowest F1{more}")
    assert [row[0] for row in found] == ["frequent", "rare", *(f"c{n}" for n in range(10, 2, -1))]


def test_of_many_classes_the_most_confused_pairs_are_listed(capsys):
    classes = [of_class(f"c{n}", 0.5, 9) for n in range(13)]
    confusion = {"classes": [f"c{n}" for n in range(13)], "counts": [[7] * 13] * 13}
    pairs = [{"label": "c1", "predicted": None, "count": 1234 - n, "share": 0.041} for n in range(11)]
    more = {"confused_pairs": pairs, "confused_pairs_left_out": 1000, "confused_pairs_undercount": 0}
    lines = printed(capsys, by_class=classes, confusion=confusion, **more)
    found = table(lines, "Most confused classes, 10 of 1,011 pairs")
    assert found == [["c1", "other", f"{1234 - n:,}", "4.1%"] for n in range(10)]
    assert not any(line.startswith("Confusion") for line in lines)
    more["confused_pairs_undercount"] = 20
    title = "Most confused classes, 10 of 1,011 pairs, with counts that are too low by up to 20"
    assert title in printed(capsys, by_class=classes, confusion=None, **more)
    more = {"confused_pairs": [], "confused_pairs_left_out": 0, "confused_pairs_undercount": 0}
    assert "No classes were confused" in printed(capsys, by_class=classes, confusion=None, **more)
    few = printed(capsys, by_class=classes[:2], confusion={"classes": ["a", "b"], "counts": [[7, 0], [1, 7]]}, **more)
    assert not any("onfused" in line for line in few)


def test_a_split_without_a_label_is_pointed_out(capsys):
    none = {"records": 3, "steps": 9, "labelled_steps": 0, "loss": None, "metrics": dict.fromkeys(METRICS)}
    lines = printed(capsys, **none, by_length=[{"min_steps": 3, "max_steps": 3, **none}])
    assert lines[-1] == "Note: no step of the split test has a label."


def test_pairs_are_listed_if_a_confusion_table_is_wider_than_the_text(capsys):
    """No name and no count is broken into lines, and counts are not rounded."""
    pairs = [{"label": "x", "predicted": "y", "count": 9, "share": 0.5}]
    more = {"confused_pairs": pairs, "confused_pairs_left_out": 0, "confused_pairs_undercount": 0}
    for length in range(12, 30):
        names = [f"{letter * length}" for letter in "abcd"]
        more["confusion"] = {"classes": names, "counts": [[12345] * 4] * 4}
        lines = printed(capsys, by_class=[of_class(name, 0.5, 9) for name in names], **more)
        titles = [line for line in lines if "onfus" in line]
        if 5 * (length + 3) - 1 <= 100:  # by hand: five columns of this width
            assert titles == ["Confusion (rows: labels, columns: predictions)"]
            assert table(lines, titles[0]) == [[name, *["12345"] * 4] for name in names]
        else:
            assert titles == ["Most confused classes, 1 of 1 pair"]
            assert table(lines, titles[0]) == [["x", "y", "9", "50.0%"]]


def test_the_widest_table_of_metrics_breaks_no_title(capsys):
    """Several classes for each step, up to ten million labels."""
    names = ("nll", "micro_f1", "macro_f1", "exact_match", "auc", "average_precision", "expected_calibration_error")
    whole = {"records": 1_000_000, "steps": 10_000_000, "labelled_steps": 10_000_000, "loss": 12.5}
    whole["metrics"] = dict.fromkeys(names, 0.5)
    lines = printed(capsys, **whole, by_length=[{"min_steps": 100, "max_steps": 1000, **whole}])
    title = lines[lines.index("Split test") + 1]
    assert title.split() == ["steps", "records", "labels", "loss", "micro_f1", "macro_f1", "EM", "auc", "AP", "ECE"]
    assert any("EM: exact match;" in line for line in lines)


def test_classes_that_a_label_may_have_several_of_are_not_confused(capsys):
    lines = printed(capsys, by_class=[of_class(f"c{n}", 0.5, 9) for n in range(13)])
    assert not any("onfus" in line for line in lines)


def against(metric, ours, theirs, *, answer="O", is_beaten=False, **more):
    """Returns what is passed to `printed` for a model and a baseline."""
    found = {"answer": answer, "source": "train", "metrics": {metric: theirs} | more}
    baseline = found | {"metric": metric, "is_beaten": is_beaten}
    return {"metrics": METRICS | {metric: ours} if metric == "accuracy" else {metric: ours}, "baseline": baseline}


def test_the_baseline_is_the_last_row(capsys):
    lines = printed(capsys, **against("accuracy", 0.7, 0.5, is_beaten=True, macro_f1=0.25, cross_entropy=1.25))
    assert table(lines, "Split test")[1:] == [
        ["all", "30", "1.5000", "0.7000", "0.2500", "0.1000"],
        ["baseline", "1.2500", "0.5000", "0.2500", "-"],
    ]
    assert lines[-1] == "baseline: always O, the most frequent class in train"
    assert not any(line.startswith("Note") for line in lines)
    assert not any("baseline" in line for line in printed(capsys))


@pytest.mark.parametrize(
    ("metric", "ours", "theirs", "note"),
    [
        ("accuracy", 0.926, 0.926, "accuracy 0.9260 is that of always answering O."),
        ("accuracy", 0.91, 0.926, "accuracy 0.9100 is worse than that of always answering O, 0.9260."),
        ("accuracy", 0.9262, 0.926, "accuracy 0.9262 is hardly better than that of always answering O, 0.9260."),
        ("nll", 3.5, 3.25, "nll 3.5000 is worse than that of always answering the share of each class, 3.2500."),
        ("rmse", 2.0, 2.01, "rmse 2.0000 is hardly better than that of always answering the mean, 2.0100."),
    ],
)
def test_a_model_that_is_not_better_than_the_baseline_is_pointed_out(capsys, metric, ours, theirs, note):
    values = against(metric, ours, theirs)
    if metric == "rmse":
        values["metrics"] = {"mae": 1.0} | values["metrics"]
    assert [line for line in printed(capsys, **values) if line.startswith("Note")] == [f"Note: {note}"]


def test_labelled_steps_are_a_column_for_labels_per_step(capsys):
    per_step = WHOLE | {"labelled_steps": 1100}
    part, baseline = {"min_steps": 1, "max_steps": 9, **per_step}, {"metric": "accuracy", "answer": "a"}
    baseline |= {"source": "train", "metrics": METRICS | {"cross_entropy": 2.0}, "is_beaten": True}
    lines = printed(capsys, labelled_steps=1100, by_length=[part], by_group=[{"group": "p", **per_step}],
                    groups_left_out=0, baseline=baseline)  # fmt: skip
    assert table(lines, "Split test") == [
        ["1", "to", "9", "30", "1,100", "1.5000", "0.5000", "0.2500", "0.1000"],
        ["all", "30", "1,100", "1.5000", "0.5000", "0.2500", "0.1000"],
        ["baseline", "2.0000", "0.5000", "0.2500", "0.1000"],
    ]
    assert table(lines, "By group") == [["p", "30", "1,100", "1.5000", "0.5000", "0.2500", "0.1000"]]
    assert lines[lines.index("Split test") + 1].split()[:4] == ["steps", "records", "labels", "loss"]


@pytest.mark.parametrize(("others", "more"), [(0, ""), (1, "; 1 other length too"), (2, "; 2 other lengths too")])
def test_a_note_points_at_the_length_on_which_the_model_is_worst(capsys, others, more):
    worst = {"min_steps": 200, "max_steps": 399, "records": 412, "metric": "accuracy", "value": 0.81, "all": 0.971}
    (line,) = printed(capsys, worse_lengths=[worst] * (1 + others))[-1:]
    assert line == f"Records of 200 to 399 steps: accuracy 0.8100 on 412 records, 0.9710 on all{more}."
    assert not any(line.startswith("Records of") for line in printed(capsys))
