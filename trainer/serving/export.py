"""Publishes a run as a model that serves anywhere, once one fresh process has made it and another has proved it."""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from typing import Any

from pipeline import progress
from pipeline.errors import UserError
from pipeline.files import is_local
from trainer.devices.subprocess_call import call_in_subprocess
from trainer.runs.contents import refuse_foreign_files

ABOUT = "export.json"
# What an export holds at its top, all that --overwrite may remove.
_OWN = {ABOUT, "manifest.json", "model.keras", "saved_model", "vocabulary"}
_MAKE, _PROVE = "trainer.serving.saved_model:make", "trainer.serving.export_check:prove"


def export(
    run: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    checkpoint: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes OUTPUT/saved_model, OUTPUT/model.keras, the run's manifest and export.json; gives what the last says,
    with `differences`: how far each way of asking was from the model's own answers.

    Args:
        checkpoint: `best` by validation loss, or `last`; by default the best where there is one.
        overwrite: Replace an export that is there.

    Raises:
        UserError: no run, one that is not finished or holds what it did not write, an output that is there; or the
            export does not answer as the run's model. Nothing is created then, and nothing replaced.
    """
    run, output = os.fspath(run).rstrip("/") or "/", os.fspath(output)
    if not is_local(output):
        raise UserError(f"{output}: an export is made on a local disk. Choose a local --output, and copy it there.")
    output = os.path.abspath(output)
    _check_output(run, output, overwrite=overwrite)
    refuse_foreign_files(run)
    _check_finished(run)
    with _folder_beside(output) as folder:
        made, golden = os.path.join(folder, "export"), os.path.join(folder, "golden.npz")
        _say("Making the model, in a process of its own on the CPU.")
        with progress.report("making"):
            call_in_subprocess(_MAKE, run, made, golden, checkpoint)
        _say("Reading it back in another, and comparing it with golden predictions.")
        with progress.report("proving"):
            differences = call_in_subprocess(_PROVE, made, golden)
        with open(os.path.join(made, ABOUT), "rb") as file:
            about = json.load(file)
        _publish(made, output, overwrite=overwrite)
    return {**about, "differences": differences}


def summarize(about: dict[str, Any]) -> str:
    """What `export` gives, for people."""

    def show(name: str, tensor: dict[str, Any]) -> str:
        return f"{name} {tensor['dtype']}[{', '.join(map(str, tensor['shape']))}]"

    largest = max(about["differences"].values())
    lines = [
        f"{about['checkpoint']} checkpoint, epoch {about['epoch']}; at most {largest:.1g} off the model's own answers",
        "  serving_default  " + ", ".join(show(entry["name"], entry) for entry in about["inputs"].values()),
        "  serialized       examples string[batch]",
        "  both give        " + show(about["output"]["name"], about["output"]),
        f"weights sha256 {about['weights_sha256']}",
    ]
    return "\n".join(lines)


def _check_output(run: str, output: str, *, overwrite: bool) -> None:
    real_run = os.path.realpath(run)
    if is_local(run) and os.path.commonpath([real_run, os.path.realpath(output)]) == real_run:
        raise UserError(f"{output}: is in the folder of the run. Choose an --output outside of {run}.")
    if not os.path.lexists(output):
        return
    if os.path.islink(output) or not os.path.isdir(output):
        raise UserError(f"{output}: a file or a link is in the way, expected nothing. Choose another --output.")
    if not overwrite:
        raise UserError(f"{output}: is there already. Choose another --output, or replace an export with --overwrite.")
    strange = sorted(set(os.listdir(output)) - _OWN)
    if strange:
        raise UserError(f"{output}: is no export: it holds {strange[0]!r}. Choose another --output.")


def _check_finished(run: str) -> None:
    """Refuses a local run that is not finished before a process is started for it, which looks again."""
    if is_local(run) and os.path.exists(f"{run}/config.yaml") and not os.path.exists(f"{run}/result.json"):
        raise UserError(unfinished(run))


def unfinished(run: str) -> str:
    return (
        f"{run}: is not finished. Go on with the command that began it (`lengthwise train … --output {run}`), then "
        "export it."
    )


@contextlib.contextmanager
def _folder_beside(output: str) -> Iterator[str]:
    """A new folder beside `output`, gone when the block ends; so is what a killed process left there."""
    missing = _missing_parents(output)
    os.makedirs(os.path.dirname(output), exist_ok=True)
    for left in glob.glob(f"{glob.escape(output)}.*.tmp"):
        with _locked(left) as is_free:
            if is_free:
                shutil.rmtree(left, ignore_errors=True)
    folder = f"{output}.{uuid.uuid4().hex}.tmp"
    os.mkdir(folder)
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # the export is in it
                os.rmdir(parent)


def _missing_parents(path: str) -> list[str]:
    parent = os.path.dirname(path)
    return [] if os.path.lexists(parent) else [parent, *_missing_parents(parent)]


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[bool]:
    """Holds the folder as long as this process lives; False where another does."""
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
    """Puts the export in its place at once; what was there goes into the folder where it was made, which goes too."""
    for root, _, names in os.walk(made):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())  # a name that survives a power cut must not point to lost bytes
    before = f"{made}.before"
    if overwrite and os.path.lexists(output):
        os.rename(output, before)
    try:
        os.rename(made, output)
    except OSError as error:
        if os.path.lexists(before):
            os.rename(before, output)
        raise UserError(f"{output}: the export cannot be put there: {error.strerror}.") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
