"""Refuses raw files that a job would write itself."""

import os
import re
from collections.abc import Callable, Sequence

from pipeline.errors import UserError
from pipeline.files import absolute, is_local, join
from pipeline.raw.find_files import RawFile, RawFiles, list_patterns

# A folder of raw files is read without such folders.
_HIDDEN = re.compile("/[._]")


def refuse_output(
    patterns: RawFiles, files: Sequence[RawFile], output: str, *, is_written: Callable[[str], bool]
) -> None:
    """Raises a UserError if a job would read what it, or an earlier job, writes to its output folder.

    Args:
        patterns: The raw files as they were given to `find_files`.
        files: The files that they match.
        output: Folder of the output; it need not exist.
        is_written: Whether a job may write a file, by its path inside the folder.
    """
    inside = join(_resolve(output), "")
    for pattern in list_patterns(patterns):
        if isinstance(pattern, RawFile):
            continue
        folder = _resolve(absolute(os.fspath(pattern)))
        if os.path.isfile(folder):  # the output cannot be created there, which another error says
            continue
        if inside.startswith(join(folder, "")) and not _HIDDEN.search(inside, len(folder)):
            raise UserError(
                f"{output}: is inside {os.fspath(pattern)}, the folder of the raw files, so the next job would read it "
                "as raw records. Choose an --output outside, or give the raw files by a glob that does not match it."
            )
    folders: dict[str, str] = {}
    for file in files:
        folder, _, name = file.path.rpartition("/")
        if folder not in folders:
            folders[folder] = join(_resolve(folder), "")
        path = folders[folder] + name
        if path.startswith(inside) and is_written(path.removeprefix(inside)):
            raise UserError(
                f"{file.path}: is not a raw file, but a file of the output {output}. Choose another --output, or give "
                "the raw files by a glob that does not match it."
            )


def _resolve(path: str) -> str:
    return os.path.realpath(path) if is_local(path) else path.rstrip("/")
