"""Predicts raw records in bulk on Beam: lines -> sequences -> lines of predictions, in batches of similar length.

Beam fuses all steps from the lines of a file to the written parts into one stage, so a record stays in memory only
until its batch is predicted. Only the rejects, and a short description of each part, are gathered.
"""

import collections
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
from apache_beam.utils.shared import Shared

from pipeline.beam.fenced import publish_if_wanted, while_wanted
from pipeline.beam.local_paths import warn_of_local_paths
from pipeline.beam.options import runs_on_engine
from pipeline.beam.outputs import copy_output, in_global_window
from pipeline.beam.parse_records import ParseRecords
from pipeline.beam.read_lines import ReadLines
from pipeline.beam.run_job import run_job
from pipeline.beam.runners import make_pipeline
from pipeline.beam.shuffle import choose_shuffle
from pipeline.beam.sort_rows import SortRows
from pipeline.beam.write_lists import (
    CHUNK_LINES,
    REJECT_LINES,
    WriteLists,
    WriteListsByKey,
    WrittenLists,
    pack_chunks,
    pack_rejects,
)
from pipeline.beam_files import set_store_options
from pipeline.errors import UserError
from pipeline.files import absolute, join
from pipeline.raw.early_stop import stop_early
from pipeline.raw.file_kind import check_kinds
from pipeline.raw.find_files import describe_left_out, find_all_files
from pipeline.raw.records import LIMITS, Limits
from pipeline.raw.refuse_output import refuse_output
from pipeline.raw.rejects import Origin
from pipeline.schema.record import ParsedRecord
from pipeline.schema.schema import Schema
from pipeline.shuffle.chunk_runs import ChunkBuffer
from pipeline.shuffle.reject_runs import RejectBuffer
from pipeline.writing.fence import is_wanted, remove_if_unwanted
from pipeline.writing.job import JobFiles
from pipeline.writing.paths import new_generation
from pipeline.writing.publish import DEFAULT_MAX_REJECTED
from trainer.batching.cut import check_limits
from trainer.batching.stateful import chunk_options
from trainer.data.target import Target
from trainer.devices.large_blocks import return_large_blocks
from trainer.devices.tensorflow_errors import explain_tensorflow_errors
from trainer.devices.tensorflow_setup import start_tensorflow
from trainer.model.chunks import check_forward
from trainer.serving.chunk_predictor import ChunkPredictor
from trainer.serving.duplicate_ids import describe_duplicates
from trainer.serving.predictions import BatchOutputs, PartWriter
from trainer.serving.predictor import BatchBuffer, Predictor, choose_batch_steps, load_predictor
from trainer.serving.publish import Part, PredictionsPublisher, is_of_predictions, read_published
from trainer.serving.step_lines import StepLines

# Batches that may wait for the model or for being written: about those of one full buffer of records.
_PENDING_BATCHES = 64


