"""The types of flags."""

import argparse
import doctest

import pytest

from pipeline import flags
from pipeline.flags import FlagParser, duration, size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), ("0.5s", 0.5), ("1.5h", 5400), ("0", 0), ("0d", 0)],
)
def test_a_duration_is_a_number_and_a_unit(text, seconds):
    assert duration(text) == seconds
    assert type(duration(text)) is float


@pytest.mark.parametrize(
    "text",
    ["", "90", "s", "-1s", "+1s", "1e3s", ".5h", "5.h", "1 h", "1h30m", "24H", "infs", "nans", "٣s", "9" * 400 + "d"],
)
def test_any_other_duration_is_refused(text):
    with pytest.raises(
        argparse.ArgumentTypeError, match="is not a duration, expected a number and a unit, for example"
    ):
        duration(text)


def test_a_wrong_duration_is_reported_with_its_flag(capsys):
    parser = FlagParser("clean", "", examples="")
    parser.add_argument("--retain", type=duration, default="24h")
    assert parser.parse([]) == {"retain": 86400.0}
    with pytest.raises(SystemExit) as ended:
        parser.parse(["--retain", "90"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "lengthwise clean: argument --retain: 90 is not a duration, expected a number and a unit, for example 90s, "
        "30m, 24h or 7d, or 0\n"
    )


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("0", 0), ("7", 7), ("2K", 2048), ("1500M", 1_572_864_000), ("2G", 2**31), ("3KB", 3000), ("600MB", 6 * 10**8)]
    + [("2GB", 2 * 10**9)],
)
def test_a_size_is_an_integer_and_a_unit(text, num_bytes):
    assert size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "1m", "1MiB", "1B", "1 M", "1T", "٣M"])
def test_any_other_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size, expected an integer and none or one of"):
        size(text)


def test_the_examples_in_docstrings_are_correct():
    assert doctest.testmod(flags).failed == 0


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("--lr=0.1", "did you mean --learning_rate?"),
        ("--force", "did you mean --overwrite?"),
        ("--batch-size", "did you mean --batch_size?"),
        ("--lernin_rate", "did you mean --learning_rate?"),
        ("--xy", "see --help for all flags."),
        ("--he", "did you mean --help?"),
    ],
)
def test_the_suggestion_is_the_flag_that_is_meant_and_not_the_one_with_as_many_dashes(wrong, suggestion, capsys):
    parser = FlagParser("train", "", examples="")
    for name in ("learning_rate", "batch_steps", "batch_size", "overwrite"):
        parser.add_argument(f"--{name}")
    with pytest.raises(SystemExit):
        parser.parse([wrong])
    assert capsys.readouterr().err == f"lengthwise train: unknown flag {wrong.split('=')[0]}; {suggestion}\n"
