"""Runs the job that turns raw files into a dataset: files -> lines -> sequences -> shards -> manifest."""

import dataclasses
import logging
import re
import sys
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipeline import progress
from pipeline.errors import UserError
from pipeline.lines import ReadLines, find_files
from pipeline.manifest import FILE_NAME, Manifest
from pipeline.publish import check_output, new_generation
from pipeline.schema import Schema
from pipeline.storage import absolute, join, read_bytes, remove_folder
from pipeline.transforms import DEFAULT_MAX_REJECTED, DEFAULT_NUM_SHARDS, ParseRecords, WriteDataset

# Names under which people ask for the runner of this machine. Beam's own `DirectRunner` is a switch that downloads a
# program before anything else; the runner that it falls back to is the one we take at once.
LOCAL_RUNNERS = (None, "DirectRunner", "FnApiRunner", "apache_beam.runners.direct.DirectRunner")

_OS_ERRORS = "OSError|PermissionError|FileNotFoundError|FileExistsError|NotADirectoryError|IsADirectoryError"


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """What `lengthwise prepare` is told; WriteDataset says what each means."""

    raw: tuple[str, ...]
    schema: str
    output: str
    num_shards: int = DEFAULT_NUM_SHARDS
    seed: int = 0
    max_rejected: float = DEFAULT_MAX_REJECTED
    overwrite: bool = False
    keep_raw: bool = False


def prepare(options: PrepareOptions, beam_options: dict[str, Any] | None = None) -> Manifest:
    """Makes a dataset of raw files and returns its manifest.

    Args:
        beam_options: Beam's pipeline options by name, `runner` among them.

    Raises:
        UserError: what was wrong; the dataset that was there before is still there then.
    """
    schema = Schema.read(options.schema)
    output = absolute(options.output)
    check_output(output, overwrite=options.overwrite)
    files = find_files([absolute(path) for path in options.raw])
    generation = new_generation()
    pipeline = _pipeline(beam_options or {})
    read = pipeline | "ReadLines" >> ReadLines(files)
    parsed = read["lines"] | "ParseRecords" >> ParseRecords(schema, keep_raw=options.keep_raw)
    _ = {**parsed, "chunks": read["chunks"]} | "WriteDataset" >> WriteDataset(
        schema,
        output,
        num_shards=options.num_shards,
        seed=options.seed,
        max_rejected=options.max_rejected,
        overwrite=options.overwrite,
        generation=generation,
    )
    try:
        with progress.shown("prepare", total_bytes=sum(file.num_bytes for file in files)), _quiet():
            state = pipeline.run().wait_until_finish()
    except BaseException as error:
        if _published(output, generation):
            raise UserError(f"{output}: was published, but older files there could not be removed: {error}") from None
        remove_folder(join(output, "data", generation))
        told = user_error(error)
        if told is not None:
            raise told from None
        raise
    # Some runners only return how it ended, and the manifest there may be an older one.
    if not _published(output, generation):
        raise UserError(f"{output}: the runner ended as {state}, but no dataset was published. See the runner's log.")
    return Manifest.parse(read_bytes(join(output, FILE_NAME)), origin=join(output, FILE_NAME))


def user_error(error: BaseException) -> UserError | None:
    """What a worker raised for the user, found in what the runner made of it; None if it was something else.

    A runner hands on a worker's exception as the text of its traceback, whose end names the exception.
    """
    if isinstance(error, UserError):
        return UserError(re.sub(r" \[while running .*", "", str(error), flags=re.DOTALL))
    found = re.findall(r"^pipeline\.errors\.UserError: (.*?)(?: \[while running .*)?$", str(error), re.MULTILINE)
    if found:
        return UserError(found[-1])
    found = re.findall(rf"^(?:{_OS_ERRORS}): (.*?)(?: \[while running .*)?$", str(error), re.MULTILINE)
    if found or isinstance(error, OSError):
        return UserError(
            f"A file could not be read or written: {found[-1] if found else error}. Nothing was published."
        )
    return None


def _published(output: str, generation: str) -> bool:
    try:
        path = join(output, FILE_NAME)
        return generation in Manifest.parse(read_bytes(path), origin=path).generations
    except UserError:
        return False


def _choose_runner(beam_options: dict[str, Any]) -> Any:
    name = beam_options.get("runner")
    if name in LOCAL_RUNNERS:
        where = "in processes of this machine" if "direct_running_mode" in beam_options else "in this process"
        print(f"Running {where} (FnApiRunner).", file=sys.stderr)
        return FnApiRunner()
    return name


def _pipeline(beam_options: dict[str, Any]) -> beam.Pipeline:
    options = PipelineOptions([], **{name: value for name, value in beam_options.items() if name != "runner"})
    try:
        return beam.Pipeline(runner=_choose_runner(beam_options), options=options)
    except (ValueError, ImportError, AttributeError) as error:  # no such runner, or its own options are missing
        raise UserError(f"--runner {beam_options.get('runner')}: {' '.join(str(error).split())}") from None


class _quiet:
    """Keeps the runner's own log of a failing bundle off the terminal: the one line that is told says it."""

    def __enter__(self) -> None:
        self._previous = logging.root.manager.disable
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._previous)
