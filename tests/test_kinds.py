"""Every kind of feature and label from end to end: read unchanged, computed exactly, and learnt."""

import collections

import datasets
import keras
import numpy as np
import pytest
import tensorflow as tf
from compiled import compiled

from pipeline.errors import UserError
from pipeline.schema.schema import Schema
from trainer.batching.plan_epoch import plan_epoch
from trainer.config import TrainConfig
from trainer.data.dataset import open_dataset
from trainer.data.target import make_target
from trainer.evaluation.evaluate import evaluate
from trainer.model.build import build_model, head_model
from trainer.model.layers import MaxStep, MeanStep
from trainer.model.losses import compute_losses
from trainer.model.recurrent_stack import RecurrentStack
from trainer.reading.batches import batches, planned_batches
from trainer.training.train import train

KINDS = [*datasets.LABELS, *datasets.NEXT_LABELS]
SMALL = TrainConfig(units=(8,), epochs=3, batch_steps=60, learning_rate=0.02)


def vocabulary(made, name):
    """Returns the most frequent words of the train split, by a plain count; ties are ordered by the word."""
    context = name == "city"
    values = [record[name] for record in made.of("train")]
    words = [word for value in values for word in ([value] if context else value) if word is not None]
    size = 3 if context else 4
    counts = sorted(collections.Counter(words).items(), key=lambda item: (-item[1], item[0]))
    return [word for word, _ in counts[:size]]


def rows_of(made, split="train", **options):
    """Reads every record: {id: (features, label, weight)} without padding."""
    dataset = open_dataset(made.path)
    ids = dataset.index(split)["id"].to_pylist()
    rows = {}
    plan = plan_epoch(dataset, split, **options)
    for features, label, weight, row in planned_batches(dataset, split, plan):
        for position, number in enumerate(row.numpy()):
            length = int(features["length"][position])
            cut = {n: v[position].numpy() for n, v in features.items()}
            cut = {n: v[:length] if n in dataset.schema.steps else v for n, v in cut.items()}
            per_step = dataset.schema.label.per_step
            one, its_weight = label[position].numpy(), weight[position].numpy()
            if per_step:
                assert not its_weight[length:].any()
                one, its_weight = one[:length], its_weight[:length]
            rows[ids[number]] = (cut, one, its_weight)
    return rows


def plain_label(record, kind, words):
    """Returns the expected (label, weight), each one value or a list; a label without weight is None."""
    classes = datasets.CLASSES
    one = {
        "class": lambda y: classes.index(y),
        "distribution": lambda y: y,
        "regression": lambda y: y,
        "multilabel": lambda y: [float(name in y) for name in classes],
    }
    if kind in one:
        return one[kind](record["y"]), 1.0
    if kind.startswith("step_"):
        labels = [None if y is None else one[kind.removeprefix("step_")](y) for y in record["y"]]
    else:
        name = kind.removeprefix("next_")
        labels = [*record[name][1:], None]
        if name == "x":
            labels = [None if y is None or None in y else y for y in labels]
        elif name == "word":
            labels = [None if y is None else words.index(y) if y in words else len(words) for y in labels]
    return labels, [0.0 if label is None else 1.0 for label in labels]


def cut(record, kind, limit, truncate):
    """Returns the record with its first or last steps only."""
    part = slice(limit) if truncate == "tail" else slice(-limit, None)
    per_step = ["x", "word", "page", "bits", *(["y"] if kind.startswith("step_") else [])]
    return record | {name: record[name][part] for name in per_step}


