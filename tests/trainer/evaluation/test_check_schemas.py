"""A run may be evaluated on a dataset whose features and label are the same, whatever its raw records look like."""

import pytest

from pipeline.errors import UserError
from pipeline.schema.schema import Schema
from trainer.evaluation.evaluate import check_schemas

TEXT = "steps: {x: {dtype: float32%s}, from: {dtype: float32}}\nlabel: {name: y%s, kind: class, classes: [a, b]}\n"
TRAINED = Schema.parse(TEXT % ("", "")).canonical()


def test_the_fields_of_raw_records_may_differ():
    found = Schema.parse(TEXT % (", from: X 1", ", from: target")).canonical()
    assert check_schemas(TRAINED, found, "run", "dataset") is None
    assert check_schemas(found, TRAINED, "run", "dataset") is None
    del found["steps"]["from"]  # a feature of that name
    with pytest.raises(UserError, match="dataset: its schema has steps.from missing, but run was trained on "):
        check_schemas(TRAINED, found, "run", "dataset")
