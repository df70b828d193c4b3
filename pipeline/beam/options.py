"""Parses the flags of a command that runs a Beam job: its own flags and all flags of Beam.

This module imports Beam only if a flag of Beam is given, so that the other commands start fast.
"""

import logging
import sys
from typing import Any

from pipeline.beam.runner_options import add_runner_flags
from pipeline.flags import FlagParser

# Names of the runner on this machine. Beam's `DirectRunner` first downloads a program to run the job, and falls back to
# FnApiRunner. Here FnApiRunner is used immediately.
LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner", "apache_beam.runners.direct.DirectRunner")


# Flags of Beam that hold a secret.
_SECRETS = ("s3_secret_access_key", "s3_session_token")
# The value of --direct_running_mode with which the local runner has one worker, a thread of this process.
_IN_MEMORY = "in_memory"


def complete_options(beam_options: dict[str, Any]) -> dict[str, Any]:
    """Returns the Beam options of a job, with `--direct_running_mode=multi_processing` if several workers are wanted.

    With `--direct_num_workers` alone, the local runner would keep its single worker.
    """
    several = beam_options.get("direct_num_workers", 1) != 1  # 0: one for each core
    local = beam_options.get("runner") in LOCAL_RUNNERS
    return {"direct_running_mode": "multi_processing"} | beam_options if local and several else beam_options


def runs_on_engine(beam_options: dict[str, Any]) -> bool:
    """Returns whether a job with these Beam options runs on another runner than the one of this machine."""
    return beam_options.get("runner") not in LOCAL_RUNNERS


def runs_in_this_process(beam_options: dict[str, Any]) -> bool:
    """Returns whether a job with these Beam options runs in this process and in one thread."""
    mode = complete_options(beam_options).get("direct_running_mode", _IN_MEMORY)
    return beam_options.get("runner") in LOCAL_RUNNERS and mode == _IN_MEMORY


def parse_with_beam(parser: FlagParser, arguments: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values of the parser's flags, and the values of Beam's flags that are not defaults, by name.

    With a runner that is not local, Beam's flags include those of the runner itself, such as --faster_copy for Flink. A
    flag that nobody has ends the process with status 2. Beam's own parser only logs a warning.
    """
    ours = {action.dest for action in parser._actions}
    if not {"-h", "--help"} & set(arguments):
        _add_beam_flags(parser, arguments)
    values = parser.parse(arguments)
    # Beam warns about extras that are not installed and not needed.
    logging.disable(logging.WARNING)
    beam_values = {name: values.pop(name) for name in list(values) if name not in ours}
    given = {name: value for name, value in beam_values.items() if value != parser.get_default(name)}
    _warn_of_secrets(parser, given)
    return values, given


def _warn_of_secrets(parser: FlagParser, given: dict[str, Any]) -> None:
    """Prints a line if a secret is given by a flag, with other ways to give it."""
    secrets = [f"--{name}" for name in _SECRETS if given.get(name)]
    if secrets:
        command = parser.prog.removeprefix("lengthwise ")
        print(
            f"{command}: warning: {' and '.join(secrets)} can be seen in the list of processes and in the options of "
            "the job. Use AWS_PROFILE, or AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or a role instead.",
            file=sys.stderr,
        )


def _add_beam_flags(parser: FlagParser, arguments: list[str]) -> None:
    """Adds all flags of Beam to the parser if a flag is given that the parser does not have.

    If there is one that Beam does not have either, the flags of the runner itself are added, too.
    """
    given = {word.split("=")[0] for word in arguments if word.startswith("--")}
    if given <= set(parser.flags):
        return
    logging.disable(logging.WARNING)
    from apache_beam.options.pipeline_options import PipelineOptions

    beam_parser = _BeamFlags(parser)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(beam_parser)
    if not given <= set(parser.flags):
        add_runner_flags(parser, arguments, LOCAL_RUNNERS)


class _BeamFlags:
    """Takes the place of the parser to which Beam's option classes add their flags.

    Hides the flags in the help, and drops a flag whose name the parser already has.
    """

    def __init__(self, parser: FlagParser) -> None:
        self._parser = parser

    def add_argument(self, *names: str, **details: Any) -> None:
        new_names = [name for name in names if name not in self._parser.flags]
        if new_names:
            self._parser.add_argument(*new_names, **{**details, "help": "", "required": False})

    def add_value_provider_argument(self, *names: str, **details: Any) -> None:
        self.add_argument(*names, **details)

    def add_mutually_exclusive_group(self, *_: Any, **__: Any) -> "_BeamFlags":
        return self

    def add_argument_group(self, *_: Any, **__: Any) -> "_BeamFlags":
        return self