@pytest.mark.parametrize(
    ("kind", "limit", "truncate"),
    [
        *datasets.some(
            ((kind, None, None) for kind in KINDS),
            ((kind, None, None) for kind in ("multilabel", "step_regression", "next_word")),
            unpack=True,
        ),
        ("step_multilabel", 4, "head"),
        pytest.param("step_regression", 4, "tail", marks=pytest.mark.proof),
        pytest.param("next_word", 3, "head", marks=pytest.mark.proof),
        ("next_bits", 4, "tail"),
    ],
)
def test_the_reader_returns_every_feature_and_label_unchanged(kind, limit, truncate):
    made = datasets.of_every_feature(kind)
    words = vocabulary(made, "word")
    options = {"batching": "pad", "pad_length": limit, "truncate": truncate} if limit else {"batch_steps": 50}
    rows = rows_of(made, **options)
    assert sorted(rows) == sorted(record["id"] for record in made.of("train"))
    for record in made.of("train"):
        features, label, weight = rows[record["id"]]
        record = cut(record, kind, limit, truncate) if limit else record
        x = [[np.nan] * 2 if step is None else [np.nan if v is None else v for v in step] for step in record["x"]]
        np.testing.assert_array_equal(features["x"], np.array(x, np.float32))
        assert features["word"].tolist() == [b"\xff" if w is None else w.encode() for w in record["word"]]
        assert features["page"].tolist() == [-1 if p is None else p for p in record["page"]]
        assert features["bits"].tolist() == record["bits"]
        np.testing.assert_array_equal(features["age"], np.float32(np.nan if record["age"] is None else record["age"]))
        assert features["city"] == (b"\xff" if record["city"] is None else record["city"].encode())
        assert features["plan"].tolist() == record["plan"]
        expected, expected_weight = plain_label(record, kind, words)
        assert np.array(weight).tolist() == expected_weight
        if isinstance(expected_weight, list):
            label = [one for one, known in zip(label, expected_weight, strict=True) if known]
            expected = [one for one in expected if one is not None]
        np.testing.assert_allclose(np.array(label), np.array(expected).reshape(np.shape(label)), rtol=1e-6)


def batch_of(records, missing=0, garbage=np.nan):
    """Returns (features, length) of raw records, padded with garbage to `missing` steps beyond the longest."""
    longest = max(len(record["bits"]) for record in records) + missing

    def padded(name, null, fill, dtype, shape=()):
        batch = np.full((len(records), longest, *shape), fill, dtype)
        for row, record in enumerate(records):
            for step, value in enumerate(record[name]):
                value = [null] * shape[0] if shape and value is None else value
                batch[row, step] = (
                    [null if v is None else v for v in value] if shape else null if value is None else value
                )
        return batch

    return {
        "x": padded("x", np.nan, garbage, np.float32, (2,)),
        "word": padded("word", b"\xff", b"garbage", object),
        "page": padded("page", -1, 3, np.int64),
        "bits": padded("bits", 0, garbage, np.float32, (3,)),
        "age": np.array([np.nan if r["age"] is None else r["age"] for r in records], np.float32),
        "city": np.array([b"\xff" if r["city"] is None else r["city"].encode() for r in records], object),
        "plan": np.array([r["plan"] for r in records], np.int64),
        "length": np.array([len(r["bits"]) for r in records], np.int32),
    }


def make_model(kind, **config):
    keras.utils.set_random_seed(3)
    dataset = open_dataset(datasets.of_every_feature(kind).path)
    config = TrainConfig(units=(6, 5), **config)
    return build_model(dataset.schema, dataset.manifest.statistics, config, vocabularies=dataset.vocabularies())


def outputs(model, features):
    return model({name: tf.constant(value) for name, value in features.items()}).numpy()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("step_class", {}),
        *(pytest.param(kind, {}, marks=pytest.mark.proof) for kind in sorted(set(KINDS) - {"step_class"})),
        pytest.param("class", {"pooling": "mean"}, marks=pytest.mark.proof),
        pytest.param("class", {"pooling": "max"}, marks=pytest.mark.proof),
        pytest.param("multilabel", {"pooling": "mean", "bidirectional": True}, marks=pytest.mark.proof),
        ("regression", {"pooling": "max", "bidirectional": True, "cell": "gru"}),
        pytest.param("step_multilabel", {"bidirectional": True}, marks=pytest.mark.proof),
    ],
)
def test_padding_and_other_records_never_change_an_output(kind, config):
    model = compiled(make_model(kind, **config))
    records = datasets.of_every_feature(kind).of("test")[:12]
    per_step = kind.startswith(("step_", "next_"))
    together = outputs(model, batch_of(records, missing=40))
    assert np.isfinite(together).all() or per_step
    for row, record in enumerate(records):
        alone = outputs(model, batch_of([record]))[0]
        found = together[row][: len(record["bits"])] if per_step else together[row]
        np.testing.assert_allclose(found, alone, atol=1e-6 * max(1, np.abs(alone).max()))


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_pooling_computes_the_last_the_mean_or_the_maximum_step(pooling):
    """Compares the input of the head with the steps that enter the pooling, by the layers of the model itself."""
    model = make_model("class", pooling=pooling)
    records = datasets.of_every_feature("class").of("test")[:6]
    stack = model.get_layer("recurrent")
    unpooled = RecurrentStack.from_config(stack.get_config() | {"pooling": None, "name": "unpooled"})
    unpooled.set_weights(stack.get_weights())
    steps = keras.Model(model.input, [unpooled(*stack.input), stack.output])
    hidden, pooled = steps({n: tf.constant(v) for n, v in batch_of(records, missing=3).items()})
    for row, record in enumerate(records):
        real = hidden[row, : len(record["bits"])].numpy()
        expected = {"last": real[-1], "mean": real.mean(axis=0), "max": real.max(axis=0)}[pooling]
        np.testing.assert_allclose(pooled[row], expected, atol=1e-6)


