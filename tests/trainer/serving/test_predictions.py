"""The lines of JSON that `predict` writes."""

import json

import numpy as np
import pytest

from pipeline.errors import UserError
from trainer.data.target import Target
from trainer.serving.predictions import BatchOutputs, LineEncoder


def test_numbers_have_the_fewest_digits_that_restore_them():
    outputs = np.array([[0.1, 0.9], [1 / 3, 2 / 3], [1e-8, 1], [5e-39, 1]], np.float32)
    lines = LineEncoder(Target("class", 2, ("a", "b"))).encode(
        BatchOutputs(list("pqrs"), np.ones(4, np.int32), outputs)
    )
    assert lines[0] == b'{"id":"p","label":"b","probabilities":[0.1,0.9]}\n'
    assert lines[1] == b'{"id":"q","label":"b","probabilities":[0.33333334,0.6666667]}\n'
    read = np.array([json.loads(line)["probabilities"] for line in lines], np.float32)
    np.testing.assert_array_equal(read, outputs)


def test_class_names_and_ids_are_written_unchanged():
    names = (True, 7, "7 ", 'ü"\n', 10**30)
    ids = ["ü", 'a"b', "\n", "\0", ""]
    lines = LineEncoder(Target("class", 5, names)).encode(
        BatchOutputs(ids, np.ones(5, np.int32), np.eye(5, dtype=np.float32))
    )
    assert all(line.count(b"\n") == 1 for line in lines)
    assert [json.loads(line)["id"] for line in lines] == ids
    assert [json.loads(line)["label"] for line in lines] == list(names)


@pytest.mark.parametrize("per_step", [False, True])
@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_non_finite_output_is_refused_unless_it_is_padding(per_step, number):
    target = Target("step_regression" if per_step else "regression", 1)
    outputs, lengths = np.zeros((3, 4) if per_step else 3, np.float32), np.array([4, 2, 3], np.int32)
    if per_step:
        outputs[1, 2:] = number
        assert len(LineEncoder(target).encode(BatchOutputs(list("abc"), lengths, outputs))) == 3
    outputs[2] = number
    with pytest.raises(UserError, match=r"^The output of the model for the record 'c' is not finite, "):
        LineEncoder(target).encode(BatchOutputs(list("abc"), lengths, outputs))
