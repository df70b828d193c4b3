"""Copies a run from S3, where TensorFlow cannot read checkpoints, to a temporary local folder."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from pipeline import s3
from pipeline.errors import UserError
from pipeline.files import join, list_files, open_read
from trainer.runs.contents import is_needed_to_read


@contextlib.contextmanager
def local_copy(run: str) -> Iterator[str]:
    """Yields a folder from which TensorFlow can read a run: its own, or inside the block a copy of a run on S3.

    Errors of the block name the run, and not the copy.

    Raises:
        UserError: There are no files in the folder of the run, or they cannot be read.
    """
    if not s3.is_s3(run):
        yield run
        return
    with tempfile.TemporaryDirectory(prefix="lengthwise-run-") as folder:
        inside = [path.removeprefix(join(run, "")) for path in list_files(run)]
        if not inside:
            raise UserError(
                f"{run}: not a run: there is no such folder. Copy one there: aws s3 cp --recursive RUN {run}"
            )
        for name in filter(is_needed_to_read, inside):
            copy = os.path.join(folder, name)
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            with open_read(join(run, name)) as stored, open(copy, "wb") as file:
                shutil.copyfileobj(stored, file, 2**20)
        try:
            yield folder
        except UserError as error:
            raise type(error)(str(error).replace(folder, run)) from None
