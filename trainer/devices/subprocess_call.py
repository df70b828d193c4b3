"""Calls a function in a fresh Python process that sees no GPU, and gives back what it returned."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

from pipeline.errors import UserError
from trainer.devices.tensorflow_setup import LOG_LEVEL, QUIET, start_tensorflow

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def call_in_subprocess(function: str, *arguments: Any) -> Any:
    """What `function` ("module:name") returns; that and the arguments are values as JSON has them.

    Raises:
        UserError: the function raised one, or its process died.
    """
    # -P and our own root first: a stranger's `trainer` in the folder where we are called is not ours.
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(paths)}
    if environment.get(LOG_LEVEL) == QUIET:  # ours, from this process: the new one holds back a little more itself
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
    died = done.returncode < 0
    how = f"was ended by {signal.Signals(-done.returncode).name}" if died else f"ended with status {done.returncode}"
    hint = "A file that it read may be damaged, or memory was short." if died else "What is above says why."
    raise UserError(f"A process of its own, which was to call {function}, {how}. {hint}")


def _answer(function: str, arguments: list[Any]) -> dict[str, Any]:
    start_tensorflow()
    import tensorflow as tf

    module, name = function.split(":")
    try:
        return {"result": getattr(importlib.import_module(module), name)(*arguments)}
    except UserError as error:
        return {"error": str(error)}
    except OSError as error:  # a full disk, a missing permission
        return {"error": f"{error.filename or 'A file'}: {error.strerror or error}."}
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        return {"error": f"Out of memory, or of disk: {(str(error) or 'no more to be had').splitlines()[0]}."}


def _main() -> None:
    # The pipe is for the answer; what anything else prints goes to stderr.
    with os.fdopen(os.dup(1), "w") as pipe:
        os.dup2(2, 1)
        function, arguments = sys.argv[1:]
        json.dump(_answer(function, json.loads(arguments)), pipe)


if __name__ == "__main__":
    try:
        _main()
    except KeyboardInterrupt:  # told by the process that called
        sys.exit(130)
