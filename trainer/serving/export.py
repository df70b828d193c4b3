"""Exports a run as a model that serves anywhere: one new process makes it, and another one checks it."""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from typing import Any

from pipeline import progress
from pipeline.errors import UserError
from pipeline.files import is_local, join, list_files, open_read, remove, replace
from trainer.devices.subprocess_call import call_in_subprocess
from trainer.runs.contents import refuse_foreign_files, unfinished_error
from trainer.runs.local_copy import local_copy

EXPORT_JSON = "export.json"
# The files and folders at the top of an export. --overwrite removes no others.
_CONTENTS = {EXPORT_JSON, "manifest.json", "statistics.json", "model.keras", "saved_model", "vocabulary"}
# The functions for the two processes, for `call_in_subprocess`.
_MAKE, _CHECK = "trainer.serving.saved_model:make", "trainer.serving.export_check:check"


def export(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    checkpoint: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes OUTPUT/saved_model, OUTPUT/model.keras and OUTPUT/export.json.

    The SavedModel has the signatures `serving_default` for features, `serialized` for Examples and, unless the model is
    bidirectional, `streaming` for the next steps of records and a state (see `make_signatures`).

    OUTPUT/manifest.json describes the dataset of the run. OUTPUT/statistics.json has the statistics of the run, and
    lists the files of its vocabularies in OUTPUT/vocabulary.

    Args:
        run: Folder of the run.
        output: Folder of the export, on a local disk, on S3 or on any file system that Beam supports.
        checkpoint: `best` by validation loss, or `last`. By default the best one, or the last one if the run has no
            best one.
        overwrite: Replaces an existing export. Without it, an existing export is an error.

    Returns:
        The content of export.json, and under `differences` the largest difference between the outputs of the export and
        those of the run's model, for each way of calling the export.

    Raises:
        UserError: There is no run, it is not finished, or it contains files that no run writes; the output exists; or
            the outputs of the export are not those of the run's model. Nothing is created or replaced then.
    """
    run, output = os.fspath(run).rstrip("/") or "/", os.fspath(output)
    if not is_local(output):
        return _export_to_store(run, output.rstrip("/"), checkpoint=checkpoint, overwrite=overwrite)
    output = os.path.abspath(output)
    _check_output(run, output, overwrite=overwrite)
    refuse_foreign_files(run)
    _check_finished(run)
    with local_copy(run) as copy, _temporary_folder(output) as folder:
        made, golden = os.path.join(folder, "export"), os.path.join(folder, "golden.npz")
        _print_step("Making the model, in a separate process on the CPU.")
        with progress.report("export"):
            call_in_subprocess(_MAKE, copy, made, golden, checkpoint)
        _print_step("Checking it, in another process that compares its outputs with those of the run's model.")
        with progress.report("export"):
            differences = call_in_subprocess(_CHECK, made, golden)
        with open(os.path.join(made, EXPORT_JSON), "rb") as file:
            description = json.load(file)
        _publish(made, output, overwrite=overwrite)
    return {**description, "differences": differences}


def _export_to_store(run: str, output: str, *, checkpoint: str | None, overwrite: bool) -> dict[str, Any]:
    """Makes an export on the local disk, and copies it to an object store.

    A store cannot rename a folder. So export.json is removed first and comes back last: an export with it is complete.
    """
    inside = join(output, "")
    if join(run, "") == inside or inside.startswith(join(run, "")):
        raise UserError(f"{output}: is in the folder of the run. Choose an --output outside of {run}.")
    before = [path.removeprefix(inside) for path in list_files(output)]
    if before and not overwrite:
        raise UserError(
            f"{output}: exists already. Choose another --output, or replace an existing export with --overwrite."
        )
    foreign = [name for name in before if name.split("/")[0] not in _CONTENTS]
    if foreign:
        raise UserError(f"{output}: is not an export: it contains {foreign[0]!r}. Choose another --output.")
    with tempfile.TemporaryDirectory(prefix="lengthwise-export-") as folder:
        made = os.path.join(folder, "export")
        exported = export(run, made, checkpoint=checkpoint)
        names = sorted(path.removeprefix(join(made, "")) for path in list_files(made))
        remove([join(output, name) for name in before if name == EXPORT_JSON or name not in names])
        for name in sorted(names, key=lambda name: name == EXPORT_JSON):
            with open_read(join(made, name)) as file, replace(join(output, name)) as target:
                shutil.copyfileobj(file, target)
    return exported


def summarize(exported: dict[str, Any]) -> str:
    """Returns what `export` returned as a few lines of text."""

    def show(name: str, tensor: dict[str, Any]) -> str:
        return f"{name} {tensor['dtype']}[{', '.join(map(str, tensor['shape']))}]"

    largest = max(exported["differences"].values())
    lines = [
        f"{exported['checkpoint']} checkpoint, epoch {exported['epoch']}; outputs differ by at most {largest:.1g} from "
        "those of the run's model",
        "  serving_default  " + ", ".join(show(entry["name"], entry) for entry in exported["inputs"].values()),
        "  serialized       examples string[batch]",
        "  both return      " + show(exported["output"]["name"], exported["output"]),
        "  streaming        " + _summarize_streaming(exported["streaming"]),
        f"weights sha256 {exported['weights_sha256']}",
    ]
    return "\n".join(lines)


def _summarize_streaming(streaming: dict[str, Any]) -> str:
    if "unavailable" in streaming:
        return "none: a bidirectional model does not read step by step"
    return (
        f"as serving_default for the next steps of a record; takes and returns {len(streaming['state'])} state tensors"
    )


def _check_output(run: str, output: str, *, overwrite: bool) -> None:
    real_run = os.path.realpath(run)
    if is_local(run) and os.path.commonpath([real_run, os.path.realpath(output)]) == real_run:
        raise UserError(f"{output}: is in the folder of the run. Choose an --output outside of {run}.")
    if not os.path.lexists(output):
        return
    if os.path.islink(output) or not os.path.isdir(output):
        raise UserError(f"{output}: a file or a link is in the way, expected nothing. Choose another --output.")
    if not overwrite:
        raise UserError(
            f"{output}: exists already. Choose another --output, or replace an existing export with --overwrite."
        )
    foreign = sorted(set(os.listdir(output)) - _CONTENTS)
    if foreign:
        raise UserError(f"{output}: is not an export: it contains {foreign[0]!r}. Choose another --output.")


def _check_finished(run: str) -> None:
    """Raises a UserError if a local run is not finished, before the slow start of the process that checks this too."""
    if is_local(run) and os.path.exists(f"{run}/config.yaml") and not os.path.exists(f"{run}/result.json"):
        raise unfinished_error(run)


@contextlib.contextmanager
def _temporary_folder(output: str) -> Iterator[str]:
    """Creates a temporary folder beside `output`, and removes it when the block ends.

    Removes the temporary folders of killed processes too.
    """
    missing = _missing_parents(output)
    os.makedirs(os.path.dirname(output), exist_ok=True)
    for left in glob.glob(f"{glob.escape(output)}.*.tmp"):
        with _locked(left) as acquired:
            if acquired:
                shutil.rmtree(left, ignore_errors=True)
    folder = f"{output}.{uuid.uuid4().hex}.tmp"
    os.mkdir(folder)
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # not empty: the export was published
                os.rmdir(parent)


def _missing_parents(path: str) -> list[str]:
    parent = os.path.dirname(path)
    return [] if os.path.lexists(parent) else [parent, *_missing_parents(parent)]


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[bool]:
    """Locks a folder during the block and yields True, or yields False if a living process has locked it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
    finally:
        os.close(descriptor)


def _publish(made: str, output: str, *, overwrite: bool) -> None:
    """Moves a finished export to `output` in one step.

    An older export moves into the temporary folder, which is removed afterwards.
    """
    for root, _, names in os.walk(made):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())  # after a power failure, a file with a name must also have its content
    before = f"{made}.before"
    if overwrite and os.path.lexists(output):
        os.rename(output, before)
    try:
        os.rename(made, output)
    except OSError as error:
        if os.path.lexists(before):
            os.rename(before, output)
        raise UserError(f"{output}: the export could not be moved there: {error.strerror}.") from None


def _print_step(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
