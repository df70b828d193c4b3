"""The files of a run's folder: their names, and which of those in a folder belong to a run.

This module does not import TensorFlow, because `lengthwise export` checks a run before it starts TensorFlow.
"""

import os
import re
import stat
from collections.abc import Iterable, Iterator

from pipeline import s3
from pipeline.errors import UserError
from pipeline.files import is_local, join, list_files
from pipeline.format.manifest import FILE_NAME as MANIFEST
from trainer.runs.lock import LOCK

CONFIG, METRICS, RESULT = "config.yaml", "metrics.jsonl", "result.json"
CHECKPOINTS, LOGS, VOCABULARY = "checkpoints", "logs", "vocabulary"
# The folder of the validation split of a run with `follow`; inside, its files have the same paths as in the dataset.
VALIDATION_COPY = "validation"
STATISTICS, ENVIRONMENT, FAILED_UPDATE = "statistics.json", "environment.json", "failed-update.json"

# The parts of metrics.jsonl on an object store.
METRICS_PART = r"metrics-\d{5}\.jsonl"

# A kill can leave a temporary file next to a file that `Run.write` replaces.
_TMP = r"(\.tmp)?"
# TensorFlow's temporary files are listed too.
_CHECKPOINT_DATA = r"(index|data-\d{5}-of-\d{5})(\.tempstate\d+)?"
# Every file that a run writes, as regular expressions of its path. `Run.clear` removes them in this order: as long as
# the configuration is there, the folder is a run, which can be cleared again.
_CLEARED = (
    rf"result\.json{_TMP}",
    r"checkpoints/(last|best)/checkpoint(\.tmp[0-9a-f]+)?",
    rf"checkpoints/(last|best)/ckpt-\d+\.{_CHECKPOINT_DATA}",
    rf"checkpoints/(last|best)/ckpt-\d+_temp/part-\d{{5}}-of-\d{{5}}\.{_CHECKPOINT_DATA}",
    r"logs/(train|validation)/events\.out\.tfevents\.[\w.-]+",
    rf"environment\.json{_TMP}",
    rf"failed-update\.json{_TMP}",
    rf"evaluation-[A-Za-z]\w*\.json{_TMP}",
    METRICS_PART,
    rf"metrics\.jsonl{_TMP}",
    rf"vocabulary/.+/.+\.txt{_TMP}",
    r"validation/data/[\w-]+/validation-\d{5}-of-\d{5}\.(tfrecord|index\.parquet)",
    rf"statistics\.json{_TMP}",
    rf"manifest\.json{_TMP}",
    rf"config\.yaml{_TMP}",
)
_PATTERNS = [pattern.split("/") for pattern in (LOCK, *_CLEARED)]
# What `Run.create` writes until the configuration is there.
_CREATED_FIRST = {LOCK, VOCABULARY, VALIDATION_COPY, STATISTICS, MANIFEST, METRICS}
_CREATED_FIRST |= {f"{name}.tmp" for name in (STATISTICS, MANIFEST, METRICS, CONFIG)}
_MAX_LISTED = 5


def metrics_part(number: int) -> str:
    """Returns the name of a part of metrics.jsonl; they are numbered from 1."""
    return f"metrics-{number:05}.jsonl"


def is_partly_created(names: Iterable[str]) -> bool:
    """Returns whether all names at the top of a folder may come from a `Run.create` that was interrupted."""
    return _CREATED_FIRST.issuperset(names)


def names_to_clear(names: Iterable[str]) -> list[str]:
    """Returns the names at the top of a run's folder that `Run.clear` removes, in the order of removal."""
    found = []
    for pattern in dict.fromkeys(pattern.split("/")[0] for pattern in _CLEARED):
        matching = [name for name in names if _matches(pattern, name)]
        found += sorted(matching, key=lambda name: not name.endswith(".tmp"))
    return found


def refuse_unwritable_store(run: str) -> None:
    """Raises a UserError if the folder of a run is on S3, where TensorFlow can neither write nor read checkpoints."""
    if s3.is_s3(run):
        raise UserError(
            f"{run}: a run cannot be on s3://, since TensorFlow writes no checkpoints there. Train into a local folder "
            f"and copy it afterwards: aws s3 cp --recursive RUN {run}"
        )


def refuse_foreign_files(run: str) -> None:
    """Checks that a run's folder holds only files that a run writes.

    An export copies content of the folder, so nobody must have been able to add a file of another origin, for example
    a model or a link.

    Raises:
        UserError: There is no such folder, or it holds other files; the message lists the first ones.
    """
    if is_local(run) and not os.path.isdir(run):
        raise UserError(f"{run}: not a run: there is no such folder. Make one with `lengthwise train`.")
    found = sorted(_find_foreign_local(run) if is_local(run) else _find_foreign_remote(run))
    if found:
        listed = ", ".join(found[:_MAX_LISTED])
        more = f" and {len(found) - _MAX_LISTED:,} more" if len(found) > _MAX_LISTED else ""
        raise UserError(
            f"{run}: holds files that no run writes: {listed}{more}. Move them elsewhere if you know what they are; "
            "otherwise train again into another folder."
        )


def is_needed_to_read(path: str) -> bool:
    """Returns whether a file of a run is needed to load its model: not logs, and not the copy of a split."""
    return _belongs(path) and not path.startswith((f"{LOGS}/", f"{VALIDATION_COPY}/"))


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(pattern, name, re.ASCII | re.DOTALL) is not None


def _belongs(path: str, *, is_folder: bool = False) -> bool:
    """Returns whether a run writes this file, or files in this folder."""
    names = path.split("/")
    return any(
        (len(names) < len(patterns) if is_folder else len(names) == len(patterns))
        and all(map(_matches, patterns, names))
        for patterns in _PATTERNS
    )


def _find_foreign_local(run: str, inner: str = "") -> Iterator[str]:
    with os.scandir(os.path.join(run, inner)) as entries:
        for entry in entries:
            path = f"{inner}/{entry.name}" if inner else entry.name
            if entry.is_symlink():
                yield f"{_printable(path)} (a link)"
            elif entry.is_dir():
                # A foreign folder is listed without its content.
                is_ours = _belongs(path, is_folder=True)
                yield from _find_foreign_local(run, path) if is_ours else [f"{_printable(path)}/"]
            elif not stat.S_ISREG(entry.stat().st_mode):
                yield f"{_printable(path)} (not a regular file)"
            elif not _belongs(path):
                yield _printable(path)


def _find_foreign_remote(run: str) -> Iterator[str]:
    if s3.is_s3(run):
        inside = (path.removeprefix(join(run, "")) for path in list_files(run))
        yield from (_printable(path) for path in inside if not _belongs(path))
        return
    import tensorflow as tf

    for folder, _, names in tf.io.gfile.walk(run):
        inner = folder.removeprefix(run).strip("/")
        for name in filter(None, names):  # an object store may list the folder itself under an empty name
            path = f"{inner}/{name}" if inner else name
            if not _belongs(path):
                yield _printable(path)


def _printable(path: str) -> str:
    return path if path.isprintable() else ascii(path)


def unfinished_error(run: str) -> UserError:
    """Returns the error that a run is not finished."""
    return UserError(
        f"{run}: is not finished. Resume it with the command that started it (`lengthwise train … --output {run}`), "
        "then export it."
    )
