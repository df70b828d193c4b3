"""The command `lengthwise`: each subcommand is a function that is imported only when it is called."""

import importlib
import importlib.util
import os
import pathlib
import sys

__version__ = "0.1.0"

# name: (function, what it does)
COMMANDS = {
    "sample": ("pipeline.main:sample", "make a classic benchmark's raw records, and their schema"),
    "prepare": ("pipeline.main:prepare", "turn raw records into a dataset"),
    "inspect": ("pipeline.main:inspect", "show what is in a dataset, by split, label and length"),
    "plan": ("trainer.main:plan", "show what each way of batching would cost, before you train"),
    "verify": ("pipeline.main:verify", "check every byte of a dataset"),
    "train": ("trainer.main:train", "train the masked stacked LSTM on a dataset"),
    "evaluate": ("trainer.main:evaluate", "write and print the metrics of a run, whole, by length, group and source"),
    "export": ("trainer.main:export", "make a model that serves anywhere of a run"),
    "predict": ("trainer.main:predict", "predict raw records in bulk"),
}
PLANNED = ("schema",)


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand. Returns the exit status: 0 all of it worked, 2 a wrong flag, else what a user can mend: 1,
    or the status of its kind of error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    stranger = _find_stranger()
    if stranger is not None:
        print(f"lengthwise: {stranger}", file=sys.stderr)
        return 1
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"lengthwise {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"lengthwise: {_explain_unknown(name)}", file=sys.stderr)
        return 2
    module, function = COMMANDS[name][0].split(":")
    from pipeline.errors import UserError

    try:
        return int(getattr(importlib.import_module(module), function)(arguments[1:]) or 0)
    except UserError as error:
        print(f"lengthwise {name}: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # the reader of our output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a missing permission
        print(f"lengthwise {name}: {error.filename or 'a file'}: {error.strerror or error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lengthwise {name}: interrupted.", file=sys.stderr)
        return 130


def _usage() -> str:
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: lengthwise COMMAND ...",
            "",
            "Records of different lengths in, a trained and exactly masked stacked LSTM out.",
            "",
            *lines,
            "",
            "`lengthwise COMMAND --help` shows its flags and examples; `lengthwise --version` the version.",
        ]
    )


def _explain_unknown(name: str) -> str:
    import difflib

    if name in PLANNED:
        return f"the command {name!r} is planned, but version {__version__} does not have it yet."
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}."
    return f"unknown command {name!r}; {hint}"


def _find_stranger() -> str | None:
    """Other distributions install folders named `pipeline` and `trainer`; taking theirs for ours would fail oddly."""
    here = pathlib.Path(__file__).resolve().parent
    for package in ("pipeline", "trainer"):
        spec = importlib.util.find_spec(package)
        origin = None if spec is None or spec.origin is None else pathlib.Path(spec.origin).resolve()
        if origin is None or origin.parent.parent != here:
            return (
                f"the package {package!r} is {origin or 'missing'}, expected it in {here}. Another distribution has a "
                "folder of that name: uninstall it, or install lengthwise into an environment of its own."
            )
    return None


if __name__ == "__main__":
    sys.exit(main())