def predict(
    run: str | os.PathLike[str],
    raw: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    max_rejected: float = DEFAULT_MAX_REJECTED,
    keep_raw: bool = False,
    max_record_bytes: int = LIMITS.record_bytes,
    max_record_steps: int = LIMITS.record_steps,
    overwrite: bool = False,
    checkpoint: str | None = None,
    batch_steps: int | None = None,
    chunk_steps: int | None = None,
    beam_options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a prediction for each record of raw files, and returns the content of predictions.json.

    The records need no label. Each of them gets one line in OUTPUT/part-*.jsonl: its id, and for each class the
    probability, or for a regression the value. The order of the lines is not defined. Several records may
    have the same id: unlike `prepare`, `predict` keeps them all. A line on stderr counts them, and so does the summary
    under `duplicate_ids`.

    Args:
        run: Folder of the run.
        raw: Files, globs or folders with JSON Lines, on any file system that Beam knows.
        output: Folder of the predictions.
        max_rejected: Largest share of rejected records, from 0 to 1. Above it nothing is published.
        keep_raw: Whether rejects contain the raw record.
        max_record_bytes: Largest raw record in bytes. A larger record is rejected as `too_large`.
        max_record_steps: Largest number of steps of a record. A longer record is rejected as `too_large`.
        overwrite: Replaces existing predictions. Without it, existing predictions are an error.
        checkpoint: `best` or `last`. By default the best checkpoint, or the last one if the run has no best one.
        batch_steps: Budget of padded steps of a batch. By default it depends on the size of a step.
        chunk_steps: Reads records in chunks of this number of steps and carries the state from chunk to chunk, so that
            the outputs per step and the activations of a whole record are never in memory. The predictions are the
            same. By default, the `chunk_steps` of a run that was trained with batching `stateful`; other runs read
            whole records.
        beam_options: Pipeline options of Beam by name, including `runner`.

    Raises:
        UserError: The run, the records or the output cannot be used, or `chunk_steps` is given and the model is
            bidirectional. Existing predictions are kept then.
        ValueError: chunk_steps is below 1.
    """
    check_limits(chunk_steps=chunk_steps)
    beam_options = beam_options or {}
    set_store_options(beam_options)
    _start_tensorflow()
    named = [raw] if isinstance(raw, str | os.PathLike) else raw
    paths = {"RUN": [os.fspath(run)], "RAW": [os.fspath(path) for path in named], "--output": [os.fspath(output)]}
    warn_of_local_paths("predict", beam_options, paths)
    # The working folder of a Beam worker is a different one.
    run, output = absolute(os.fspath(run)), absolute(os.fspath(output))
    predictor = load_predictor(run, checkpoint)
    chunks = chunk_options(predictor.config, chunk_steps)
    if chunks["chunk_steps"] is not None:
        check_forward(predictor.model)
        return_large_blocks()  # a record may be large, and the tensors of a chunk are small
    model = {"run": run, "checkpoint": predictor.checkpoint, "weights_sha256": predictor.weights_sha256}
    publisher = PredictionsPublisher(output, new_generation(), max_rejected, overwrite, model)
    publisher.check_output()
    if join(output, "").startswith(join(run, "")):
        raise UserError(f"{output}: is in the folder of the run, which only the run may use. Choose another --output.")
    files, left_out = find_all_files(raw)
    refuse_output(raw, files, output, is_written=is_of_predictions)
    if left_out:
        print(f"predict: {describe_left_out(left_out)}", file=sys.stderr)
    check_kinds(files)
    pipeline = make_pipeline(beam_options)
    limits = Limits(max_record_bytes, max_record_steps)
    read = pipeline | "ReadLines" >> ReadLines(files, limits)
    parse = ParseRecords(
        predictor.schema,
        keep_raw=keep_raw,
        labelled=False,
        limits=limits,
        stop=stop_early(files, max_rejected),
        keep_lines=False,
    )
    parsed = read["lines"] | "ParseRecords" >> parse
    names = JobFiles(output, publisher.generation, publisher.staging, is_fenced=runs_on_engine(beam_options))
    predict_records = _PredictRecords(predictor, run, batch_steps, names, chunks)
    parts = parsed["sequences"] | "PredictRecords" >> predict_records
    outputs = {"parts": parts, "rejects": parsed["rejects"], "chunks": read["chunks"]}
    _ = outputs | "PublishPredictions" >> _PublishPredictions(publisher, names)
    summary = run_job(
        pipeline,
        "predict",
        names,
        total_bytes=sum(file.num_bytes for file in files),
        read_published=publisher.read_published,
        discard=publisher.discard,
    )
    duplicates = summary["duplicate_ids"]
    if duplicates["ids"]:
        line = describe_duplicates(duplicates, are_equal=predictor.schema.id is None)
        print(f"predict: {line}", file=sys.stderr)
    return summary


def _start_tensorflow() -> None:
    """Starts TensorFlow with one thread for each operation, because several batches run at the same time."""
    start_tensorflow()
    with contextlib.suppress(RuntimeError):  # the process has already used TensorFlow: its threads cannot change
        tf.config.threading.set_intra_op_parallelism_threads(1)


class _PredictRecords(beam.PTransform):
    """Predicts records and writes the predictions: lists of (ParsedRecord, Origin) -> Part.

    Args:
        predictor: The model. Only what describes it goes to the workers, which load it themselves.
        run: Folder of the run.
        batch_steps: Budget of padded steps of a batch; None chooses it.
        files: The names of what the job writes.
        chunks: What `chunk_options` returned.
    """

    def __init__(
        self, predictor: Predictor, run: str, batch_steps: int | None, files: JobFiles, chunks: dict[str, Any]
    ) -> None:
        super().__init__()
        self._chunks = chunks
        self._schema, self._target = predictor.schema, predictor.target
        self._batch_steps = batch_steps or choose_batch_steps(predictor.schema, predictor.target)
        self._load = RunLoader(run, predictor.checkpoint, predictor.weights_sha256)
        self._files = files

    def expand(self, sequences: Any) -> Any:
        predict = _Predict(self._schema, self._target, self._batch_steps, self._load, self._files, self._chunks)
        return sequences | "Predict" >> beam.ParDo(predict)


@dataclasses.dataclass(frozen=True)
class RunLoader:
    """Loads the model of a run in a worker.

    Attributes:
        run: Folder of the run.
        checkpoint: `best` or `last`.
        weights_sha256: SHA-256 of the weights that all workers must find. A run that still trains saves other weights.
    """

    run: str
    checkpoint: str
    weights_sha256: str

    def load(self) -> Predictor:
        """Loads the model; raises a UserError if its weights have changed since the job started."""
        _start_tensorflow()
        predictor = load_predictor(self.run, self.checkpoint)
        if predictor.weights_sha256 != self.weights_sha256:
            raise UserError(f"{self.run}: its weights changed while predictions were made. Run predict again.")
        return predictor


class _Predict(beam.DoFn):
    """Predicts records and writes the predictions: lists of (ParsedRecord, Origin) -> Part.

    Threads compute batches while this one goes on parsing: the steps of one batch depend on each other, so that two
    cores hardly speed up one batch, and TensorFlow lets other threads run Python. (Beam's RunInference waits for the
    model before the next records are parsed. Beam's transforms for batches do not suit either: `BatchElements` with
    lengths keeps state by key, which needs a shuffle, and `SortAndBatchElements` sorts a whole bundle, which in this
    process is all the data, with a budget of real steps instead of padded steps.)

    It also writes, because Beam would hold the outputs of a whole record between two steps.
    """

    def __init__(
        self,
        schema: Schema,
        target: Target,
        batch_steps: int,
        loader: RunLoader,
        files: JobFiles,
        chunks: dict[str, Any],
    ) -> None:
        self._schema, self._target, self._batch_steps = schema, target, batch_steps
        self._loader, self._files, self._chunks = loader, files, chunks
        self._shared = Shared()

    def setup(self) -> None:
        self._predictor: Any = None

    def start_bundle(self) -> None:
        self._buffer = BatchBuffer(self._schema, self._batch_steps, self._chunks["chunk_steps"])
        self._writer = PartWriter(self._target, self._files.folder)
        cores = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(cores)
        # The batches that are not written yet, in order. In chunks, a batch may be most of the memory.
        self._pending: collections.deque[Future[BatchOutputs | StepLines]] = collections.deque()
        self._most = _PENDING_BATCHES if self._chunks["chunk_steps"] is None else cores

    def process(self, element: list[tuple[ParsedRecord, Origin]]) -> Iterator[Part]:
        yield from while_wanted(self._files, self._add(element))

    def _load(self) -> Any:
        predictor = self._loader.load()
        return predictor if self._chunks["chunk_steps"] is None else ChunkPredictor(predictor, **self._chunks)

    def _add(self, element: list[tuple[ParsedRecord, Origin]]) -> Iterator[Part]:
        if self._predictor is None:  # not in `setup`, whose errors an engine would retry
            # The threads of a worker share the model.
            self._predictor = self._shared.acquire(self._load)
        for record, _ in element:
            yield from self._predict(self._buffer.add(record))

    def finish_bundle(self) -> Iterator[Any]:
        yield from map(in_global_window, while_wanted(self._files, self._finish()))
        self._pool.shutdown(wait=not self._files.is_fenced or is_wanted(self._files), cancel_futures=True)

    def _finish(self) -> Iterator[Part]:
        yield from self._predict(self._buffer.flush())
        yield from self._write(leave=0)
        yield from self._writer.flush()
        remove_if_unwanted(self._files, _is_published)

    def teardown(self) -> None:
        if hasattr(self, "_pool"):  # after an error, batches may be pending
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _predict(self, batches: Iterator[list[ParsedRecord]]) -> Iterator[Part]:
        for batch in batches:
            yield from self._write(leave=self._most - 1)
            self._pending.append(self._pool.submit(self._call, batch))

    def _call(self, batch: list[ParsedRecord]) -> BatchOutputs | StepLines:
        found = self._predictor(batch)
        if not isinstance(found, np.ndarray):
            return found
        return BatchOutputs(
            [record.id for record in batch], np.array([record.num_steps for record in batch], np.int32), found
        )

    def _write(self, *, leave: int) -> Iterator[Part]:
        """Writes the oldest batches, until no more than `leave` are pending."""
        while len(self._pending) > leave:
            with explain_tensorflow_errors(self._loader.run):
                outputs = self._pending.popleft().result()
            if isinstance(outputs, BatchOutputs):
                yield from self._writer.add(outputs)
            else:
                with contextlib.closing(outputs):
                    yield from self._writer.add_lines(outputs)


def _is_published(files: JobFiles) -> bool:
    return read_published(files) is not None


@dataclasses.dataclass
class _PublishPredictions(beam.PTransform):
    """Publishes predictions: {"parts": Part, "rejects": Reject, "chunks": ChunkSummary} -> the summary as a dict."""

    publisher: PredictionsPublisher
    files: JobFiles

    def expand(self, inputs: Any) -> Any:
        files = self.files
        parts = copy_output(inputs["parts"], "Parts")
        if choose_shuffle(parts.pipeline) == "files":
            reject_runs = inputs["rejects"] | "SortRejects" >> beam.ParDo(SortRows(RejectBuffer), files)
            chunk_runs = inputs["chunks"] | "SortChunks" >> beam.ParDo(SortRows(ChunkBuffer), files)
            lists = {"reject_runs": reject_runs, "chunk_runs": chunk_runs} | WriteLists(files, lists_sources=False)
        else:
            lines = {REJECT_LINES: pack_rejects(inputs["rejects"]), CHUNK_LINES: pack_chunks(inputs["chunks"])}
            lists = lines | WriteListsByKey(files, _is_published, lists_sources=False)
        return (
            parts.pipeline
            | "Once" >> beam.Create([self.publisher], reshuffle=False)
            | "Publish" >> beam.FlatMap(_publish, files, beam.pvalue.AsList(parts), beam.pvalue.AsList(lists))
        )


def _publish(
    publisher: PredictionsPublisher, files: JobFiles, parts: list[Part], lists: list[WrittenLists]
) -> Iterator[dict[str, Any]]:
    rejects = [each.rejects for each in lists if each.rejects is not None]
    return publish_if_wanted(files, lambda: publisher.publish(parts, rejects))
