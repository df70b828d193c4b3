"""Calls a function in a new Python process without GPUs, and returns its result."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

from pipeline.errors import UserError
from trainer.devices.tensorflow_errors import describe_exhausted
from trainer.devices.tensorflow_setup import LOG_LEVEL, QUIET, start_tensorflow

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def call_in_subprocess(function: str, *arguments: Any) -> Any:
    """Returns the result of a function that runs in a new process.

    Args:
        function: "module:name".
        arguments: Arguments of the function. These and its result must be serializable as JSON.

    Raises:
        UserError: The function raised a UserError, or the process ended without a result.
    """
    # With -P and our root first, Python does not import another `trainer` from the current folder.
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(paths)}
    # If this process has set the log level, the new one must not inherit it: it would then not buffer the messages
    # that TensorFlow writes before its logging is set up.
    if environment.get(LOG_LEVEL) == QUIET:
        del environment[LOG_LEVEL]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "trainer.devices.subprocess_call", function, json.dumps(arguments)],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    if done.returncode == 0:
        answer = json.loads(done.stdout)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer["result"]
    if done.returncode < 0:
        end = f"was killed by {signal.Signals(-done.returncode).name}"
        hint = "A file that it read may be damaged, or memory may have run out."
    else:
        end, hint = f"ended with status {done.returncode}", "Its error is shown above."
    raise UserError(f"The subprocess that called {function} {end}. {hint}")


def _call(function: str, arguments: list[Any]) -> dict[str, Any]:
    """Returns {"result": …}, or {"error": message} for an error that the user can fix."""
    start_tensorflow()
    module, name = function.split(":")
    try:
        return {"result": getattr(importlib.import_module(module), name)(*arguments)}
    except UserError as error:
        return {"error": str(error)}
    except OSError as error:  # for example a full disk or a missing permission
        return {"error": f"{error.filename or 'A file'}: {error.strerror or error}."}
    except Exception as error:
        exhausted = describe_exhausted(error)
        if exhausted is None:
            raise
        return {"error": exhausted}


def _main() -> None:
    # The pipe transports the result only, so everything else that is printed goes to stderr.
    with os.fdopen(os.dup(1), "w") as pipe:
        os.dup2(2, 1)
        function, arguments = sys.argv[1:]
        json.dump(_call(function, json.loads(arguments)), pipe)


if __name__ == "__main__":
    try:
        _main()
    except KeyboardInterrupt:  # the calling process reports it
        sys.exit(130)
