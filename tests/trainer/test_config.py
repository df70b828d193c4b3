"""The configuration: every key is a flag, flags override the file, and an error is one line."""

import datasets
import pytest

from pipeline.errors import UserError
from pipeline.schema.windows import EventWindows
from trainer.config import TrainConfig, make_config, read_config

# For each flag: a value as text, and the parsed value.
VALUES = {
    "epochs": ("7", 7),
    "seed": ("4", 4),
    "batching": ("pad", "pad"),
    "batch_steps": ("500", 500),
    "batch_size": ("9", 9),
    "pad_to_multiple": ("1", 1),
    "pad_length": ("30", 30),
    "truncate": ("head", "head"),
    "units": ("8 4 2", (8, 4, 2)),
    "cell": ("gru", "gru"),
    "bidirectional": ("", True),
    "pooling": ("mean", "mean"),
    "dropout": ("0.25", 0.25),
    "optimizer": ("adam", "adam"),
    "learning_rate": ("1e-5", 1e-5),
    "clip_norm": ("1", 1.0),
    "early_stopping": ("3", 3),
    "loss_scale": ("batch", "batch"),
    "strategy": ("one", "one"),
    "local_workers": ("1", 1),
    "deterministic": ("", True),
    "tf32": ("", True),
    "checkpoint_minutes": ("1.5", 1.5),
    "checkpoint_updates": ("40", 40),
    "keep_checkpoints": ("3", 3),
    "warm_start": ("{run}", "{run}"),
    "statistics": ("dataset", "dataset"),
    "follow": ("", True),
    "idle": ("1.5m", 90.0),
    "newest": ("7d", 604800.0),
}
# Those of batching stateful, which does not have some of the others.
STATEFUL_VALUES = {
    "batching": ("stateful", "stateful"),
    "chunk_steps": ("20", 20),
    "lanes": ("9", 9),
    "backprop_chunks": ("3", 3),
    "label_every_chunk": ("", True),
    "reset_state": ("chunk", "chunk"),
    "parts": ("independent", "independent"),
}


def test_the_default_model_has_two_lstm_layers_of_100_units():
    config = TrainConfig()
    assert (config.units, config.cell, config.bidirectional, config.optimizer) == ((100, 100), "lstm", False, "rmsprop")
    assert (config.learning_rate, config.dropout, config.loss_scale, config.batching) == (0.002, 0, "epoch", "window")


def test_every_key_is_a_flag_of_the_same_name(tmp_path, capsys):
    assert {*VALUES, *STATEFUL_VALUES} == set(TrainConfig.model_fields)
    records = [record | {"at": 0} for record in datasets.of_kind("class").records]
    dataset = datasets.make(tmp_path / "made", records, windows=EventWindows(field="at", seconds=3600)).path
    datasets.call(capsys, "train", dataset, "--output", tmp_path / "other", "--units", 8, 4, 2, "--epochs", 0)
    flags = [word for name, (text, _) in VALUES.items() for word in (f"--{name}", *text.split())]
    flags = [word.format(run=tmp_path / "other") for word in flags]
    status, _, err = datasets.call(capsys, "train", dataset, "--output", tmp_path / "run", *flags, "--epochs", "0")
    assert status == 0, err
    found = read_config(str(tmp_path / "run" / "config.yaml"))
    expected = {name: value for name, (_, value) in VALUES.items()} | {"epochs": 0}
    expected["warm_start"] = str(tmp_path / "other")
    assert make_config(found) == TrainConfig(**expected)
    flags = [word for name, (text, _) in STATEFUL_VALUES.items() for word in (f"--{name}", *text.split())]
    status, _, err = datasets.call(capsys, "train", dataset, "--output", tmp_path / "s", *flags, "--epochs", "0")
    assert status == 0, err
    expected = {name: value for name, (_, value) in STATEFUL_VALUES.items()} | {"epochs": 0}
    assert make_config(read_config(str(tmp_path / "s" / "config.yaml"))) == TrainConfig(**expected)


