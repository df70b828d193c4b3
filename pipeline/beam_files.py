"""Beam's file systems: their options, and their errors in one line. Imports Beam when they are used."""

import contextlib
import errno
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.s3_client import give_to_children


def set_store_options(options: Mapping[str, Any]) -> None:
    """Gives the options of a Beam job to the file systems of this process and of those that it starts.

    Beam gives them to its file systems when it makes the pipeline, which is after a job has looked at its raw files and
    its output.

    Args:
        options: Beam's pipeline options by name. If there are none, the file systems keep theirs.
    """
    give_to_children(options)
    if options:
        from apache_beam.options.pipeline_options import PipelineOptions

        given = {name: value for name, value in options.items() if name != "runner"}
        beam_filesystems().set_options(PipelineOptions([], **given))


def beam_filesystems() -> Any:
    """Returns Beam's class `FileSystems`, which has options."""
    # Imported here because the import takes a second, and only remote paths and globs need it.
    with _warnings_not_logged():  # about extras that are not installed and not needed
        from apache_beam.io.filesystems import FileSystems

    if FileSystems._pipeline_options is None:  # without any, some file systems fail
        from apache_beam.options.pipeline_options import PipelineOptions

        FileSystems.set_options(PipelineOptions([]))
    return FileSystems


@contextlib.contextmanager
def _warnings_not_logged() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def store_errors(path: str) -> Iterator[None]:
    """Turns the error of a file system of Beam into one line about `path`, for a block that only uses this one.

    Raises:
        UserError: Beam has no file system for the path, or it lacks a package, a login or a permission.
        OSError: The store does not answer, or there is no such file.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        details = getattr(error, "exception_details", None)  # a BeamIOError has the causes by path
        cause = next(iter(details.values()), error) if isinstance(details, dict) and details else error
        if isinstance(cause, UserError):
            raise cause from None
        text = " ".join(str(cause).split()).removesuffix(".")
        if "Unable to get filesystem" in text:
            scheme = path.partition("://")[0]
            extra = {"gs": " It needs: pip install 'lengthwise[gcp]'."}.get(scheme, "")
            raise UserError(f"{path}: no file system for {scheme}:// is installed.{extra}") from None
        if isinstance(cause, OSError) and cause.errno is not None:
            raise
        status = getattr(cause, "code", None) or getattr(cause, "status_code", None)
        if status in (401, 403) or type(cause).__name__ == "DefaultCredentialsError":
            raise UserError(f"{path}: access denied: {text}. Check the credentials and the permissions.") from None
        number = errno.ENOENT if status == 404 else errno.EIO
        raise OSError(number, f"{type(cause).__name__}: {text}" if text else type(cause).__name__, path) from None
