"""Finds in the folder of a run what no run of ours writes, whatever is in it: a model of someone else's, a link."""

import os
import re
import stat
from collections.abc import Iterator

from pipeline.errors import UserError
from pipeline.files import is_local

# What a run writes, by its path in the folder, what a kill may leave of it included.
_FILES = re.compile(
    r"lock|(config\.yaml|manifest\.json|metrics\.jsonl|result\.json|environment\.json|failed-update\.json"
    r"|evaluation-[A-Za-z]\w*\.json|vocabulary/[^/]+/[^/]+\.txt)(\.tmp)?"
    r"|checkpoints/(last|best)/checkpoint(\.tmp[0-9a-f]+)?"
    r"|checkpoints/(last|best)/ckpt-\d+\.(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?"
    r"|checkpoints/(last|best)/ckpt-\d+_temp/part-\d{5}-of-\d{5}\.(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?"
    r"|logs/(train|validation)/events\.out\.tfevents\.[\w.-]+",
    re.ASCII,
)
_FOLDERS = re.compile(
    r"checkpoints(/(last|best)(/ckpt-\d+_temp)?)?|logs(/(train|validation))?|vocabulary(/[^/]+)?", re.ASCII
)
_MOST_LISTED = 5


def refuse_foreign_files(run: str) -> None:
    """Raises a UserError that lists what lies in the folder of a run and is not a run's.

    An export hands the folder's content on, so it is made of none that anyone may have put something into.
    """
    if is_local(run) and not os.path.isdir(run):
        raise UserError(f"{run}: not a run: there is no such folder. Make one with `lengthwise train`.")
    found = sorted(_find_local(run) if is_local(run) else _find_remote(run))
    if found:
        listed = ", ".join(found[:_MOST_LISTED])
        more = f" and {len(found) - _MOST_LISTED:,} more" if len(found) > _MOST_LISTED else ""
        raise UserError(
            f"{run}: holds what no run of ours writes: {listed}{more}. Move it elsewhere if you know what it is; "
            "otherwise train anew into another folder."
        )


def _find_local(run: str, inner: str = "") -> Iterator[str]:
    with os.scandir(os.path.join(run, inner)) as entries:
        for entry in entries:
            path = f"{inner}/{entry.name}" if inner else entry.name
            if entry.is_symlink():
                yield f"{_show(path)} (a link)"
            elif entry.is_dir():
                # What lies in a folder that is no run's need not be told too.
                yield from _find_local(run, path) if _FOLDERS.fullmatch(path) else [f"{_show(path)}/"]
            elif not stat.S_ISREG(entry.stat().st_mode):
                yield f"{_show(path)} (no file)"
            elif not _FILES.fullmatch(path):
                yield _show(path)


def _find_remote(run: str) -> Iterator[str]:
    import tensorflow as tf

    for folder, _, names in tf.io.gfile.walk(run):
        inner = folder.removeprefix(run).strip("/")
        for name in filter(None, names):  # an object store may have one for the folder itself
            path = f"{inner}/{name}" if inner else name
            if not _FILES.fullmatch(path):
                yield _show(path)


def _show(path: str) -> str:
    return path if path.isprintable() else ascii(path)