def test_flags_override_the_file_and_the_file_overrides_the_defaults(tmp_path, capsys):
    (tmp_path / "train.yaml").write_text(
        "units: [3]\nseed: 5\nlearning_rate: 1e-2\nbidirectional: true\ndropout: 0.5\nepochs: 0\n"
    )
    dataset = datasets.of_kind("class").path
    status, _, err = datasets.call(
        capsys, "train", dataset, "--output", tmp_path / "run", "--config", tmp_path / "train.yaml",
        "--seed", 6, "--no-bidirectional", "--dropout", 0,
    )  # fmt: skip
    assert status == 0, err
    found = make_config(read_config(str(tmp_path / "run" / "config.yaml")))
    assert found == TrainConfig(units=(3,), seed=6, learning_rate=0.01, epochs=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "epoch: unknown key; did you mean 'epochs'?"),
        ("lanes: 9", "lanes belongs to batching stateful, not to window."),
        ("{batching: stateful, batch_size: 9}", "batch_size does not belong to batching stateful; choose lanes and"),
        (
            "{batching: stateful, bidirectional: true}",
            "bidirectional: such a model reads each record from its end, too,",
        ),
        ("strategy: both", "strategy: \"both\": should be 'auto', 'one', 'mirrored' or 'multi_worker'."),
        ("zzz: 8", "zzz: unknown key; known keys: epochs, seed, batching"),
        ("units: 8", "units: 8: should be a list: [a, b]."),
        ("units: []", "units: []: "),
        ("units: [8, 0]", "units.1: 0: should be greater than or equal to 1."),
        ("dropout: 1", "dropout: 1: should be less than 1."),
        ("learning_rate: 0", "learning_rate: 0: should be greater than 0."),
        ("learning_rate: .nan", "learning_rate: NaN: should be a finite number."),
        ("seed: -1", "seed: -1: should be greater than or equal to 0."),
        ("seed: 4294967296", "seed: 4294967296: should be less than 4294967296."),
        ("batch_size: 3000000000", "batch_size: 3000000000: should be less than or equal to 2147483647."),
        ("batching: chunks", "batching: \"chunks\": should be 'window', 'bucket', 'pad', 'exact' or 'stateful'."),
        ("pad_length: 9", "pad_length and truncate belong to batching pad, not to window."),
        ("epochs: null", "epochs is null, expected a number: only with follow, a run has no last epoch."),
        ("idle: 60s", "idle belongs to follow: another run does not wait for commits."),
        ("idle: 60", "idle belongs to follow: another run does not wait for commits."),
        (
            "follow: true\nidle: 1 min",
            'idle: "1 min": 1 min is not a duration, expected a number and a unit, for example',
        ),
        ("- 3", "contains [3], expected keys and values (key: value)."),
        ("a: [", "line 1, column 5: not valid YAML"),
    ],
)
def test_an_error_in_the_file_is_one_line_with_path_key_value_and_expectation(tmp_path, capsys, text, message):
    file = tmp_path / "train.yaml"
    file.write_text(text)
    status, out, err = datasets.call(
        capsys, "train", "nowhere", "--output", tmp_path / "run", "--config", file, "--epochs", 1
    )
    assert (status, out, len(err)) == (1, "", 1)
    assert err[0].startswith(f"lengthwise train: {file}") and message in err[0]
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_reported_in_one_line(tmp_path, capsys):
    status, _, err = datasets.call(
        capsys, "train", "nowhere", "--output", tmp_path / "run", "--config", tmp_path / "t.yaml"
    )
    assert (status, len(err)) == (1, 1) and f"{tmp_path}/t.yaml" in err[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epoch 3", "unknown flag --epoch; did you mean --epochs?"),
        ("--unit 3", "unknown flag --unit; did you mean --units?"),
        ("--chunk_steps 9", "flags: chunk_steps belongs to batching stateful, not to window"),
        ("--batching chunks", "argument --batching: invalid choice: 'chunks'"),
        ("--batch_steps many", "argument --batch_steps: invalid int value: 'many'"),
        ("--batch_steps 0", "flags: batch_steps: 0: should be greater than or equal to 1."),
        ("--units 8 -1", "flags: units.1: -1: should be greater than or equal to 1."),
        ("--units", "argument --units: expected at least one argument"),
        ("--clip_norm inf", "flags: clip_norm: Infinity: should be a finite number."),
        ("--dropout nan", "flags: dropout: NaN: should be a finite number."),
        ("--idle 60", "argument --idle: 60 is not a duration, expected a number and a unit, for example 90s"),
        ("--idle 60s", "flags: idle belongs to follow: another run does not wait for commits."),
        ("--follow --commit 2", "argument --commit: 2 is not allowed with --follow, which reads the newest commit"),
        ("--truncate head", "flags: pad_length and truncate belong to batching pad, not to window."),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line_with_status_2(tmp_path, capsys, flags, message):
    status, out, err = datasets.call(capsys, "train", "nowhere", "--output", tmp_path / "run", *flags.split())
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith(f"lengthwise train: {message}")


def test_a_run_that_follows_has_no_last_epoch_unless_it_is_given():
    assert (TrainConfig(follow=True).epochs, TrainConfig().epochs) == (None, 20)
    assert TrainConfig(follow=True, epochs=3, idle="2h") == TrainConfig(follow=True, epochs=3, idle=7200)
    assert TrainConfig(**TrainConfig(follow=True).model_dump()).has_epoch(10**9)
    assert TrainConfig(epochs=3).has_epoch(3) and not TrainConfig(epochs=3).has_epoch(4)


def test_a_configuration_is_immutable():
    with pytest.raises(ValueError, match="frozen"):
        TrainConfig().epochs = 3
    with pytest.raises(UserError, match='The configuration: units.0: "x": should be a valid integer'):
        make_config({"units": ["x"]})
