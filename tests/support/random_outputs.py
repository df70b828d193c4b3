"""Random outputs and labels of every kind, for the tests of the evaluation."""

import numpy as np

from trainer.data.target import Target

TARGETS = {
    "class": Target("class", 4, ("a", "b", 3, True)),
    "class of many": Target("class", 7, tuple("abcdefg")),
    "distribution": Target("distribution", 3, tuple("abc")),
    "step_class": Target("step_class", 6, tuple("abcdef")),
    "next value": Target("step_class", 4, ("a", "b", "c", None), next_of="word"),
    "multilabel": Target("multilabel", 4, tuple("abcd")),
    "step_multilabel": Target("step_multilabel", 4, tuple("abcd")),
    "regression": Target("regression", 1),
    "step_regression": Target("step_regression", 1),
    "next vector": Target("step_regression", 3, next_of="x"),
}


def random_label(random, target, shape):
    if target.kind == "distribution":
        return random.dirichlet(np.ones(target.size), shape).astype(np.float32)
    if target.kind in ("class", "step_class"):
        return random.integers(0, target.size - 1, shape)  # the last one is never the label
    if target.kind in ("multilabel", "step_multilabel"):
        return (random.random((*shape, target.size)) < 0.3).astype(np.float32)
    return random.normal(size=(*shape, target.size) if target.is_vector else shape).astype(np.float32)


def random_batch(random, target, *, rows=60, time=9):
    """Returns (outputs, label, weight, loss, length, row) as the evaluator passes them; the outputs have ties."""
    length = random.integers(1, time + 1, rows)
    shape = (rows, time) if target.per_step else (rows,)
    weight = np.ones(shape, np.float32)
    if target.per_step:
        weight = ((random.random(shape) < 0.7) & (np.arange(time) < length[:, None])).astype(np.float32)
    outputs = random.normal(size=(*shape, target.size) if target.is_vector else shape) * 2
    label, loss = random_label(random, target, shape), random.random(shape).astype(np.float32)
    return outputs.round(1).astype(np.float32), label, weight, loss, length, np.arange(rows)


def with_arbitrary_padding(target, batch):
    """Returns the batch with arbitrary values where the weight is 0."""
    outputs, label, weight, loss, *rest = (np.array(values) for values in batch)
    nothing = weight == 0
    garbage = np.resize(np.array([np.nan, 1e9, -1e9, np.inf, 0], np.float32), outputs[nothing].shape)
    outputs[nothing], loss[nothing] = garbage, np.nan
    label[nothing] = 77 if label.dtype == np.int64 else np.nan
    return outputs, label, weight, loss, *rest
