"""Starts several `lengthwise` commands at nearly the same time: processes that share only their imports.

    python forked_jobs.py < jobs.json

stdin: a JSON list of [seconds to wait before the start, [arguments of `lengthwise`]]. stdout: a JSON list of [exit
status, text of stderr]. Imports take most of the time of a small job. This process does them once and has no other
thread when it forks.
"""

import importlib
import json
import os
import sys
import tempfile
import time

MODULES = ("pipeline.main", "pipeline.beam.prepare", "pipeline.beam.write_dataset", "pipeline.beam.runners")


def fork(arguments, stderr):
    """Runs a command in a child process, and returns its id."""
    import lengthwise

    child = os.fork()
    if child == 0:
        status = 255
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(stderr.fileno(), 2)
            status = run(lengthwise.main, arguments)
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def run(main, arguments):
    try:
        return main(arguments) or 0
    except SystemExit as end:
        return int(end.code or 0)


def main():
    for name in MODULES:
        importlib.import_module(name)
    children = []
    for seconds, arguments in json.load(sys.stdin):
        time.sleep(seconds)
        stderr = tempfile.TemporaryFile("w+")
        children.append((fork(arguments, stderr), stderr))
    results = []
    for child, stderr in children:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        stderr.seek(0)
        results.append([status, stderr.read()])
    print(json.dumps(results))


if __name__ == "__main__":
    main()
