"""Lengthwise: records of different lengths in, a trained and exactly masked stacked LSTM out.

This module is the public interface. In Python, write `import lengthwise as lw` and use the names in `__all__`; the
packages `pipeline` and `trainer` may change between versions. On the command line, `lengthwise COMMAND` calls `main`.

Importing this module loads neither NumPy, Beam nor TensorFlow: a public name or a command is imported when it is used.
"""

import importlib
import importlib.util
import os
import pathlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Editors and mypy see the public names here; `_PUBLIC` below imports them at run time.
    from pipeline.beam.parse_records import ParseRecords
    from pipeline.beam.prepare_files import PrepareFiles
    from pipeline.beam.read_lines import ReadLines
    from pipeline.beam.write_dataset import WriteDataset
    from pipeline.errors import UserError
    from pipeline.raw.records import Limits
    from pipeline.schema.schema import Schema
    from pipeline.schema.windows import EventWindows
    from trainer.batching.plan_epoch import plan_epoch
    from trainer.config import TrainConfig
    from trainer.data.dataset import open_dataset
    from trainer.evaluation.evaluate import evaluate
    from trainer.model.build import build_model
    from trainer.reading.batches import batches
    from trainer.reading.foreign import foreign_batches
    from trainer.serving.export import export
    from trainer.serving.predict import predict
    from trainer.training.train import train

__version__ = "0.1.0"

__all__ = [
    "EventWindows",
    "Limits",
    "ParseRecords",
    "PrepareFiles",
    "ReadLines",
    "Schema",
    "TrainConfig",
    "UserError",
    "WriteDataset",
    "batches",
    "build_model",
    "evaluate",
    "export",
    "foreign_batches",
    "open_dataset",
    "plan_epoch",
    "predict",
    "train",
]

# The module that defines each public name.
_PUBLIC = {
    "EventWindows": "pipeline.schema.windows",
    "Limits": "pipeline.raw.records",
    "ParseRecords": "pipeline.beam.parse_records",
    "PrepareFiles": "pipeline.beam.prepare_files",
    "ReadLines": "pipeline.beam.read_lines",
    "Schema": "pipeline.schema.schema",
    "TrainConfig": "trainer.config",
    "UserError": "pipeline.errors",
    "WriteDataset": "pipeline.beam.write_dataset",
    "batches": "trainer.reading.batches",
    "build_model": "trainer.model.build",
    "evaluate": "trainer.evaluation.evaluate",
    "export": "trainer.serving.export",
    "foreign_batches": "trainer.reading.foreign",
    "open_dataset": "trainer.data.dataset",
    "plan_epoch": "trainer.batching.plan_epoch",
    "predict": "trainer.serving.predict",
    "train": "trainer.training.train",
}

# Subcommand: (the function that runs it, the line that describes it in the help).
COMMANDS = {
    "sample": ("pipeline.main:sample", "make the raw records of a classic benchmark, and their schema"),
    "prepare": ("pipeline.main:prepare", "turn raw records into a dataset"),
    "compact": ("pipeline.main:compact", "merge the small generations of a dataset into large shards"),
    "inspect": ("pipeline.main:inspect", "show the contents of a dataset by split, label and length"),
    "plan": ("trainer.main:plan", "show the cost of each way of batching before you train"),
    "verify": ("pipeline.main:verify", "check every byte of a dataset"),
    "clean": ("pipeline.main:clean", "remove files that are too old to keep from a dataset"),
    "train": ("trainer.main:train", "train the masked stacked LSTM on a dataset"),
    "evaluate": ("trainer.main:evaluate", "print and write the metrics of a run, also by length, group and source"),
    "export": ("trainer.main:export", "export a run as a model that serves without Lengthwise"),
    "predict": ("trainer.main:predict", "predict raw records in bulk"),
}
PLANNED = ("schema",)


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the public names are in __all__")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def main(arguments: list[str] | None = None) -> int:
    """Runs one subcommand and returns its exit status.

    The status is 0 if everything worked, 2 for a wrong flag or command, and 1 for an error that the user can fix; some
    errors have a status of their own (`UserError.status`).
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    problem = _find_shadowed_package()
    if problem is not None:
        print(f"lengthwise: {problem}", file=sys.stderr)
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
    from pipeline.errors import Terminated, UserError

    try:
        return int(getattr(importlib.import_module(module), function)(arguments[1:]) or 0)
    except UserError as error:
        print(f"lengthwise {name}: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # the reader of our output closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # for example a full disk or a missing permission
        print(f"lengthwise {name}: {error.filename or 'a file'}: {error.strerror or error}.", file=sys.stderr)
        return 1
    except Terminated:
        print(f"lengthwise {name}: terminated.", file=sys.stderr)
        return 143
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
            "`lengthwise COMMAND --help` shows the flags of a command, with examples. `lengthwise --version` shows the",
            "version.",
        ]
    )


def _explain_unknown(name: str) -> str:
    import difflib

    if name in PLANNED:
        return f"the command {name!r} is planned, but version {__version__} does not have it yet."
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}."
    return f"unknown command {name!r}; {hint}"


def _find_shadowed_package() -> str | None:
    """Returns an error message if `pipeline` or `trainer` is a package of another distribution, else None.

    Other distributions install folders with these names. To import them instead of ours would fail in confusing ways.
    """
    here = pathlib.Path(__file__).resolve().parent
    for package in ("pipeline", "trainer"):
        spec = importlib.util.find_spec(package)
        origin = None if spec is None or spec.origin is None else pathlib.Path(spec.origin).resolve()
        if origin is None or origin.parent.parent != here:
            return (
                f"the package {package!r} is {origin or 'missing'}, expected it in {here}. Another distribution has a "
                "folder of that name: uninstall it, or install lengthwise into a separate environment."
            )
    return None


if __name__ == "__main__":
    sys.exit(main())