@pytest.mark.parametrize(("layer", "reduce"), [(MeanStep, np.mean), (MaxStep, np.max)])
def test_pooling_ignores_padding(layer, reduce):
    values = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32) - 9
    length = np.array([1, 3, 5])
    expected = np.stack([reduce(values[row, :n], axis=0) for row, n in enumerate(length)])
    for garbage in (0, 1e9, np.nan):
        padded = np.where(np.arange(5)[None, :, None] < length[:, None, None], values, np.float32(garbage))
        np.testing.assert_allclose(layer()(tf.constant(padded), tf.constant(length)), expected, rtol=1e-6)


def test_a_configuration_that_does_not_fit_the_label_is_refused_before_any_file_is_written(tmp_path):
    with pytest.raises(UserError, match=r"pooling mean: each step has its own label \(step_class\)"):
        train(datasets.of_every_feature("step_class").path, tmp_path / "run", TrainConfig(pooling="mean"))
    with pytest.raises(
        UserError, match=r"bidirectional: such a model reads the next step, which is the label \(next_of word\)"
    ):
        train(datasets.of_every_feature("next_word").path, tmp_path / "run", TrainConfig(bidirectional=True))
    assert not (tmp_path / "run").exists()


def test_a_missing_value_is_filled_as_the_schema_declares():
    made = datasets.of_every_feature("class")
    model, statistics = make_model("class"), open_dataset(made.path).manifest.statistics
    record = next(r for r in made.of("test") if len(r["bits"]) > 2)
    length = len(record["bits"])

    def answer(**changes):
        return outputs(model, batch_of([record | changes]))

    mean = list(statistics["x"].mean)
    np.testing.assert_allclose(answer(x=[None] * length), answer(x=[mean] * length), atol=1e-6)
    np.testing.assert_allclose(answer(city=None), answer(city="york"), atol=0)
    # All words outside the vocabulary share one value.
    np.testing.assert_allclose(answer(word=[None] * length), answer(word=["zebra"] * length), atol=0)
    assert np.abs(answer(word=["the"] * length) - answer(word=["zebra"] * length)).max() > 1e-4


def test_an_indicator_distinguishes_a_missing_value_from_the_value_that_fills_it():
    made = datasets.of_every_feature("class")
    model, statistics = make_model("class"), open_dataset(made.path).manifest.statistics
    record = made.of("test")[0]
    length = len(record["bits"])
    for name, missing, filled in (
        ("age", None, statistics["age"].mean[0]),
        ("page", [None] * length, [0] * length),
    ):
        with_null = outputs(model, batch_of([record | {name: missing}]))
        with_value = outputs(model, batch_of([record | {name: filled}]))
        assert np.abs(with_null - with_value).max() > 1e-5


@pytest.mark.parametrize("kind", ["class", "step_class"])
def test_the_output_depends_on_every_context_feature(kind):
    model = make_model(kind)
    (record,) = datasets.of_every_feature(kind).of("test")[:1]
    before = outputs(model, batch_of([record]))
    for changes in ({"age": 99.0}, {"city": "bath"}, {"plan": [2 - n for n in record["plan"]]}):
        if (
            changes != {name: record[name] for name in changes}
            and changes["plan" if "plan" in changes else next(iter(changes))]
        ):
            after = outputs(model, batch_of([record | changes]))
            assert (np.abs(after - before) > 1e-7).any(axis=-1).all(), changes


