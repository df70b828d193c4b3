"""Parses the flags of a subcommand: abbreviations are errors, and an error names the most similar flag."""

import argparse
import difflib
import math
import re
import sys
from collections.abc import Iterable
from typing import Any, NoReturn


class FlagParser(argparse.ArgumentParser):
    """An ArgumentParser that reports a wrong flag or value in one line, and then exits with status 2.

    Args:
        planned: Flags of a later version. The error says so instead of "unknown flag".
    """

    def __init__(self, command: str, description: str, *, examples: str, planned: Iterable[str] = ()) -> None:
        super().__init__(
            prog=f"lengthwise {command}",
            description=description,
            epilog=f"examples:\n{examples.rstrip()}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._planned = frozenset(planned)

    def parse(self, arguments: list[str]) -> dict[str, Any]:
        """Returns the values of all flags by name."""
        # A misspelt flag is reported first. argparse would report the required flag as missing instead.
        wrong = [word for word in arguments if word.startswith("--") and word.split("=")[0] not in self.flags]
        if wrong:
            self.refuse(wrong)
        values, unknown = self.parse_known_args(arguments)
        if unknown:
            self.refuse(unknown)
        return vars(values)

    @property
    def flags(self) -> list[str]:
        """Names of all flags, with their dashes."""
        return [option for action in self._actions for option in action.option_strings]

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Reports the first flag in `unknown`, or else the first argument, and exits."""
        flag = next((word for word in unknown if word.startswith("-")), None)
        if flag is None:
            self.error(f"unexpected argument {unknown[0]!r}")
        name = flag.split("=")[0]
        if name in self._planned:
            self.error(f"{name} is planned, but this version does not have it yet")
        near = _find_nearest(name.strip("-"), [known[2:] for known in self.flags if known.startswith("--")])
        self.error(f"unknown flag {name}; " + (f"did you mean --{near}?" if near else "see --help for all flags."))

    def error(self, message: str) -> NoReturn:
        """Prints `message` to stderr in one line, without argparse's usage, and exits."""
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(2)


# Names that other programs have for a flag: nearer in meaning than in letters.
_MEANINGS = {
    "batch": ("batch_size",),
    "ckpt": ("checkpoint",),
    "clip": ("clip_norm",),
    "force": ("overwrite",),
    "grad_clip": ("clip_norm",),
    "hidden_size": ("units",),
    "max_grad_norm": ("clip_norm",),
    "o": ("output",),
    "patience": ("early_stopping",),
    "random_state": ("seed",),
    "workers": ("local_workers", "processes"),
}


def _find_nearest(name: str, known: list[str]) -> str | None:
    """Returns the flag that a user who wrote `name` probably means, all without dashes: None if none is likely.

    >>> _find_nearest("lr", ["help", "learning_rate"]), _find_nearest("bath-size", ["batch_size"])
    ('learning_rate', 'batch_size')
    """
    name = name.lower().replace("-", "_")
    same = [flag for flag in _MEANINGS.get(name, ()) if flag in known]
    # The first letters of the words of a flag, and then the flags that are nearest in letters.
    same += [flag for flag in known if "_" in flag and name == "".join(word[:1] for word in flag.split("_"))]
    return next(iter([*same, *difflib.get_close_matches(name, known, n=1)]), None)


def add_commit_flag(parser: FlagParser) -> None:
    """Adds the flag of a command that can open an older commit of a dataset."""
    parser.add_argument(
        "--commit",
        type=positive,
        metavar="N",
        help="open an older commit of the dataset, while its files exist (see `lengthwise inspect --commits`)",
    )


def add_limit_flags(parser: FlagParser) -> None:
    """Adds the flags of a command that parses raw records: the largest record. The defaults are those of `Limits`."""
    parser.add_argument(
        "--max_record_bytes",
        type=positive,
        default=64 * 2**20,
        metavar="N",
        help="maximum bytes of a raw record; a larger one is rejected as too_large; default: 67,108,864 (64 MiB)",
    )
    parser.add_argument(
        "--max_record_steps",
        type=positive,
        default=10_000_000,
        metavar="N",
        help="maximum steps of a record; a longer one is rejected as too_large; default: 10,000,000",
    )


def fraction(text: str) -> float:
    """Converts the text of a flag to a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction, expected a number from 0 to 1")
    return value


def positive(text: str) -> int:
    """Converts the text of a flag to an integer of at least 1."""
    return _integer(text, least=1)


def natural(text: str) -> int:
    """Converts the text of a flag to an integer of at least 0."""
    return _integer(text, least=0)


def _integer(text: str, *, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no integer, expected one of at least {least}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"{text} is too small, expected an integer of at least {least}")
    return value


_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")


def duration(text: str) -> float:
    """Converts the text of a flag to seconds: a number and one of the units s, m, h and d, or 0.

    >>> duration("1.5h"), duration("7d"), duration("0")
    (5400.0, 604800.0, 0.0)
    """
    if text == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _UNIT_SECONDS[match[2]] if match else math.inf
    if math.isinf(seconds):
        raise argparse.ArgumentTypeError(
            f"{text} is not a duration, expected a number and a unit, for example 90s, 30m, 24h or 7d, or 0"
        )
    return seconds


_UNIT_BYTES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"([0-9]+)([KMG]?|[KMG]B)")


def size(text: str) -> int:
    """Converts the text of a flag to bytes: an integer, and none or one of the units K, M and G, or KB, MB and GB.

    As in other commands, the units without B are powers of 1,024, and the others are powers of 1,000.

    >>> size("256M"), size("600MB"), size("0")
    (268435456, 600000000, 0)
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text} is not a size, expected an integer and none or one of the units K, M, G, KB, MB and GB, for "
            "example 256M"
        )
    return int(match[1]) * _UNIT_BYTES[match[2]]


def add_commit_flags(parser: FlagParser) -> None:
    """Adds the flags of a command that writes to a dataset."""
    parser.add_argument(
        "--retain",
        type=duration,
        default="24h",
        help="how long replaced files are kept for readers, for example 90s, 24h or 7d; default: 24h",
    )
    parser.add_argument(
        "--lock_timeout",
        type=duration,
        default="60s",
        help="longest time to wait for another job that publishes to the dataset; default: 60s",
    )
