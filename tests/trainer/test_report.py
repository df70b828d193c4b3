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
        "by_length": [{"min_steps": 1, "max_steps": 9, **WHOLE}],
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