def test_each_vocabulary_comes_from_the_train_split():
    made = datasets.of_every_feature("class")
    found = open_dataset(made.path).vocabularies()
    assert {name: [term.decode() for term in terms] for name, terms in found.items()} == {
        name: vocabulary(made, name) for name in ("word", "city")
    }


def test_targets_name_the_outputs():
    def target(kind):
        dataset = open_dataset(datasets.of_every_feature(kind).path)
        return make_target(dataset.schema, dataset.vocabularies())

    words = vocabulary(datasets.of_every_feature("next_word"), "word")
    assert target("next_word").names == (*words, None)
    assert tuple(target("next_page").names) == (0, 1, 2, 3, 4)
    assert tuple(target("next_bits").names) == (0, 1, 2)
    assert (target("next_x").kind, target("next_x").size, target("next_x").names) == ("step_regression", 2, ())
    assert target("multilabel").names == ("a", "b", "c")


def test_losses_of_multilabels_and_vectors_equal_the_textbook_formulas():
    random = np.random.default_rng(1)
    logits = random.normal(size=(4, 3)).astype(np.float32)
    label = random.integers(0, 2, (4, 3)).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    entropy = -(label * np.log(p) + (1 - label) * np.log(1 - p)).sum(-1)
    np.testing.assert_allclose(compute_losses(logits, label, "multilabel"), entropy, rtol=1e-5)
    np.testing.assert_allclose(compute_losses(logits[None], label[None], "step_multilabel")[0], entropy, rtol=1e-5)
    squared = ((logits - label) ** 2 * [1, 4, 0.25]).mean(-1)
    found = compute_losses(tf.constant(logits), label, "step_regression", column_scale=(1, 4, 0.25))
    np.testing.assert_allclose(found, squared, rtol=1e-5)


@pytest.mark.parametrize("kind", datasets.some(KINDS, ["next_word"]))
def test_every_kind_of_label_is_learnt_and_evaluated(tmp_path, kind):
    made = datasets.of_every_feature(kind)
    result = train(made.path, tmp_path / "run", SMALL)
    lines = [line["train"]["loss"] for line in _epochs(tmp_path / "run")]
    assert lines[-1] < lines[0]
    assert np.isfinite(result["validation"]["loss"])
    measured = evaluate(tmp_path / "run", made.path)
    assert measured["records"] == 30
    # The expected loss: the mean over all labels of the split.
    dataset = open_dataset(made.path)
    model = _trained(tmp_path / "run", dataset)
    total = weights = 0.0
    scale = _scale(dataset)
    head = compiled(head_model(model))
    for features, label, weight in batches(dataset, "test", batching="exact"):
        loss = compute_losses(head(features), label, dataset.schema.label.kind, scale)
        total += float(tf.reduce_sum(weight * loss))
        weights += float(tf.reduce_sum(weight))
    assert measured["loss"] == pytest.approx(total / weights, rel=1e-4)


def _epochs(run):
    import json

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train" in line]


def _trained(path, dataset):
    from trainer.runs.checkpoints import restore_weights
    from trainer.runs.run import Run

    run = Run(str(path))
    model = build_model(dataset.schema, run.statistics(), run.config(), vocabularies=run.vocabularies())
    restore_weights(run, model, None)
    return model


def _scale(dataset):
    from trainer.model.losses import column_scales

    return column_scales(make_target(dataset.schema, dataset.vocabularies()), dataset.manifest.statistics)


def test_a_model_saved_by_keras_gives_the_same_outputs(tmp_path):
    model = make_model("next_word")
    features = batch_of(datasets.of_every_feature("next_word").of("test")[:5])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(outputs(again, features), outputs(model, features), atol=1e-6)


def test_building_a_model_requires_the_vocabularies_of_its_schema():
    schema = Schema.parse("steps: {w: {dtype: string, vocabulary: 3}}\nlabel: {name: y, kind: regression}")
    with pytest.raises(ValueError, match="pass vocabularies"):
        build_model(schema, {})
