"""The parser of a subcommand's flags: no abbreviations, and a wrong flag is answered with the nearest right one."""

import argparse
import difflib
import sys
from collections.abc import Iterable
from typing import Any, NoReturn


class FlagParser(argparse.ArgumentParser):
    """argparse with our manners. Ends the process with status 2 for a wrong flag or value.

    Args:
        planned: Flags that a later version has; said so, instead of "unknown".
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
        """The values of all flags by name."""
        # A misspelt flag is told first: argparse would say that the right one is missing.
        wrong = [word for word in arguments if word.startswith("--") and word.split("=")[0] not in self.flags]
        if wrong:
            self.refuse(wrong)
        values, unknown = self.parse_known_args(arguments)
        if unknown:
            self.refuse(unknown)
        return vars(values)

    @property
    def flags(self) -> list[str]:
        return [option for action in self._actions for option in action.option_strings]

    def refuse(self, unknown: list[str]) -> NoReturn:
        flag = next((word for word in unknown if word.startswith("-")), None)
        if flag is None:
            self.error(f"unexpected argument {unknown[0]!r}")
        name = flag.split("=")[0]
        if name in self._planned:
            self.error(f"{name} is planned, but this version does not have it yet")
        words = [known for known in self.flags if known.startswith("--")]
        near = difflib.get_close_matches(name, words, n=1, cutoff=0.5)
        self.error(
            f"unknown flag {name}; " + (f"did you mean {near[0]}?" if near else "see --help for those there are.")
        )

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"{self.prog}: {message}\n")
        sys.exit(2)


def share(text: str) -> float:
    """A number from 0 to 1, as a flag's type."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share, expected a number from 0 to 1")
    return value


def positive(text: str) -> int:
    """A whole number of at least 1, as a flag's type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is too small, expected a whole number of at least 1")
    return value


def natural(text: str) -> int:
    """A whole number of at least 0, as a flag's type."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is too small, expected a whole number of at least 0")
    return value
