"""Finds out what an error of a worker says, which a runner may give as the text of a traceback."""

from pipeline.errors import UserError, file_error, make_error

_OS_ERRORS = (
    "OSError",
    "PermissionError",
    "FileNotFoundError",
    "FileExistsError",
    "NotADirectoryError",
    "IsADirectoryError",
)
# Beam appends the step to the message of an exception.
_STEP = " [while running "


def user_error(error: BaseException) -> UserError | None:
    """Returns the error of a worker that the user can fix, or None if the worker raised anything else.

    A runner in this process raises the worker's exception. Other runners raise the text of its traceback. Only the
    last exception of a traceback counts: the earlier ones were handled. The error keeps its class, and so its exit
    status.
    """
    if isinstance(error, UserError):
        return type(error)(str(error).split(_STEP)[0])
    if isinstance(error, OSError):
        return file_error(str(error).split(_STEP)[0])
    # Beam puts an exception whose message it cannot extend into a RuntimeError.
    line = last_exception(str(error)).removeprefix("RuntimeError: ")
    name, _, message = line.split(_STEP)[0].partition(": ")
    module, _, kind = name.rpartition(".")
    if module == UserError.__module__:
        return make_error(kind, message)
    return file_error(message) if name in _OS_ERRORS else None


def last_exception(text: str) -> str:
    """Returns the line `type: message` of the last exception in the text of a traceback, or the first line of any
    other text.

    In a traceback, this line follows the indented lines of the frames. A line of a message that looks like an
    exception does not.
    """
    lines = text.splitlines() or [""]
    found = lines[0]
    for before, line in zip(lines, lines[1:], strict=False):
        if before.startswith("  ") and line and not line[0].isspace():
            found = line
    return found
